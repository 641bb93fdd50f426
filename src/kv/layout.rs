//! How one token's row lies in a page, in 16-byte words. Pure.

use super::heads::HeadLayout;
use super::pool::Pool;
use crate::error::{ErrorKind, Result};
use crate::gpu::{number, Const, DType, Tensor};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// The page-plane layout of a [`HeadLayout`] in a dtype. Sizes in `vec4<u32>` words, 16 bytes, where the name says no other
/// unit.
///
/// A page of `page_size` tokens is, for each group, a `[page_size][state_words]` plane, then one
/// `[page_size][rope_words]` plane, then one `[page_size][scale_words]` plane. A state is its key elements padded to a word, then (unless the value is the state
/// itself) its value elements padded to a word; so any dimension works, and a kernel's loads stay aligned.
///
/// In [`DType::I8`] and [`DType::I4`] the elements of states are integers, to be multiplied by a scale: one f32 per token and
/// group where the value is the state itself, else one for the key and one for the value, groups in order. The rope key is
/// f16 there, its words padded to an even number, and so are wide channels ([`HeadLayout::gqa_wide`]), in its place. Channels
/// of a key that are much larger than its others take the bits of those: NMSE 1e-3 of the output (i8) where one is 10 times as
/// large as they are, noise at 100 times, but for wide ones. Other dtypes have no scales. Four bits are a two's complement; the first
/// of a byte's two elements is its lower half.
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
    /// Scales of one group's state: 0, 1 or 2.
    pub spans: usize,
    /// Words of one token's scales, over all groups.
    pub scale_words: usize,
    /// Bytes of a word: 16, but see [`StateLayout::of_decode`].
    pub(crate) word_bytes: usize,
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
        let value_words = words(heads.v_dim());
        let scaled = matches!(dtype, DType::I8 | DType::I4);
        // Of halves, 16 elements at a time: what decode kernels take for one word of a query.
        let rope_words = if scaled { 2 * heads.rope_dim().div_ceil(16) } else { words(heads.rope_dim()) };
        let spans = match (scaled, tied) {
            (false, _) => 0,
            (true, true) => 1,
            // Keys and values differ in size, and a common scale would cost the smaller its bits: reference/append.rs.
            (true, false) => 2,
        };
        let scale_words = (spans * heads.groups()).div_ceil(4);
        Self {
            elems_per_word,
            key_words,
            value_first,
            value_words,
            state_words,
            rope_words,
            spans,
            scale_words,
            word_bytes: 16,
        }
    }

    /// The same in words of decode kernels. Those of I4 have 8 bytes: a lane works on whole words, and with 32 elements of
    /// four rows its registers would hold no query beside its sums.
    pub(crate) fn of_decode(heads: &HeadLayout, dtype: DType) -> Self {
        let whole = Self::new(heads, dtype);
        if dtype != DType::I4 {
            return whole;
        }
        Self {
            elems_per_word: whole.elems_per_word / 2,
            key_words: 2 * whole.key_words,
            value_first: 2 * whole.value_first,
            value_words: 2 * whole.value_words,
            state_words: 2 * whole.state_words,
            rope_words: 2 * whole.rope_words,
            spans: whole.spans,
            scale_words: 2 * whole.scale_words,
            word_bytes: 8,
        }
    }

    /// Words of one token's row over all groups, scales included.
    pub fn row_words(&self, groups: usize) -> usize {
        groups.saturating_mul(self.state_words).saturating_add(self.rope_words).saturating_add(self.scale_words)
    }

    /// Bytes that one group reads per token: its state, the rope key and a word of scales.
    pub fn group_bytes(&self) -> usize {
        let words = self.state_words.saturating_add(self.rope_words);
        self.word_bytes.saturating_mul(words).saturating_add(16 * self.spans.min(1))
    }

    /// Elements in one word of the rope key.
    pub(crate) fn rope_elems(&self) -> usize {
        if self.spans > 0 {
            self.word_bytes / 2
        } else {
            self.elems_per_word
        }
    }

    /// Words of a query, counted as those of a state: a word of an i8 state has as many elements as two of its rope key, one
    /// of an i4 state, in a decode kernel, as four.
    pub(crate) fn query_words(&self) -> usize {
        self.key_words + self.rope_words / (self.elems_per_word / self.rope_elems())
    }

    /// The constants of scales, for kernels that read or write pages.
    pub(crate) fn scale_consts(&self) -> [(&'static str, Const); 2] {
        [("SPANS", number(self.spans)), ("SCALE_WORDS", number(self.scale_words))]
    }
}

/// What a kernel sees of one layer of a cache: its pages and how to read them. Cheap to clone, and good for the life of
/// the cache: a plan is checked against the cache's state at the time of the call.
#[derive(Debug, Clone)]
pub struct KvView {
    pub(crate) pool: Pool,
    pub(crate) heads: HeadLayout,
    pub(crate) dtype: DType,
    pub(crate) page_size: usize,
    /// Which channels are wide, as `shaders/kv/wide/channels.wgsl` has it: where some are, and were named.
    pub(crate) wide: Option<Tensor>,
    /// The cache's generation as it is now, not as it was when the view was taken.
    pub(crate) live_generation: Arc<AtomicU64>,
}

impl KvView {
    /// The cache's present generation.
    pub(crate) fn generation(&self) -> u64 {
        self.live_generation.load(Ordering::Acquire)
    }

    /// Which channels are wide. Errors: [`ErrorKind::Argument`] where none are, or nobody has named them.
    pub(crate) fn wide(&self) -> Result<&Tensor> {
        self.wide.as_ref().ok_or_else(|| {
            let why = match self.heads.wide_dim() {
                0 => "its layout has no wide channels".to_string(),
                n => format!("its {n} wide channels per KV head are not named: PagedKvCache::with_wide_channels does"),
            };
            ErrorKind::argument("layer", why)
        })
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

    /// The pages themselves, `(pages, page_size * row_words)` `vec4<u32>` as in [`StateLayout`], for an app's own kernels and
    /// tests: one buffer, or several of [`KvView::slab_pages`] pages (the last perhaps of fewer). Those of a cache that
    /// grows change.
    pub fn wgpu_buffers(&self) -> Vec<wgpu::Buffer> {
        let there = self.pool.pages().div_ceil(self.pool.slab_pages());
        self.pool.buffers().iter().take(there).map(|buffer| buffer.raw().clone()).collect()
    }

    /// Tokens that the pages hold which are there: no slot is as large.
    pub(crate) fn slot_count(&self) -> usize {
        self.pool.pages() * self.page_size
    }

    /// Pages of each buffer but the last.
    pub fn slab_pages(&self) -> usize {
        self.pool.slab_pages()
    }
}
