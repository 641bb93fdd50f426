//! The sequences of a paged KV cache: lengths and page tables, on the host alone. Pure.
//!
//! A step is `reserve` (pages for the new tokens), kernels (which write and read them), `commit` (they are kept).
//! What fails changes nothing. What succeeds raises the generation, by which a plan of an earlier state is known.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::attention::append::MAX_PAGE_SIZE;
use crate::attention::view::{KvBatch, KvSource, SeqView};
use crate::cache::pages::Pages;
use crate::error::{Error, ErrorKind, Result};

/// Names a sequence of one cache. The id of a removed sequence is never given to another, and an id of another cache is
/// unknown here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqId {
    table: u64,
    slot: u32,
    /// How many sequences had that slot before.
    generation: u32,
}

impl SeqId {
    fn index(self) -> usize {
        self.slot as usize
    }
    fn unknown(self) -> Error {
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

/// How full a cache is. `used + free == total`.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheStats {
    /// Pages of the cache.
    pub total: usize,
    /// Pages that sequences hold, reservations included.
    pub used: usize,
    /// Pages that can be reserved.
    pub free: usize,
}

/// Sequences and pages of a paged KV cache, without the memory itself.
#[derive(Debug, Clone)]
pub struct SeqTable {
    slots: Vec<Slot>,
    /// Slots without a sequence that may get one.
    vacant: Vec<usize>,
    pages: Pages,
    page_size: usize,
    /// Which table of the process this is.
    id: u64,
    generation: u64,
}

/// Tables made so far by this process.
static TABLES: AtomicU64 = AtomicU64::new(0);

#[derive(Debug, Clone)]
struct Slot {
    generation: u32,
    sequence: Option<Sequence>,
}

/// Holds exactly the pages of `len + reserved` tokens.
#[derive(Debug, Clone, Default)]
struct Sequence {
    pages: Vec<u32>,
    /// Committed tokens, then those of the step under way.
    len: usize,
    reserved: usize,
}

impl SeqTable {
    /// An empty table of `page_count` pages of `page_size` tokens (a power of two up to 4096; a kernel may take fewer).
    /// Their product must fit 32 bits, since that is how kernels address a token. Errors: [`ErrorKind::Argument`].
    pub fn new(page_count: usize, page_size: usize) -> Result<Self> {
        if !page_size.is_power_of_two() || page_size > MAX_PAGE_SIZE {
            let why = format!("{page_size} is not a power of two up to {MAX_PAGE_SIZE}");
            return Err(ErrorKind::argument("page_size", why));
        }
        let most = u32::MAX as usize / page_size;
        if page_count == 0 || page_count > most {
            let why = format!("{page_count} is not in 1..={most}, pages of {page_size} tokens");
            return Err(ErrorKind::argument("page_count", why));
        }
        let pages = Pages::new(page_count as u32); // no truncation: at most `most`
        let id = TABLES.fetch_add(1, Ordering::Relaxed);
        // Each table counts from a place of its own, so that a plan of another cache is known as such.
        let generation = id << 40;
        Ok(Self { slots: Vec::new(), vacant: Vec::new(), pages, page_size, id, generation })
    }

    /// Adds an empty sequence.
    pub fn insert(&mut self) -> SeqId {
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, sequence: None });
            self.slots.len() - 1
        });
        let slot = &mut self.slots[index];
        slot.sequence = Some(Sequence::default());
        self.generation += 1;
        SeqId { table: self.id, slot: index as u32, generation: slot.generation }
        // no truncation: far fewer slots
    }

    /// Removes a sequence and gives its pages back. Errors: [`ErrorKind::UnknownSequence`].
    pub fn remove(&mut self, id: SeqId) -> Result<()> {
        self.sequence(id)?;
        self.vacate(id.index());
        self.generation += 1;
        Ok(())
    }

    /// Removes all sequences.
    pub fn clear(&mut self) {
        for index in 0..self.slots.len() {
            self.vacate(index);
        }
        self.generation += 1;
    }

    /// Committed tokens of a sequence. Errors: [`ErrorKind::UnknownSequence`].
    pub fn len(&self, id: SeqId) -> Result<usize> {
        Ok(self.sequence(id)?.len)
    }

    /// Tokens of a sequence that are reserved and not yet committed. Errors: [`ErrorKind::UnknownSequence`].
    pub fn reserved(&self, id: SeqId) -> Result<usize> {
        Ok(self.sequence(id)?.reserved)
    }

    /// Page ids of a sequence's committed and reserved tokens, in token order. Errors: [`ErrorKind::UnknownSequence`].
    pub fn page_table(&self, id: SeqId) -> Result<&[u32]> {
        Ok(&self.sequence(id)?.pages)
    }

    /// How full the cache is.
    pub fn stats(&self) -> CacheStats {
        let (total, free) = (self.pages.total(), self.pages.free());
        CacheStats { total, used: total - free, free }
    }

    /// Makes room for `n` more tokens of each sequence, on top of what they have reserved.
    ///
    /// Errors: [`ErrorKind::CacheFull`] where the pages do not suffice: no sequence gets any, and it counts the pages of
    /// the whole call. [`ErrorKind::UnknownSequence`], [`ErrorKind::RepeatedSequence`], [`ErrorKind::Argument`] for 0.
    pub fn reserve(&mut self, ids: &[SeqId], n: usize) -> Result<()> {
        if n == 0 {
            return Err(ErrorKind::argument("n", "0 tokens to reserve"));
        }
        self.check_distinct(ids)?;
        let mut needed = 0usize;
        for &id in ids {
            let sequence = self.sequence(id)?;
            // Saturating: a length past usize needs more pages than any cache has, and is refused just below.
            let pages = self.pages_for(sequence.tokens().saturating_add(n));
            needed = needed.saturating_add(pages - sequence.pages.len());
        }
        let free = self.pages.free();
        if needed > free {
            return Err(ErrorKind::CacheFull { needed, free }.into());
        }
        for &id in ids {
            let page_size = self.page_size;
            let Some(sequence) = self.slots[id.index()].sequence.as_mut() else { continue };
            sequence.reserved += n;
            let more = sequence.tokens().div_ceil(page_size) - sequence.pages.len();
            let taken = self.pages.alloc(more, &mut sequence.pages);
            debug_assert!(taken, "counted above");
        }
        self.generation += 1;
        Ok(())
    }

    /// Keeps the first `n` reserved tokens of each sequence and drops the rest of its reservation.
    ///
    /// Errors: [`ErrorKind::Argument`] where fewer are reserved, [`ErrorKind::UnknownSequence`],
    /// [`ErrorKind::RepeatedSequence`].
    pub fn commit(&mut self, ids: &[SeqId], n: usize) -> Result<()> {
        self.check_distinct(ids)?;
        for &id in ids {
            let reserved = self.sequence(id)?.reserved;
            if n > reserved {
                let why = format!("{n} tokens to commit, sequence {id} has {reserved} reserved");
                return Err(ErrorKind::argument("n", why));
            }
        }
        for &id in ids {
            if let Some(sequence) = self.slots[id.index()].sequence.as_mut() {
                let len = sequence.len + n;
                sequence.keep(len, self.page_size, &mut self.pages);
            }
        }
        self.generation += 1;
        Ok(())
    }

    /// Cuts a sequence to its first `len` committed tokens and drops its reservation.
    ///
    /// Errors: [`ErrorKind::Argument`] where it has fewer, [`ErrorKind::UnknownSequence`].
    pub fn truncate(&mut self, id: SeqId, len: usize) -> Result<()> {
        let old = self.sequence(id)?.len;
        if len > old {
            return Err(ErrorKind::argument("len", format!("{len} is more than the {old} tokens of sequence {id}")));
        }
        if let Some(sequence) = self.slots[id.index()].sequence.as_mut() {
            sequence.keep(len, self.page_size, &mut self.pages);
        }
        self.generation += 1;
        Ok(())
    }

    fn sequence(&self, id: SeqId) -> Result<&Sequence> {
        let own = |slot: &&Slot| id.table == self.id && slot.generation == id.generation;
        let slot = self.slots.get(id.index()).filter(own);
        slot.and_then(|slot| slot.sequence.as_ref()).ok_or_else(|| id.unknown())
    }

    fn pages_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.page_size)
    }

    /// Empties a slot, if it holds a sequence, and makes the ids given out for it unknown.
    fn vacate(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        let Some(mut sequence) = slot.sequence.take() else { return };
        sequence.keep(0, self.page_size, &mut self.pages);
        // A slot whose generations are used up is given up rather than letting an old id name a new sequence.
        if let Some(next) = slot.generation.checked_add(1) {
            slot.generation = next;
            self.vacant.push(index);
        }
    }

    fn check_distinct(&self, ids: &[SeqId]) -> Result<()> {
        let mut sorted = ids.to_vec();
        sorted.sort_unstable();
        match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(ErrorKind::RepeatedSequence { id: pair[0].number() }.into()),
            None => Ok(()),
        }
    }
}

impl Sequence {
    /// Committed and reserved tokens.
    fn tokens(&self) -> usize {
        self.len + self.reserved
    }

    /// Commits exactly the first `len` of the sequence's tokens, and gives back the pages of the others.
    fn keep(&mut self, len: usize, page_size: usize, pages: &mut Pages) {
        self.len = len;
        self.reserved = 0;
        for page in self.pages.drain(len.div_ceil(page_size)..) {
            let held = pages.release(page);
            debug_assert!(held, "page {page} of a sequence was free");
        }
    }
}

impl KvSource for SeqTable {
    type Id = SeqId;

    fn batch(&self, sequences: &[SeqId]) -> Result<KvBatch> {
        self.check_distinct(sequences)?;
        let mut batch = KvBatch { generation: self.generation, ..KvBatch::default() };
        for &id in sequences {
            let sequence = self.sequence(id)?;
            batch.sequences.push(SeqView {
                page_table_first: index_u32(batch.page_table.len())?,
                q_token_first: index_u32(batch.slots.len())?,
                q_len: index_u32(sequence.reserved)?,
                kv_len: index_u32(sequence.tokens())?,
            });
            batch.page_table.extend_from_slice(&sequence.pages);
            for position in sequence.len..sequence.tokens() {
                let page = sequence.pages[position / self.page_size] as usize;
                batch.slots.push(index_u32(page * self.page_size + position % self.page_size)?);
                batch.positions.push(index_u32(position)?);
            }
        }
        Ok(batch)
    }

    fn page_size(&self) -> usize {
        self.page_size
    }

    fn generation(&self) -> u64 {
        self.generation
    }
}

/// An index as kernels hold it. [`SeqTable::new`] keeps every length and slot inside 32 bits.
fn index_u32(index: usize) -> Result<u32> {
    u32::try_from(index).map_err(|_| ErrorKind::argument("sequences", format!("index {index} is past 32 bits")))
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
