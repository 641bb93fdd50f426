//! Sequences being decoded: their KV cache, and the buffers of a step.

use super::decoder::Decoder;
use crate::model::layers::attention::{AttentionStep, StepPlans};
use crate::model::layers::explicit::ExplicitPrefill;
use buffers::Buffers;
use schedule::{schedule, Part};
use want::Undrawn;
pub(crate) mod buffers;
mod measure_prefill;
mod options;
pub(crate) mod owned;
mod parts;
mod rebuild;
mod rollback;
mod room;
mod save;
mod schedule;
mod sharing;
pub(crate) mod want;
mod warm_up;

pub use options::SessionOptions;
pub use want::{Draw, Fed, Want};

use crate::attention::{AttentionOptions, Decode, SplitPolicy};
use crate::cache::{CacheStats, EmptiedSequence, PagedKvCache, SeqId};
use crate::error::{ErrorKind, Result};
use crate::nn::{LinearArgs, Span};
use rollback::Unfinished;

/// Sequences of one [`Decoder`].
pub struct Session {
    decoder: Decoder,
    pub(super) cache: PagedKvCache,
    decode: Decode,
    /// For prompts in the explicit form, if there may be any.
    prefill: Option<ExplicitPrefill>,
    options: SessionOptions,
    buffers: Buffers,
    /// Of the sequences of a call under way: what a failed or dropped call is rolled back to.
    pub(super) unfinished: Vec<Unfinished>,
}

impl Session {
    /// Allocates cache and step buffers. Kernels of products compile at their first use, or in [`Session::warm_up`].
    ///
    /// Errors: [`ErrorKind::Argument`] for a zero size, a window past `max_position_embeddings`, first tokens without a
    /// window, [`PrefillPath::Explicit`](crate::model::PrefillPath::Explicit) or [`PrefillPath::From`](crate::model::PrefillPath::From) of what has no explicit form or does not keep it
    /// ([`LoadOptions::explicit`](super::LoadOptions)); [`ErrorKind::TooLarge`], [`ErrorKind::OutOfMemory`],
    /// [`ErrorKind::Unsupported`] for a head too large for the device, or a `kv_dtype` of integers under biases that are too
    /// large for it.
    pub fn new(decoder: &Decoder, options: SessionOptions) -> Result<Self> {
        for (name, value) in [
            ("max_batch", options.max_batch),
            ("chunk", options.chunk),
            ("cache_tokens", options.cache_tokens),
            ("page_size", options.page_size),
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
        let options = SessionOptions { window, ..options };
        let cache = parts::cache(decoder, &options)?;
        let heads = *cache.heads();
        let SessionOptions { window, keep_first, .. } = options;
        let seen = AttentionOptions { window, keep_first, ..Default::default() };
        let decode = Decode::with_options(gpu, heads, options.kv_dtype, seen)?;
        decode.prepare(&cache.layer(0)?)?;
        let prefill = ExplicitPrefill::of_session(decoder, &options)?;
        let buffers = Buffers::new(decoder, &options, &heads, prefill.is_some())?;
        Ok(Session { decoder: decoder.clone(), cache, decode, prefill, options, buffers, unfinished: Vec::new() })
    }

    /// All that is on a device, on that of `decoder`.
    pub(super) fn rebuild_on(&mut self, decoder: &Decoder) -> Result<Vec<EmptiedSequence>> {
        let (heads, dtype) = (*self.cache.heads(), self.options.kv_dtype);
        let decode = Decode::with_options(decoder.gpu(), heads, dtype, *self.decode.options())?;
        let decode = decode.with_policy(self.decode.policy());
        let prefill = ExplicitPrefill::of_session(decoder, &self.options)?;
        let buffers = Buffers::new(decoder, &self.options, &heads, prefill.is_some())?;
        let emptied = self.cache.rebuild(decoder.gpu())?;
        (self.decoder, self.decode, self.prefill, self.buffers) = (decoder.clone(), decode, prefill, buffers);
        // What fails here is compiled at the first use, and fails there again.
        let _ = self.decode.prepare(&self.cache.layer(0)?);
        Ok(emptied)
    }

    /// Cuts the attention over long contexts by this policy; without it by [`SplitPolicy::Auto`]. With
    /// [`SplitPolicy::FixedTokens`] the attention of a sequence does not depend on the others of a step, bit for bit.
    /// Products still depend on how many tokens a step has, so logits are the same bits where steps are as large.
    pub fn with_policy(mut self, policy: SplitPolicy) -> Self {
        self.prefill.iter_mut().for_each(ExplicitPrefill::forget);
        Session { decode: self.decode.with_policy(policy), ..self }
    }

    /// Adds an empty sequence that will share no prefix. See [`Session::match_prefix`].
    pub fn insert(&mut self) -> SeqId {
        self.cache.insert_seeing(self.seen())
    }

    /// Removes a sequence and gives up its part of the cache, which is kept until its room is needed where its tokens can be
    /// found by [`Session::match_prefix`]. Errors: [`ErrorKind::UnknownSequence`].
    pub fn remove(&mut self, id: SeqId) -> Result<()> {
        self.roll_back();
        self.cache.remove(id)
    }

    /// Cuts a sequence to its first `len` tokens. Errors: [`ErrorKind::Argument`] where it has fewer, or where the next
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

    /// Tokens of a sequence. Errors: [`ErrorKind::UnknownSequence`].
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

    /// Adds tokens to sequences, any number to each, and returns what comes after them.
    ///
    /// Tokens beyond `chunk` go in several steps. Each step is one submit, and one wait if results come with it (two of
    /// each for [`Want::TokenAndLogits`]).
    /// Whatever fails has changed nothing; a call that is dropped before it ends is undone by the next. With a window,
    /// a prompt may be longer than the cache: what it needs is then known step by step, and a call of several steps
    /// holds what its sequences had before, and a copy of their last pages, until it ends.
    ///
    /// Errors: [`ErrorKind::Argument`] for an empty batch or no tokens, a token not in the vocabulary, a sequence that
    /// would exceed [`Session::max_positions`], a bad [`Draw`]; [`ErrorKind::UnknownSequence`],
    /// [`ErrorKind::RepeatedSequence`], [`ErrorKind::CacheFull`]; [`ErrorKind::CommandsLost`] where commands that were recorded
    /// on this [`Gpu`](crate::Gpu) were lost during a step, maybe those of others: call it again; those of the device.
    /// [`ErrorKind::Argument`] named `logits`, with the sequence and the position of its last token, where a token is wanted
    /// and the logits give no probabilities: one is NaN or +infinity, or none is finite (-infinity forbids a token).
    /// [`Want::Logits`] and [`Want::AllLogits`] return them as they are.
    pub async fn feed(&mut self, batch: &[(SeqId, &[u32])], want: Want<'_>) -> Result<Fed> {
        self.feed_or(batch, want, Undrawn::Fails).await
    }

    /// [`Session::feed`], with a say in what becomes of a sequence for which no token can be drawn.
    pub(super) async fn feed_or(
        &mut self,
        batch: &[(SeqId, &[u32])],
        want: Want<'_>,
        undrawn: Undrawn<'_>,
    ) -> Result<Fed> {
        self.roll_back();
        let samplers = self.check(batch, &want)?;
        self.begin(batch)?;
        let fed = self.feed_checked(batch, (&want, undrawn), &samplers).await;
        match fed {
            Ok(_) => self.finish(),
            Err(_) => self.roll_back(),
        }
        fed
    }

    /// The KV cache to write to.
    pub(super) fn cache_mut(&mut self) -> &mut PagedKvCache {
        &mut self.cache
    }

    fn check(&self, batch: &[(SeqId, &[u32])], want: &Want<'_>) -> Result<Vec<[f32; 4]>> {
        if batch.is_empty() || batch.len() > self.options.max_batch {
            let why = format!("{} sequences, wanted 1..={}", batch.len(), self.options.max_batch);
            return Err(ErrorKind::argument("batch", why));
        }
        // Unknown or repeated sequences.
        let ids: Vec<SeqId> = batch.iter().map(|(id, _)| *id).collect();
        self.cache.check_ids(&ids)?;
        let most = self.max_positions();
        for (id, tokens) in batch {
            let len = self.cache.len(*id)?;
            if tokens.is_empty() {
                return Err(ErrorKind::argument("batch", format!("no tokens for sequence {id}")));
            }
            if len + tokens.len() > most {
                let why = format!(
                    "sequence {id} has {len} tokens and gets {}, {} is {most}",
                    tokens.len(),
                    self.what_is_most()
                );
                return Err(ErrorKind::argument("batch", why));
            }
            self.decoder.inner.embedding.check_ids(tokens)?;
        }
        let wanted: Vec<(SeqId, usize)> = batch.iter().map(|(id, tokens)| (*id, tokens.len())).collect();
        if !self.frees_between_steps(batch) {
            self.cache.check_reserve(&wanted)?;
        }
        match want.draws() {
            Some(draws) if draws.len() != batch.len() => {
                Err(ErrorKind::shape("draws", &[draws.len()], format!("({})", batch.len())))
            }
            Some(draws) => draws.iter().map(|d| d.sampling.row(d.u)).collect(),
            None => Ok(Vec::new()),
        }
    }

    async fn feed_checked(
        &mut self,
        batch: &[(SeqId, &[u32])],
        (want, undrawn): (&Want<'_>, Undrawn<'_>),
        samplers: &[[f32; 4]],
    ) -> Result<Fed> {
        let vocab = self.decoder.config().vocab_size;
        let lengths: Vec<usize> = batch.iter().map(|(_, tokens)| tokens.len()).collect();
        let steps = schedule(&lengths, self.capacity());
        if matches!(want, Want::AllLogits) {
            let most = steps.iter().map(|s| s.iter().map(|p| p.tokens.len()).sum::<usize>()).max();
            self.buffers.grow_logits(&self.decoder, most.unwrap_or(1))?;
        }
        let (drawn, read) = (want.draws().is_some(), !matches!(want, Want::Token(_)));
        let mut fed = Fed {
            tokens: vec![0; if drawn { batch.len() } else { 0 }],
            logits: vec![Vec::new(); if read { batch.len() } else { 0 }],
        };
        for parts in steps {
            let ending: Vec<&Part> = parts.iter().filter(|p| p.last).collect();
            let samplers: Vec<[f32; 4]> = ending.iter().filter_map(|p| samplers.get(p.sequence).copied()).collect();
            let losses = self.decoder.gpu().losses();
            let rows = self.record_step(batch, &parts, matches!(want, Want::AllLogits), &samplers)?;
            let gpu = self.decoder.gpu();
            match want {
                Want::AllLogits => {
                    let values = gpu.download(&self.buffers.logits.view(&[rows, vocab])?).await?;
                    let mut first = 0;
                    for part in &parts {
                        let end = first + part.tokens.len() * vocab;
                        fed.logits[part.sequence].extend_from_slice(&values[first..end]);
                        first = end;
                    }
                }
                _ if ending.is_empty() => gpu.submitted().await?,
                _ => {
                    if drawn {
                        let tokens = gpu.download::<u32>(&self.buffers.tokens.view(&[ending.len()])?).await?;
                        ending.iter().zip(tokens).for_each(|(p, token)| fed.tokens[p.sequence] = token);
                        self.check_drawn(batch, &ending, &fed, undrawn)?;
                    }
                    if read {
                        let values = gpu.download(&self.buffers.logits.view(&[ending.len(), vocab])?).await?;
                        let each = ending.iter().zip(values.chunks_exact(vocab));
                        each.for_each(|(p, row)| fed.logits[p.sequence] = row.to_vec());
                    }
                }
            }
            // Whoever lost them: nothing of this step counts.
            gpu.expect_no_loss(losses, "this step")?;
            let tokens = |part: &Part| {
                let (id, tokens) = batch[part.sequence];
                // What no token came of is not kept.
                let kept = if undrawn.spoils(part, &fed) { 0..0 } else { part.tokens.clone() };
                (id, &tokens[kept])
            };
            self.cache.commit_tokens(&parts.iter().map(tokens).collect::<Vec<_>>())?;
        }
        Ok(fed)
    }

    /// What every token sees, where that is not all: the last tokens, and the first ones.
    pub(super) fn window(&self) -> Option<(usize, usize)> {
        self.options.window.map(|window| (window, self.options.keep_first))
    }

    /// Most tokens of a step.
    pub(super) fn capacity(&self) -> usize {
        self.options.chunk.max(self.options.max_batch)
    }

    /// Makes room for [`Want::AllLogits`] of so many tokens in one step.
    pub(super) fn reserve_logits(&mut self, rows: usize) -> Result<()> {
        self.buffers.grow_logits(&self.decoder, rows)
    }

    /// Reserves, uploads and records one step, with the results that are wanted. Returns its rows.
    fn record_step(
        &mut self,
        batch: &[(SeqId, &[u32])],
        parts: &[Part],
        all_logits: bool,
        samplers: &[[f32; 4]],
    ) -> Result<usize> {
        let model = &*self.decoder.inner;
        let gpu = &model.gpu;
        let (mut ids, mut sequences, mut last_rows, mut wanted) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for part in parts {
            let (id, tokens) = batch[part.sequence];
            wanted.push((id, part.tokens.len()));
            sequences.push(id);
            ids.extend_from_slice(&tokens[part.tokens.clone()]);
            if part.last {
                last_rows.push(ids.len() as u32 - 1);
            }
        }
        self.cache.reserve_each(&wanted)?;
        // All writes come before all commands, so that the step is one submit.
        let (rows, ending, b) = (ids.len(), last_rows.len(), &self.buffers);
        let id_rows = b.ids.view(&[rows])?;
        gpu.upload(&id_rows, &ids)?;
        if ending > 0 && !all_logits {
            gpu.upload(&b.last_rows.view(&[ending])?, &last_rows)?;
            if !samplers.is_empty() {
                gpu.upload(&b.samplers.view(&[ending, 4])?, samplers.as_flattened())?;
            }
        }
        let plans = StepPlans::new(&self.decode, &self.cache, &sequences, self.prefill.as_mut())?;
        let cos_sin = self.cache.cos_sin(&sequences)?;
        let scratch = b.scratch.first(rows)?;
        model.embedding.run(&id_rows, &scratch.x)?;
        let mut step = AttentionStep {
            rows,
            cache: &mut self.cache,
            decode: &self.decode,
            plan: plans.absorbed.as_ref(),
            explicit: plans.explicit(),
            sequences: &sequences,
            cos_sin: &cos_sin,
            wide: b.rotate_wide.as_ref(),
            softmax_scale: model.config.softmax_scale(),
        };
        for (i, block) in model.blocks.iter().enumerate() {
            block.run(i, &scratch, &mut step)?;
        }
        let logits = Span::of(&b.logits);
        if all_logits {
            model.head.run(LinearArgs::new(rows, Span::of(&scratch.x), logits))?;
        } else if ending > 0 {
            // Where every row is a last one (plain decode), there is nothing to gather.
            let last = if ending == rows { &scratch.x } else { &b.last };
            if ending < rows {
                b.gather.run(&b.last_rows.view(&[ending])?, &b.last.view(&[ending, model.config.hidden_size])?)?;
            }
            model.head.run(LinearArgs::new(ending, Span::of(last), logits))?;
            if !samplers.is_empty() {
                model.sample.run(logits, &b.samplers.view(&[ending, 4])?, &b.tokens.view(&[ending])?)?;
            }
        }
        Ok(rows)
    }
}
