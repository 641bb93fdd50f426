//! What planner and kernels see of a cache: page tables and lengths of a batch, never the cache manager. Pure.

#![warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use super::append::MAX_PAGE_SIZE;
use super::tables::PageTables;
use crate::error::{ErrorKind, Result};

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

    /// Refuses numbers that do not fit each other, as a source of an app's own may give them; `entries` are those of the
    /// page tables. What planner and kernels count then stays inside 32 bits, the page tables and the query tokens.
    ///
    /// Errors: [`ErrorKind::Argument`] with the numbers.
    pub(crate) fn check(&self, page_size: usize, entries: usize) -> Result<()> {
        if !page_size.is_power_of_two() || page_size > MAX_PAGE_SIZE {
            let why = format!("{page_size} is not a power of two up to {MAX_PAGE_SIZE}");
            return Err(ErrorKind::argument("page_size", why));
        }
        if self.positions.len() != self.slots.len() {
            let why = format!("{} of {} new tokens", self.positions.len(), self.slots.len());
            return Err(ErrorKind::argument("positions", why));
        }
        for (index, sequence) in self.sequences.iter().enumerate() {
            let fits = sequence.check(page_size as u32, entries as u64); // no truncation: up to MAX_PAGE_SIZE
            fits.map_err(|(name, why)| ErrorKind::argument(name, format!("sequence {index} {why}")))?;
        }
        self.check_query_tokens()
    }

    /// Each query token is of one sequence.
    fn check_query_tokens(&self) -> Result<()> {
        let with_tokens = self.sequences.iter().filter(|sequence| sequence.q_len > 0);
        let of_sequences = with_tokens.map(|sequence| (sequence.q_token_first.into(), sequence.q_len.into()));
        // Mostly they are in order, and a step asks for every sequence.
        if self.check_in_order(of_sequences.clone()).is_ok() {
            return Ok(());
        }
        let mut sorted: Vec<(u64, u64)> = of_sequences.collect();
        sorted.sort_unstable();
        self.check_in_order(sorted)
    }

    /// [`KvBatch::check_query_tokens`] of the first query tokens and numbers of sequences, in this order.
    fn check_in_order(&self, of_sequences: impl IntoIterator<Item = (u64, u64)>) -> Result<()> {
        let mut next = 0u64;
        for (first, count) in of_sequences {
            if first != next {
                let why = format!("a sequence begins at query token {first}, the one before ends at {next}");
                return Err(ErrorKind::argument("q_token_first", why));
            }
            next = first.saturating_add(count);
        }
        match next == self.slots.len() as u64 {
            true => Ok(()),
            false => {
                let why = format!("the sequences have {next} query tokens, there are {} slots", self.slots.len());
                Err(ErrorKind::argument("q_token_first", why))
            }
        }
    }
}

impl SeqView {
    /// What is wrong, and where: see [`KvBatch::check`].
    fn check(&self, page_size: u32, entries: u64) -> Result<(), (&'static str, String)> {
        let SeqView { page_table_first, q_token_first, q_len, kv_len, gap_first, gap_last } = *self;
        let Some(before) = kv_len.checked_sub(q_len) else {
            return Err(("kv_len", format!("has {kv_len}, less than q_len {q_len}")));
        };
        if q_token_first.checked_add(q_len).is_none() {
            return Err(("q_token_first", format!("has {q_token_first}, with q_len {q_len} past 32 bits")));
        }
        // By bits: `page_size` is a power of two, and a step asks this of every sequence.
        let below = page_size.wrapping_sub(1);
        let whole_pages = (gap_first | gap_last) & below == 0;
        let gap = gap_last.checked_sub(gap_first).filter(|_| whole_pages && gap_last <= before);
        let Some(gap) = gap else {
            let why = format!("has a gap of {gap_first}..{gap_last}, wanted whole pages of the first {before} tokens");
            return Err(("gap_last", why));
        };
        // Whoever has no query token is not read.
        let tokens = if q_len > 0 { u64::from(kv_len.saturating_sub(gap)) } else { 0 };
        let pages = tokens.saturating_add(below.into()).wrapping_shr(page_size.trailing_zeros());
        let end = u64::from(page_table_first).saturating_add(pages);
        match end <= entries || pages == 0 {
            true => Ok(()),
            false => Err(("page_table", format!("has its pages at {page_table_first}..{end} of {entries} entries"))),
        }
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
    /// The batch of these sequences, their reserved tokens included. A sequence with none reserved has `q_len` 0. Plans refuse
    /// one whose numbers do not fit each other.
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
    /// Tokens per page, a power of two up to 4096.
    fn page_size(&self) -> usize;
    /// The present generation: another after every change of any sequence, and never that of another cache.
    fn generation(&self) -> u64;
}
