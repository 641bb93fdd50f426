//! How one token's row lies in a page, in 16-byte words. Pure.

use super::heads::HeadLayout;
use crate::gpu::DType;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// The page-plane layout of a [`HeadLayout`] in a dtype. Sizes in `vec4<u32>` words where the name says no other unit.
///
/// A page of `page_size` tokens is, for each group, a `[page_size][state_words]` plane, then one
/// `[page_size][rope_words]` plane. A state is its key elements padded to a word, then (unless the value is the state
/// itself) its value elements padded to a word; so any dimension works, and a kernel's loads stay aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StateLayout {
    /// Elements in one word.
    pub elems_per_word: usize,
    /// Words that hold the key without position.
    pub key_words: usize,
    /// First word of the value.
    pub value_first: usize,
    /// Words of the value.
    pub value_words: usize,
    /// Words of one state.
    pub state_words: usize,
    /// Words of the rope key.
    pub rope_words: usize,
}

impl StateLayout {
    /// The layout of `heads` in `dtype`.
    pub fn new(heads: &HeadLayout, dtype: DType) -> Self {
        let elems_per_word = dtype.per_vec4();
        let words = |elements: usize| elements.div_ceil(elems_per_word);
        let key_words = words(heads.nope_dim());
        let tied = heads.v_offset() == 0;
        let value_first = if tied { 0 } else { key_words };
        let state_words = if tied { words(heads.state_dim()) } else { key_words + words(heads.v_dim()) };
        let (value_words, rope_words) = (words(heads.v_dim()), words(heads.rope_dim()));
        Self { elems_per_word, key_words, value_first, value_words, state_words, rope_words }
    }

    /// Words of one token's row over all groups.
    pub fn row_words(&self, groups: usize) -> usize {
        groups * self.state_words + self.rope_words
    }

    /// Bytes that one group reads per token: its state and the rope key.
    pub fn group_bytes(&self) -> usize {
        16 * (self.state_words + self.rope_words)
    }
}

/// What a kernel sees of one layer of a cache: its pages and how to read them. Cheap to clone, and good for the life of
/// the cache: a plan is checked against the cache's state at the time of the call.
#[derive(Debug, Clone)]
pub struct KvView {
    pub(crate) pool: crate::gpu::Buffer,
    pub(crate) heads: HeadLayout,
    pub(crate) dtype: DType,
    pub(crate) page_size: usize,
    pub(crate) page_count: usize,
    /// The cache's generation as it is now, not as it was when the view was taken.
    pub(crate) live_generation: Arc<AtomicU64>,
}

impl KvView {
    /// The cache's present generation.
    pub(crate) fn generation(&self) -> u64 {
        self.live_generation.load(Ordering::Acquire)
    }

    /// The head layout of the cached rows.
    pub fn heads(&self) -> &HeadLayout {
        &self.heads
    }

    /// Element type of the cached rows.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Tokens per page.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// The pages themselves, `(page_count, words of a page)` `vec4<u32>` as in [`StateLayout`], for an app's own kernels
    /// and tests.
    pub fn wgpu_buffer(&self) -> &wgpu::Buffer {
        self.pool.raw()
    }
}
