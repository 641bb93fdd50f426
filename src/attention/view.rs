//! What planner and kernels see of a cache: page tables and lengths of a batch, never the cache manager. Pure.

use super::tables::PageTables;
use crate::error::Result;

/// One sequence of a batch as kernels see it: the tokens already cached and those being added in this step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeqView {
    /// Where this sequence begins in [`KvBatch::page_table`]: the page of its token t is entry
    /// `page_table_first + t / page_size`, less the pages of the gap where t is past it.
    pub page_table_first: u32,
    /// First of this sequence's rows among the step's query tokens (and rows of `kv`).
    pub q_token_first: u32,
    /// Query tokens of this step; they are the last `q_len` of `kv_len`.
    pub q_len: u32,
    /// Visible tokens, those of this step included.
    pub kv_len: u32,
    /// First token that is no longer held, since a sliding window freed its page: 0, or where the first tokens are kept
    /// beside the window, past them. A multiple of the page size.
    pub gap_first: u32,
    /// The next token that is held, a multiple of the page size; equal to `gap_first` where all are.
    pub gap_last: u32,
}

/// A batch of sequences at one moment of the cache: everything a step needs to know, on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KvBatch {
    /// The cache's generation when this was made; it changes with every change of any sequence.
    pub generation: u64,
    /// The sequences, in the caller's order.
    pub sequences: Vec<SeqView>,
    /// Page ids of all sequences, one after the other: `ceil(kv_len / page_size)` each, without those of gaps.
    pub page_table: Vec<u32>,
    /// Where each new token is to be written: `page * page_size + offset`, in query-token order.
    pub slots: Vec<u32>,
    /// Position of each new token in its sequence, in query-token order.
    pub positions: Vec<u32>,
}

impl KvBatch {
    /// Query tokens of this step, over all sequences.
    pub fn tokens(&self) -> usize {
        self.slots.len()
    }
}

/// A batch whose page tables lie in an array that a device keeps a copy of.
#[derive(Debug)]
pub struct Resident<'a> {
    /// The batch: [`SeqView::page_table_first`] counts in the array's words, [`KvBatch::page_table`] is empty.
    pub batch: KvBatch,
    /// The array.
    pub tables: &'a PageTables,
    /// No page of the batch has a higher number.
    pub most_page: u32,
}

/// Whatever can describe a batch of its sequences to the planner: the cache manager, or an app's own.
pub trait KvSource {
    /// How the sequences are named.
    type Id: Copy;
    /// The batch of these sequences, their reserved tokens included. A sequence with none reserved has `q_len` 0.
    ///
    /// Errors: for one that is not in the cache, or is named twice.
    fn batch(&self, sequences: &[Self::Id]) -> Result<KvBatch>;
    /// The batch, without page tables of its own, where the source keeps all tables in one array: then a plan uploads what has
    /// changed there since the last one, not every table in every step.
    ///
    /// Errors: as [`KvSource::batch`].
    fn resident(&self, _sequences: &[Self::Id]) -> Result<Option<Resident<'_>>> {
        Ok(None)
    }
    /// Tokens per page, a power of two.
    fn page_size(&self) -> usize;
    /// The present generation: another after every change of any sequence, and never that of another cache.
    fn generation(&self) -> u64;
}
