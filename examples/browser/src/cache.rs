//! `KvCache`: sequences and pages.

use crate::device::Device;
use crate::error::{argument, busy, Result, Thrown};
use crate::layout::{dtype, layout};
use crate::options::{object, Options};
use latten::{CacheOptions, CacheStats, PagedKvCache, Pages, SeqId, Tensor};
use latten::{DType, ErrorKind, Rope, RopePairs};
use std::cell::{RefCell, RefMut};
use std::collections::HashMap;
use wasm_bindgen::prelude::*;

/// A paged KV cache. Sequences are named by numbers, which are never used twice.
#[wasm_bindgen]
pub struct KvCache {
    device: Device,
    inner: RefCell<Inner>,
}

pub(crate) struct Inner {
    pub(crate) cache: PagedKvCache,
    sequences: HashMap<u32, SeqId>,
    next: u32,
}

impl Inner {
    pub(crate) fn id(&self, sequence: u32) -> Result<SeqId> {
        let unknown = || ErrorKind::UnknownSequence { id: sequence.into() };
        Ok(self.sequences.get(&sequence).copied().ok_or_else(unknown)?)
    }

    pub(crate) fn ids(&self, sequences: &[u32]) -> Result<Vec<SeqId>> {
        sequences.iter().map(|sequence| self.id(*sequence)).collect()
    }

    fn name(&mut self, id: SeqId) -> u32 {
        self.next += 1;
        self.sequences.insert(self.next, id);
        self.next
    }
}

impl KvCache {
    pub(crate) fn inner(&self) -> Result<RefMut<'_, Inner>> {
        self.inner.try_borrow_mut().map_err(|_| busy("the cache"))
    }
}

#[wasm_bindgen]
impl KvCache {
    /// Allocates all pages. Throws kind `TooLarge`, `OutOfMemory` (or the next result does), `Argument`.
    #[wasm_bindgen(constructor)]
    pub fn new(
        device: &Device,
        #[wasm_bindgen(unchecked_param_type = "Heads")] heads: JsValue,
        #[wasm_bindgen(unchecked_param_type = "CacheDType | undefined")] elements: JsValue,
        #[wasm_bindgen(unchecked_param_type = "CacheOptions")] options: JsValue,
    ) -> Result<KvCache, JsValue> {
        let o = Options::new("options", &options, &["pages", "pageSize", "layers", "rope"])?;
        let size = |key, default| Ok::<_, JsValue>(o.size(key, 1..=1 << 30)?.unwrap_or(default));
        let pages = Pages { count: o.needed("pages")?, size: size("pageSize", 64)?, layers: size("layers", 1)? };
        let heads = layout(&heads)?;
        let rope = o.get("rope").map(|value| rope(&value, heads.rotated_dim())).transpose()?;
        let made =
            PagedKvCache::new(&device.gpu, heads, CacheOptions { rope, ..CacheOptions::new(dtype(&elements)?, pages) });
        let inner = Inner { cache: made.map_err(Thrown::from)?, sequences: HashMap::new(), next: 0 };
        Ok(KvCache { device: device.clone(), inner: RefCell::new(inner) })
    }

    /// Adds an empty sequence.
    pub fn insert(&self) -> Result<u32, JsValue> {
        let mut inner = self.inner()?;
        let id = inner.cache.insert();
        Ok(inner.name(id))
    }

    /// A sequence that shares the pages of another.
    pub fn fork(&self, sequence: u32) -> Result<u32, JsValue> {
        let mut inner = self.inner()?;
        let id = inner.id(sequence)?;
        let fork = inner.cache.fork(id).map_err(Thrown::from)?;
        Ok(inner.name(fork))
    }

    /// Removes a sequence and gives up its pages.
    pub fn remove(&self, sequence: u32) -> Result<(), JsValue> {
        let mut inner = self.inner()?;
        let id = inner.id(sequence)?;
        inner.cache.remove(id).map_err(Thrown::from)?;
        inner.sequences.remove(&sequence);
        Ok(())
    }

    /// Cuts a sequence to its first `length` tokens.
    pub fn truncate(&self, sequence: u32, length: u32) -> Result<(), JsValue> {
        let mut inner = self.inner()?;
        let id = inner.id(sequence)?;
        Ok(inner.cache.truncate(id, length as usize).map_err(Thrown::from)?)
    }

    /// Tokens of a sequence.
    #[wasm_bindgen(js_name = lengthOf)]
    pub fn length_of(&self, sequence: u32) -> Result<u32, JsValue> {
        let inner = self.inner()?;
        let id = inner.id(sequence)?;
        Ok(inner.cache.len(id).map_err(Thrown::from)? as u32)
    }

    /// Makes room for `tokens` new tokens in each sequence. Throws kind `CacheFull` with `needed` and `free`.
    pub fn reserve(
        &self,
        #[wasm_bindgen(unchecked_param_type = "ArrayLike<number>")] sequences: &[u32],
        tokens: u32,
    ) -> Result<(), JsValue> {
        let mut inner = self.inner()?;
        let ids = inner.ids(sequences)?;
        Ok(inner.cache.reserve(&ids, tokens as usize).map_err(Thrown::from)?)
    }

    /// Writes the rows of all reserved tokens of the sequences, (tokens, kvDim) one after the other, into a layer.
    pub fn append(
        &self,
        layer: u32,
        #[wasm_bindgen(unchecked_param_type = "ArrayLike<number>")] sequences: &[u32],
        #[wasm_bindgen(unchecked_param_type = "ArrayLike<number>")] rows: &[f32],
    ) -> Result<(), JsValue> {
        let mut inner = self.inner()?;
        let (ids, width) = (inner.ids(sequences)?, inner.cache.heads().kv_dim());
        if rows.is_empty() || !rows.len().is_multiple_of(width) {
            return Err(argument("rows", format!("{} numbers are no rows of {width}", rows.len())).into());
        }
        let append = |inner: &mut Inner| {
            let kv = Tensor::from_slice(&self.device.gpu, &[rows.len() / width, width], rows, DType::F32)?;
            inner.cache.append(layer as usize, &ids, &kv)
        };
        Ok(append(&mut inner).map_err(Thrown::from)?)
    }

    /// Keeps the first `tokens` reserved tokens of each sequence and gives back the rest.
    pub fn commit(
        &self,
        #[wasm_bindgen(unchecked_param_type = "ArrayLike<number>")] sequences: &[u32],
        tokens: u32,
    ) -> Result<(), JsValue> {
        let mut inner = self.inner()?;
        let ids = inner.ids(sequences)?;
        Ok(inner.cache.commit(&ids, tokens as usize).map_err(Thrown::from)?)
    }

    /// A new sequence that holds the longest prefix of `tokens` that is in the cache: whole pages that `commitTokens` has given
    /// tokens to, under the same salt. Its length tells where to go on; at least the last token is left to compute.
    #[wasm_bindgen(js_name = matchPrefix)]
    pub fn match_prefix(
        &self,
        #[wasm_bindgen(unchecked_param_type = "ArrayLike<number>")] tokens: &[u32],
        salt: Option<u32>,
    ) -> Result<u32, JsValue> {
        let mut inner = self.inner()?;
        let id = inner.cache.match_prefix(tokens, salt.unwrap_or(0).into());
        Ok(inner.name(id))
    }

    /// `commit` of as many reserved tokens of a sequence as are given here: its full pages are from now on found by them, if
    /// it is from `matchPrefix`.
    #[wasm_bindgen(js_name = commitTokens)]
    pub fn commit_tokens(
        &self,
        sequence: u32,
        #[wasm_bindgen(unchecked_param_type = "ArrayLike<number>")] tokens: &[u32],
    ) -> Result<(), JsValue> {
        let mut inner = self.inner()?;
        let id = inner.id(sequence)?;
        Ok(inner.cache.commit_tokens(&[(id, tokens)]).map_err(Thrown::from)?)
    }

    /// Gives up the pages that no sequence holds and that are kept for `matchPrefix`.
    #[wasm_bindgen(js_name = dropKept)]
    pub fn drop_kept(&self) -> Result<(), JsValue> {
        self.inner()?.cache.drop_kept();
        Ok(())
    }

    /// How full it is.
    #[wasm_bindgen(unchecked_return_type = "KvCacheStats")]
    pub fn stats(&self) -> Result<JsValue, JsValue> {
        let inner = self.inner()?;
        let cache = &inner.cache;
        Ok(stats(&cache.stats(), cache.pages().size, cache.token_bytes(), cache.pool_bytes()))
    }
}

const PAIRS: [(&str, RopePairs); 2] = [("half", RopePairs::Half), ("interleaved", RopePairs::Interleaved)];

/// `{ theta: 10000, pairs: "half" }`
fn rope(value: &JsValue, rotated_dim: usize) -> Result<Rope> {
    let o = Options::new("options.rope", value, &["theta", "pairs"])?;
    let theta = o.number("theta", f64::MIN_POSITIVE..=f64::MAX)?.unwrap_or(10_000.0);
    Ok(Rope::new(rotated_dim, theta, o.word("pairs", &PAIRS)?.unwrap_or(RopePairs::Half))?)
}

/// `KvCacheStats`.
pub(crate) fn stats(s: &CacheStats, page_size: usize, token_bytes: usize, pool_bytes: usize) -> JsValue {
    let (size, number) = (|n: usize| JsValue::from_f64(n as f64), |n: u64| JsValue::from_f64(n as f64));
    object([
        ("total", size(s.total)),
        ("used", size(s.used)),
        ("shared", size(s.shared)),
        ("evictable", size(s.evictable)),
        ("free", size(s.free)),
        ("bytes", number(s.bytes)),
        ("hits", number(s.hits)),
        ("misses", number(s.misses)),
        ("evictions", number(s.evictions)),
        ("pageSize", size(page_size)),
        ("tokenBytes", size(token_bytes)),
        ("poolBytes", size(pool_bytes)),
    ])
}
