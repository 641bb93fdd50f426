//! What a cache is made of, and how much it holds.

use super::PagedKvCache;
use crate::error::{ErrorKind, Result};
use crate::gpu::DType;
use crate::kv::layout::StateLayout;
use crate::kv::HeadLayout;
use crate::rope::Rope;
use std::fmt;

/// What a [`PagedKvCache`] is made of, beside its head layout.
///
/// ```
/// # use latten::{CacheOptions, DType, Pages, Rope, RopePairs};
/// # fn f() -> latten::Result<()> {
/// let pages = Pages { count: 1024, size: 64, layers: 32 };
/// let rope = Rope::new(64, 10_000.0, RopePairs::Half)?;
/// let options = CacheOptions { rope: Some(rope), ..CacheOptions::new(DType::F16, pages) };
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CacheOptions {
    /// Element type of the cached rows: F32, F16, BF16, I8 or I4.
    pub dtype: DType,
    /// How much it holds.
    pub pages: Pages,
    /// Whether it starts with a part of its memory and grows up to `pages`, by slabs: as many of equal size as the device can
    /// bind ([`Capabilities::max_slabs`](crate::Capabilities), or one per page where there are fewer), one at first. No page
    /// moves. [`PagedKvCache::reserve`] allocates a slab, in all layers, where the pages that are there are in use or kept;
    /// [`PagedKvCache::shrink`] gives slabs back.
    #[cfg_attr(feature = "serde", serde(default))]
    pub grows: bool,
    /// How `append` rotates the key part of each row to its token's position: the rope key, or for GQA the key of every head
    /// ([`HeadLayout::rotated_dim`] elements). None: rows come rotated, or have no position.
    #[cfg_attr(feature = "serde", serde(default))]
    pub rope: Option<Rope>,
}

/// Without its sequences, of which there may be many thousands.
impl fmt::Debug for PagedKvCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PagedKvCache")
            .field("heads", self.heads())
            .field("dtype", &self.dtype())
            .field("pages", &self.pages())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl CacheOptions {
    /// Of fixed size, for rows that come rotated.
    pub fn new(dtype: DType, pages: Pages) -> Self {
        CacheOptions { dtype, pages, grows: false, rope: None }
    }
}

/// How much a cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Pages {
    /// Pages per layer.
    pub count: usize,
    /// Tokens per page: a power of two, 1 to 4096.
    pub size: usize,
    /// Layers; each has its own pool of `count` pages, and one page table serves them all.
    pub layers: usize,
}

impl Pages {
    /// As many pages of `size` tokens as fit `bytes` over all layers: a cache of these allocates no more than that for its
    /// pools.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for zero sizes, [`ErrorKind::TooLarge`] where not one page fits.
    pub fn within(bytes: u64, heads: &HeadLayout, dtype: DType, size: usize, layers: usize) -> Result<Self> {
        for (name, value) in [("size", size), ("layers", layers)] {
            if value == 0 {
                return Err(ErrorKind::argument(name, "must not be 0"));
            }
        }
        let row_bytes = 16 * StateLayout::new(heads, dtype).row_words(heads.groups()) as u64;
        let page_bytes = row_bytes.saturating_mul(size as u64).saturating_mul(layers as u64);
        let count = bytes / page_bytes;
        if count == 0 {
            let what = format!("one page of {size} tokens in {layers} layers");
            return Err(ErrorKind::TooLarge { what, needed_bytes: page_bytes, limit_bytes: bytes }.into());
        }
        // What 32 bits do not address is refused when the cache is made.
        Ok(Pages { count: usize::try_from(count).unwrap_or(usize::MAX), size, layers })
    }
}
