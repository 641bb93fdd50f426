//! The sequences of a paged KV cache: lengths and page tables, on the host alone. Pure.
//!
//! A step is `reserve` (pages for the new tokens), kernels (which write and read them), `commit` (they are kept).
//! What fails changes nothing. What succeeds raises the generation, by which a plan of an earlier state is known.
//! Forks, known prefixes and pins: `sharing.rs`.

mod batch;
mod generation;
mod pages;
mod prefix;
mod reserve;
pub(super) mod sequence;
mod sharing;
mod stats;
mod store;
mod windows;

pub use stats::{CacheStats, PageCopy};
pub use windows::SequenceOptions;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use crate::kv::append::MAX_PAGE_SIZE;
use crate::kv::tables::{PageTables, Region};
use batch::check_distinct;
use generation::Generation;
use sequence::Sequence;

use crate::error::{Error, ErrorKind, Result};
use store::Store;

/// Names a sequence of one cache. The id of a removed sequence is never given to another, and an id of another cache is
/// unknown here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqId {
    pub(super) table: u64,
    pub(super) slot: u32,
    /// How many sequences had that slot before.
    pub(super) generation: u32,
}

impl SeqId {
    fn index(self) -> usize {
        self.slot as usize
    }
    pub(super) fn unknown(self) -> Error {
        ErrorKind::UnknownSequence { id: self.number() }.into()
    }
    /// What errors and `Display` show: unique within its table.
    fn number(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot)
    }
}

impl fmt::Display for SeqId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

/// Sequences and pages of a paged KV cache, without the memory itself.
#[derive(Debug, Clone)]
pub struct SeqTable {
    pub(super) slots: Vec<Slot>,
    /// Slots without a sequence that may get one.
    vacant: Vec<usize>,
    pub(super) store: Store,
    /// The page tables as a device has them, of all that has tokens reserved.
    pub(super) tables: PageTables,
    /// Whether they are there: not once they would pass 2^31 entries.
    resident: bool,
    /// Pages held for pinned sequences, which may be gone.
    pub(super) pins: HashMap<SeqId, Vec<u32>>,
    pub(super) page_size: usize,
    /// Which table of the process this is.
    pub(super) id: u64,
    generation: Generation,
    /// For [`CacheStats`].
    pub(super) hits: u64,
    pub(super) misses: u64,
}

/// Tables made so far by this process.
static TABLES: AtomicU64 = AtomicU64::new(0);

#[derive(Debug, Clone, Default)]
pub(super) struct Slot {
    pub(super) generation: u32,
    pub(super) sequence: Option<Sequence>,
    /// Where its page table lies in `tables`.
    pub(super) region: Region,
}

impl SeqTable {
    /// An empty table of `page_count` pages of `page_size` tokens (a power of two up to 4096; a kernel may take fewer).
    /// Their product must fit 32 bits, since that is how kernels address a token.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`].
    pub fn new(page_count: usize, page_size: usize) -> Result<Self> {
        Self::with_slabs(page_count, page_size, page_count)
    }

    /// An empty table of pages in slabs of so many, of which the last ones are left empty where that is possible.
    pub(super) fn with_slabs(page_count: usize, page_size: usize, slab_pages: usize) -> Result<Self> {
        check_pages(["page_count", "page_size"], page_count, page_size)?;
        let store = Store::new(page_count as u32, slab_pages); // no truncation: at most `most`
        let id = TABLES.fetch_add(1, Ordering::Relaxed);
        // Each table counts from a place of its own, so that a plan of another cache is known as such.
        let generation = Generation::starting_at(id << 40);
        let (slots, vacant, pins) = (Vec::new(), Vec::new(), HashMap::new());
        let (tables, resident) = (PageTables::default(), true);
        Ok(Self { slots, vacant, store, tables, resident, pins, page_size, id, generation, hits: 0, misses: 0 })
    }

    /// Adds an empty sequence that will share no prefix: its tokens need not be known. See [`SeqTable::match_prefix`].
    pub fn insert(&mut self) -> SeqId {
        self.insert_as(Sequence::default())
    }

    pub(super) fn insert_as(&mut self, sequence: Sequence) -> SeqId {
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, sequence: None, region: Region::default() });
            self.slots.len() - 1
        });
        let slot = &mut self.slots[index];
        slot.sequence = Some(sequence);
        let generation = slot.generation;
        self.changed();
        SeqId { table: self.id, slot: index as u32, generation }
        // no truncation: far fewer slots
    }

    /// Removes a sequence and gives its pages back; those whose tokens are known are kept until their room is needed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::UnknownSequence`].
    pub fn remove(&mut self, id: SeqId) -> Result<()> {
        self.sequence(id)?;
        self.vacate(id.index());
        self.changed();
        Ok(())
    }

    /// Removes all sequences and pins, and what was kept of earlier ones.
    pub fn clear(&mut self) {
        for index in 0..self.slots.len() {
            self.vacate(index);
        }
        for page in std::mem::take(&mut self.pins).into_values().flatten() {
            self.store.release(page);
        }
        self.store.drop_kept();
        self.changed();
    }

    /// Committed tokens of a sequence.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::UnknownSequence`].
    pub fn len(&self, id: SeqId) -> Result<usize> {
        Ok(self.sequence(id)?.len)
    }

    /// Tokens of a sequence that are reserved and not yet committed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::UnknownSequence`].
    pub fn reserved(&self, id: SeqId) -> Result<usize> {
        Ok(self.sequence(id)?.reserved)
    }

    /// Page ids of a sequence's committed and reserved tokens, in token order, without those of its [`SeqTable::gap`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::UnknownSequence`].
    pub fn page_table(&self, id: SeqId) -> Result<&[u32]> {
        Ok(&self.sequence(id)?.pages)
    }

    /// How full the cache is.
    pub fn stats(&self) -> CacheStats {
        let pages = &self.store.pages;
        CacheStats {
            total: pages.limit(),
            used: pages.held(),
            shared: pages.shared(),
            evictable: self.store.index().unheld(),
            free: pages.free(),
            bytes: 0,
            hits: self.hits,
            misses: self.misses,
            evictions: self.store.evictions(),
        }
    }

    /// Lets sequences, pins and kept pages take at most `pages` pages together (all of them, if there are fewer). What is
    /// kept beyond that is evicted at once.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::CacheFull`] where more are held.
    pub fn set_page_limit(&mut self, pages: usize) -> Result<()> {
        if !self.store.set_limit(pages) {
            return Err(ErrorKind::CacheFull { needed: self.store.pages.held(), free: pages }.into());
        }
        Ok(())
    }

    /// Keeps the first `n` reserved tokens of each sequence and drops the rest of its reservation.
    ///
    /// A sequence whose tokens were known shares what it has so far, and nothing later: see [`SeqTable::commit_tokens`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] where fewer are reserved, [`ErrorKind::UnknownSequence`],
    /// [`ErrorKind::RepeatedSequence`].
    pub fn commit(&mut self, ids: &[SeqId], n: usize) -> Result<()> {
        self.check_commit(&each(ids, n))?;
        for &id in ids {
            self.commit_one(id, n, None);
        }
        self.changed();
        Ok(())
    }

    /// Refuses what cannot be committed.
    pub(super) fn check_commit(&self, accepted: &[(SeqId, usize)]) -> Result<()> {
        check_distinct(accepted.iter().map(|(id, _)| *id))?;
        for &(id, n) in accepted {
            let reserved = self.sequence(id)?.reserved;
            if n > reserved {
                let why = format!("{n} tokens to commit, sequence {id} has {reserved} reserved");
                return Err(ErrorKind::argument("n", why));
            }
        }
        Ok(())
    }

    pub(super) fn commit_one(&mut self, id: SeqId, n: usize, tokens: Option<&[u32]>) {
        if let Some(sequence) = self.slots[id.index()].sequence.as_mut() {
            sequence.commit(n, tokens, self.page_size, &mut self.store);
            if n > 0 {
                sequence.committed_at = self.generation.now();
            }
        }
    }

    /// Cuts a sequence to its first `len` committed tokens and drops its reservation.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] where it has fewer, or where the next token would see some that its window has freed;
    /// [`ErrorKind::UnknownSequence`].
    pub fn truncate(&mut self, id: SeqId, len: usize) -> Result<()> {
        let old = self.sequence(id)?.len;
        if len > old {
            return Err(ErrorKind::argument("len", format!("{len} is more than the {old} tokens of sequence {id}")));
        }
        let sequence = self.sequence(id)?;
        if !sequence.can_end_at(len, self.page_size) {
            let (gap, window) = (sequence.gap(self.page_size), sequence.window);
            let why = format!("{len}: sequence {id} no longer holds its tokens {gap:?}, and its window has {window}");
            return Err(ErrorKind::argument("len", why));
        }
        if let Some(sequence) = self.slots[id.index()].sequence.as_mut() {
            sequence.truncate(len, self.page_size, &mut self.store);
        }
        self.changed();
        Ok(())
    }

    pub(super) fn sequence(&self, id: SeqId) -> Result<&Sequence> {
        let own = |slot: &&Slot| id.table == self.id && slot.generation == id.generation;
        let slot = self.slots.get(id.index()).filter(own);
        slot.and_then(|slot| slot.sequence.as_ref()).ok_or_else(|| id.unknown())
    }

    /// All sequences, by slot.
    pub(super) fn ids(&self) -> impl Iterator<Item = SeqId> + '_ {
        let there = self.slots.iter().enumerate().filter(|(_, slot)| slot.sequence.is_some());
        // no truncation: far fewer slots
        there.map(|(slot, s)| SeqId { table: self.id, slot: slot as u32, generation: s.generation })
    }

    pub(super) fn sequences_mut(&mut self) -> impl Iterator<Item = &mut Sequence> {
        self.slots.iter_mut().filter_map(|slot| slot.sequence.as_mut())
    }

    pub(super) fn sequence_mut(&mut self, id: SeqId) -> Result<&mut Sequence> {
        self.sequence(id)?;
        self.slots[id.index()].sequence.as_mut().ok_or_else(|| id.unknown())
    }

    /// Tells plans of earlier states.
    pub(super) fn changed(&mut self) {
        self.generation.rise();
    }

    /// The generation as it will be, for views that are compared with plans.
    pub(super) fn live_generation(&self) -> Arc<AtomicU64> {
        self.generation.live()
    }

    /// Views that are out are of no state of this table from now on.
    pub(super) fn disown_views(&mut self) {
        self.generation.disown();
    }

    /// Empties a slot, if it holds a sequence, and makes the ids given out for it unknown.
    fn vacate(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        let Some(mut sequence) = slot.sequence.take() else { return };
        sequence.keep(0, self.page_size, &mut self.store);
        self.tables.give_back(std::mem::take(&mut slot.region));
        // A slot whose generations are used up is given up rather than letting an old id name a new sequence.
        if let Some(next) = slot.generation.checked_add(1) {
            slot.generation = next;
            self.vacant.push(index);
        }
    }
}

/// The same number for each.
fn each(ids: &[SeqId], n: usize) -> Vec<(SeqId, usize)> {
    ids.iter().map(|id| (*id, n)).collect()
}

/// Whether a table may have so many pages of so many tokens; `names` are those that the caller knows these numbers by.
pub(crate) fn check_pages(names: [&'static str; 2], count: usize, size: usize) -> Result<()> {
    if !size.is_power_of_two() || size > MAX_PAGE_SIZE {
        let why = format!("{size} is not a power of two up to {MAX_PAGE_SIZE}");
        return Err(ErrorKind::argument(names[1], why));
    }
    let most = u32::MAX as usize / size;
    if count == 0 || count > most {
        let why = format!("{count} is not in 1..={most}, pages of {size} tokens");
        return Err(ErrorKind::argument(names[0], why));
    }
    Ok(())
}

#[cfg(test)]
#[path = "tests/table.rs"]
mod tests;
