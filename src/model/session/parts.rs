//! What a session is made of, by its options: its cache, and what its prompts in the explicit form need.

use super::SessionOptions;
use crate::cache::{check_pages, CacheOptions, PagedKvCache, Pages, WindowLayers, WindowPages};
use crate::error::{ErrorKind, Result};
use crate::kv::turns::TokenShare;
use crate::model::decoder::Decoder;
use crate::model::layers::explicit::ExplicitPrefill;
use crate::model::layers::prefill::{Choice, PrefillPath};

/// The cache of a session of `decoder`.
pub(super) fn cache(decoder: &Decoder, options: &SessionOptions) -> Result<PagedKvCache> {
    let (gpu, config) = (decoder.gpu(), decoder.own_config());
    let pages = options.cache_tokens.div_ceil(options.page_size);
    check_pages(["cache_tokens", "page_size"], pages, options.page_size)?;
    let pages = Pages { count: pages, size: options.page_size, layers: config.layers };
    let wide = decoder.inner.large_keys.in_cache(options.kv_dtype)?;
    let heads = wide.map_or_else(|| config.layout(), |wide| Ok(*wide.heads()))?;
    let config = config.for_positions(options.most_tokens(decoder.config()));
    let rope = Some(config.rope()?);
    let shard = decoder.shard();
    let share = shard.is_by_context().then(|| TokenShare::new(shard, options.page_size)).transpose()?;
    let made = CacheOptions { rope, ..CacheOptions::new(options.kv_dtype, pages) };
    let cache = PagedKvCache::of_share(gpu, heads, made, (share, window_layers(decoder, options, &pages)?))?;
    let cache = match wide {
        Some(wide) => cache.with_wide_channels(wide)?,
        None => cache,
    };
    match config.layer_kinds.is_empty() {
        true => Ok(cache),
        false => {
            let ropes = (0..config.layers).map(|layer| config.of_layer(layer).rope()).collect::<Result<Vec<_>>>()?;
            cache.with_layer_ropes(&ropes)
        }
    }
}

/// The layers that have pools of their own, if there are any.
fn window_layers(decoder: &Decoder, options: &SessionOptions, pages: &Pages) -> Result<Option<WindowLayers>> {
    let config = decoder.own_config();
    let of_layers: Vec<bool> = config.layer_kinds.iter().map(|kind| kind.window.is_some()).collect();
    let window = config.layer_kinds.iter().filter_map(|kind| kind.window).max();
    let Some(window) = window.filter(|_| options.window_pools && of_layers.contains(&false)) else { return Ok(None) };
    if decoder.shard().size() > 1 {
        let what = "pools of their own for layers with a window (window_pools), of a model on several ranks";
        return Err(ErrorKind::Unsupported { what: what.into() }.into());
    }
    if let Some(all) = options.window {
        let why = format!("beside a window of {all} tokens in every layer, which frees pages of all of them");
        return Err(ErrorKind::argument("window_pools", why));
    }
    let chunk = options.chunk.max(options.max_batch);
    let needed = WindowPages::needed(window, options.max_batch, chunk, pages.size);
    // Where all would fit, layers alike cost less.
    let few = needed.saturating_add(2) < pages.count;
    Ok(few.then_some(WindowLayers { of_layers, window, pages: needed }))
}

impl ExplicitPrefill {
    /// What a session's prompts in the explicit form need, if some may take it. Allocates nothing yet.
    pub(in crate::model) fn of_session(decoder: &Decoder, options: &SessionOptions) -> Result<Option<Self>> {
        let (config, path) = (decoder.own_config(), options.prefill);
        // The explicit form reads whole pages of a sequence: where ranks have parts of them, prompts are absorbed.
        let by_context = decoder.shard().is_by_context();
        let kept = decoder.keeps_explicit() && options.keep_first == 0 && !by_context;
        if !kept && matches!(path, PrefillPath::Explicit | PrefillPath::From(_)) {
            let why = match options.keep_first {
                _ if by_context => format!("{path:?}: where ranks divide sequences by context, prompts are absorbed"),
                0 => format!("{path:?}: this decoder of {} keeps no explicit form", config.variant()),
                first => format!("{path:?} with {first} first tokens beside a window, which are absorbed only"),
            };
            return Err(ErrorKind::argument("prefill", why));
        }
        let choice = Choice::new(config, path, options.window, options.chunk.max(options.max_batch));
        let Some(choice) = choice.filter(|_| kept) else { return Ok(None) };
        let most = choice
            .most_tokens(options.chunk.max(options.max_batch))
            .min(options.cache_tokens.next_multiple_of(options.page_size));
        Self::of_choice(decoder.gpu(), config, options.kv_dtype, choice, most).map(Some)
    }
}
