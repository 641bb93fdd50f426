//! Sequences being decoded: their KV cache, and the buffers of a step.

use super::decoder::Decoder;
use crate::model::layers::explicit::ExplicitPrefill;
use crate::model::layers::kinds::LayerDecodes;
use buffers::Buffers;
mod behind;
pub(crate) mod buffers;
mod draws;
pub(crate) mod feed;
mod follow;
mod guesses;
pub(crate) mod ids;
mod measure_prefill;
mod message;
mod options;
pub(crate) mod owned;
mod parts;
mod ranks;
mod rebuild;
mod rollback;
mod room;
mod save;
mod schedule;
mod sharing;
pub(crate) mod step;
mod stream;
mod warm_up;

pub use feed::TokensAndLogits;
pub use follow::follow;
pub use options::SessionOptions;
pub use stream::{DrawSource, Samplers, TokenStream};

use crate::attention::{Decode, SplitPolicy};
use crate::cache::{CacheStats, EmptiedSequence, PagedKvCache, SeqId};
use crate::error::{ErrorKind, Result};
use ranks::Ranks;
use rollback::Unfinished;
use std::fmt;
use std::sync::Arc;

/// Sequences of one [`Decoder`].
pub struct Session {
    decoder: Decoder,
    pub(super) cache: PagedKvCache,
    decode: Decode,
    /// Of layers in which tokens see others than in the first.
    further: LayerDecodes,
    /// For prompts in the explicit form, if there may be any.
    prefill: Option<ExplicitPrefill>,
    options: SessionOptions,
    buffers: Buffers,
    /// Whether it has streamed before.
    streamed: bool,
    /// Of the sequences of a call under way: what a failed or dropped call is rolled back to.
    pub(super) unfinished: Vec<Unfinished>,
    /// Where others compute its layers, too.
    ranks: Option<Arc<Ranks>>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Session { options, cache, decoder, .. } = self;
        let mut fields = f.debug_struct("Session");
        fields
            .field("options", options)
            .field("stats", &cache.stats())
            .field("decoder", decoder)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Allocates cache and step buffers. Kernels compile at their first use, those of a step together on several threads, or in
    /// [`Session::warm_up`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for a decoder of a part of a model ([`Session::sharded`]), a zero size, a window past `max_position_embeddings`, first tokens without a
    /// window, [`PrefillPath::Explicit`](crate::model::PrefillPath::Explicit) or [`PrefillPath::From`](crate::model::PrefillPath::From) of what has no explicit form or does not keep it
    /// ([`LoadOptions::explicit`](super::LoadOptions)); [`ErrorKind::TooLarge`], [`ErrorKind::OutOfMemory`],
    /// [`ErrorKind::Unsupported`] for a head too large for the device, or a `kv_dtype` of integers under biases that are too
    /// large for it.
    pub fn new(decoder: &Decoder, options: SessionOptions) -> Result<Self> {
        let shard = decoder.shard();
        if shard.size() > 1 {
            let why = format!("holds part {} of {}: see Session::sharded", shard.rank(), shard.size());
            return Err(ErrorKind::argument("decoder", why));
        }
        Self::of_part(decoder, options)
    }

    /// Of a model, or of a rank's part.
    fn of_part(decoder: &Decoder, options: SessionOptions) -> Result<Self> {
        for (name, value) in [
            ("max_batch", options.max_batch),
            ("chunk", options.chunk),
            ("cache_tokens", options.cache_tokens),
            ("page_size", options.page_size),
            ("max_tokens", options.max_tokens.unwrap_or(1)),
        ] {
            if value == 0 || value > 1 << 30 {
                return Err(ErrorKind::argument(name, format!("{value} is not in 1..=2^30")));
            }
        }
        let (gpu, config) = (decoder.gpu(), decoder.config());
        // What is past the positions is refused whatever the model's own window: it is a mistake in either case.
        if let Some(window) = options.window.filter(|window| *window > config.max_positions) {
            let why = format!("{window} is past the model's max_position_embeddings, {}", config.max_positions);
            return Err(ErrorKind::argument("window", why));
        }
        let window = options.window.into_iter().chain(config.window).min();
        if let Some(window) = window.filter(|_| decoder.shard().is_by_context()) {
            let what = format!("a window of {window} tokens where ranks divide sequences by context");
            return Err(ErrorKind::Unsupported { what }.into());
        }
        let options = SessionOptions { window, ..options };
        gpu.lazily(|| Self::of_options(decoder, options))
    }

    fn of_options(decoder: &Decoder, options: SessionOptions) -> Result<Self> {
        let gpu = decoder.gpu();
        let cache = parts::cache(decoder, &options)?;
        let heads = *cache.heads();
        let layers = options.layers_see(decoder.config());
        let first = layers.first().copied().unwrap_or_default();
        let decode = Decode::with_options(gpu, heads, options.kv_dtype, first)?;
        let further = LayerDecodes::new(&decode, (gpu, options.kv_dtype), &layers)?;
        let prefill = ExplicitPrefill::of_session(decoder, &options)?;
        let buffers = Buffers::new(decoder, &options, &cache, prefill.is_some())?;
        let (decoder, streamed, unfinished) = (decoder.clone(), false, Vec::new());
        let ranks = None;
        Ok(Session { decoder, cache, decode, further, prefill, options, buffers, streamed, unfinished, ranks })
    }

    /// All that is on a device, on that of `decoder`.
    pub(super) fn rebuild_on(&mut self, decoder: &Decoder) -> Result<Vec<EmptiedSequence>> {
        decoder.gpu().lazily(|| self.rebuild_parts(decoder))
    }

    fn rebuild_parts(&mut self, decoder: &Decoder) -> Result<Vec<EmptiedSequence>> {
        let (heads, dtype) = (*self.cache.heads(), self.options.kv_dtype);
        let decode = Decode::with_options(decoder.gpu(), heads, dtype, *self.decode.options())?;
        let decode = decode.with_policy(self.decode.policy());
        let layers = self.options.layers_see(decoder.config());
        let further = LayerDecodes::new(&decode, (decoder.gpu(), dtype), &layers)?;
        let prefill = ExplicitPrefill::of_session(decoder, &self.options)?;
        let buffers = Buffers::new(decoder, &self.options, &self.cache, prefill.is_some())?;
        let emptied = self.cache.rebuild(decoder.gpu())?;
        (self.decoder, self.decode, self.prefill, self.buffers) = (decoder.clone(), decode, prefill, buffers);
        self.further = further;
        Ok(emptied)
    }

    /// Cuts the attention over long contexts by this policy; without it by [`SplitPolicy::Auto`]. With
    /// [`SplitPolicy::FixedTokens`] the attention of a sequence does not depend on the others of a step, bit for bit.
    /// Products still depend on how many tokens a step has, so logits are the same bits where steps are as large.
    pub fn with_policy(mut self, policy: SplitPolicy) -> Self {
        self.prefill.iter_mut().for_each(ExplicitPrefill::forget);
        let (decode, further) = (self.decode.with_policy(policy), self.further.with_policy(policy));
        Session { decode, further, ..self }
    }

    /// Adds an empty sequence that will share no prefix. See [`Session::match_prefix`].
    pub fn insert(&mut self) -> SeqId {
        self.cache.insert_seeing(self.seen())
    }

    /// Removes a sequence and gives up its part of the cache, which is kept until its room is needed where its tokens can be
    /// found by [`Session::match_prefix`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::UnknownSequence`].
    pub fn remove(&mut self, id: SeqId) -> Result<()> {
        self.roll_back();
        self.cache.remove(id)
    }

    /// Cuts a sequence to its first `len` tokens.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] where it has fewer, or where the next
    /// would see some that a window has freed; [`ErrorKind::UnknownSequence`].
    pub fn truncate(&mut self, id: SeqId, len: usize) -> Result<()> {
        self.roll_back();
        let (shorter, whose) = (len < self.len(id)?, self.what_is_window());
        let window = self.window().filter(|_| shorter);
        self.cache.truncate(id, len).map_err(|error| match window {
            Some((window, _)) => {
                let why = format!("{len}: a window of {window} tokens, {whose}, has freed what the next one would see");
                ErrorKind::argument("len", why)
            }
            None => error,
        })
    }

    /// Tokens of a sequence.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::UnknownSequence`].
    pub fn len(&self, id: SeqId) -> Result<usize> {
        self.cache.len(id)
    }

    /// The model.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The KV cache, for its sizes.
    pub fn cache(&self) -> &PagedKvCache {
        &self.cache
    }

    /// Refuses what only a session on one device does.
    fn expect_alone(&self, what: &str) -> Result<()> {
        match self.ranks {
            Some(_) => Err(ErrorKind::Unsupported { what: format!("{what}, of a session of several ranks") }.into()),
            None => Ok(()),
        }
    }

    /// What it was made with.
    pub(super) fn options(&self) -> &SessionOptions {
        &self.options
    }

    /// What attends over what.
    pub(super) fn attention_parts(&mut self) -> (&Decode, &mut PagedKvCache) {
        (&self.decode, &mut self.cache)
    }

    /// Most sequences of a call.
    pub(super) fn max_batch(&self) -> usize {
        self.options.max_batch
    }

    /// How full the cache is, and what sharing does for it.
    pub fn stats(&self) -> CacheStats {
        self.cache.stats()
    }

    /// The KV cache to write to.
    pub(super) fn cache_mut(&mut self) -> &mut PagedKvCache {
        &mut self.cache
    }

    /// What every token sees, where that is not all: the last tokens, and the first ones.
    pub(super) fn window(&self) -> Option<(usize, usize)> {
        self.options.window.map(|window| (window, self.options.keep_first))
    }

    /// Most tokens of a step.
    pub(super) fn capacity(&self) -> usize {
        self.options.chunk.max(self.options.max_batch)
    }

    /// Makes room for the logits of so many tokens in one step ([`Session::all_logits`]), and where they are wanted for the most
    /// likely tokens ([`Session::all_tokens`]).
    pub(super) fn reserve_all(&mut self, rows: usize, tokens: bool) -> Result<()> {
        self.buffers.grow_logits(&self.decoder, rows)?;
        if tokens {
            self.buffers.grow_most_likely(self.decoder.gpu(), rows)?;
        }
        Ok(())
    }
}
