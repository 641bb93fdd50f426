//! What a session makes room for.

use crate::attention::AttentionOptions;
use crate::gpu::DType;
use crate::model::config::Config;
use crate::model::PrefillPath;
#[cfg(doc)]
use crate::model::Session;

/// What a [`Session`] makes room for, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
pub struct SessionOptions {
    /// Most sequences in one call.
    pub max_batch: usize,
    /// Most tokens in one step, over all sequences: longer prompts take several.
    pub chunk: usize,
    /// Tokens that the cache holds, over all sequences; rounded up to pages.
    pub cache_tokens: usize,
    /// Tokens per page of the cache, a power of two; where ranks divide sequences by context, of all ranks together
    /// ([`Shard::by_context`](crate::parallel::Shard::by_context)).
    pub page_size: usize,
    /// Element type of the cache: F32, F16, BF16, I8 or I4. With the last two, channels of keys that are large by their bias
    /// (Qwen2's) are kept in f16 besides ([`HeadLayout::gqa_wide`](crate::HeadLayout)); what is large and cannot be is a
    /// warning in the log, or an error of [`Session::new`].
    pub kv_dtype: DType,
    /// Tokens that a token sees, its own included, in every layer ([`AttentionOptions::window`]); none for all. What no
    /// later token sees leaves the cache at once, so a sequence may go on without end: its limit is then not the
    /// model's `max_position_embeddings`, which bounds how far apart tokens are that see each other, but 2^24 tokens.
    /// A model with a window of its own ([`Config::window`](crate::model::Config::window)) has it without this, and the smaller
    /// of the two where both are given.
    pub window: Option<usize>,
    /// And the first this many of the sequence ([`AttentionOptions::keep_first`]). Tokens keep the positions at which
    /// they came, so the distance to these grows: past what the model was trained for, it is the model that has to bear
    /// it.
    pub keep_first: usize,
    /// Tokens of the longest sequence, where that is to be less than [`Session::max_positions`] would be without. A model with
    /// frequency factors for longer sequences ([`Config::long_rope`](crate::model::Config::long_rope)) has them where sequences may pass
    /// those of training: by this, by the model's positions and by the cache.
    pub max_tokens: Option<usize>,
    /// Whether layers with a window, of a model that has one in some of its layers, have pools of pages of their own: with room for the
    /// windows of `max_batch` sequences, their 64 tokens before and one step, where the others hold all `cache_tokens`. What no window
    /// sees keeps its place there until another page needs it. Then more sequences than `max_batch` may find no room
    /// ([`ErrorKind::CacheFull`](crate::ErrorKind::CacheFull)), [`Session::truncate`] to where tokens are gone is an error, and
    /// [`Session::match_prefix`] finds as much as a new sequence can go on from. Not beside `window`, and not of several ranks. Of other
    /// models it changes nothing.
    pub window_pools: bool,
    /// In which form GLA and MLA take prompts. The explicit one has scratch memory of up to 256 MiB, made by the first
    /// prompt that takes it (or [`Session::warm_up`]): with the default `chunk` that is one without much before it, and
    /// needs little; longer contexts want chunks of at least [`Config::prefill_break_even`](crate::model::Config) tokens.
    pub prefill: PrefillPath,
}

impl Default for SessionOptions {
    fn default() -> Self {
        SessionOptions {
            max_batch: 1,
            chunk: 128,
            cache_tokens: 1024,
            page_size: 64,
            kv_dtype: DType::F16,
            window: None,
            keep_first: 0,
            max_tokens: None,
            window_pools: false,
            prefill: PrefillPath::Auto,
        }
    }
}

impl SessionOptions {
    /// Tokens that a sequence of a model may have at most.
    pub(crate) fn most_tokens(&self, config: &Config) -> usize {
        // A window frees what is not seen: then a sequence may pass the cache, but its angles are those of positions.
        let room = if self.window.is_some() { usize::MAX } else { self.cache_tokens };
        config.max_positions.min(room).min(self.max_tokens.unwrap_or(usize::MAX))
    }

    /// What tokens see in each layer of a model, with this session's window and the model's own.
    pub(crate) fn layers_see(&self, config: &Config) -> Vec<AttentionOptions> {
        let SessionOptions { window, keep_first, .. } = *self;
        let see = |layer: usize| {
            let own = config.layer_kinds.get(layer).and_then(|kind| kind.window);
            let (softcap, sinks) = (config.score_softcap, config.sinks);
            let all = AttentionOptions { window, keep_first, softcap, sinks, ..Default::default() };
            match own.filter(|own| window.is_none_or(|window| *own < window)) {
                // The first tokens are kept for what a session leaves out, not for what the model's layer never sees.
                Some(own) => AttentionOptions { window: Some(own), keep_first: 0, ..all },
                None => all,
            }
        };
        (0..config.layers).map(see).collect()
    }
}
