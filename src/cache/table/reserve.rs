//! Room for tokens to come: which pages a step takes, and taking it back. Pure.

use super::batch::check_distinct;
use super::{each, PageCopy, SeqId, SeqTable};
use crate::error::{ErrorKind, Result};

impl SeqTable {
    /// Makes room for `n` more tokens of each sequence, on top of what they have reserved.
    ///
    /// Returns the pages to be copied, in every layer, before anything is written to the new tokens' slots: a sequence that
    /// shares its last, partly filled page with others gets a copy of it to write to. No page is both read and written.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::CacheFull`] where the pages do not suffice, evictable ones counted as free: no sequence gets any,
    /// and it counts the pages of the whole call. [`ErrorKind::UnknownSequence`], [`ErrorKind::RepeatedSequence`],
    /// [`ErrorKind::Argument`] for 0.
    pub fn reserve(&mut self, ids: &[SeqId], n: usize) -> Result<Vec<PageCopy>> {
        self.reserve_each(&each(ids, n))
    }

    /// [`SeqTable::reserve`] with a number of tokens for each sequence.
    ///
    /// # Errors
    ///
    /// As [`SeqTable::reserve`].
    pub fn reserve_each(&mut self, wanted: &[(SeqId, usize)]) -> Result<Vec<PageCopy>> {
        let needed = self.pages_needed(wanted)?;
        let free = self.store.available();
        let Some(pages) = self.store.take(needed) else {
            return Err(ErrorKind::CacheFull { needed, free }.into());
        };
        let mut pages = pages.into_iter();
        let mut copies = Vec::new();
        let page_size = self.page_size;
        for &(id, n) in wanted {
            let Some(sequence) = self.slots[id.index()].sequence.as_mut() else { continue };
            if let Some(tail) = sequence.tail(page_size) {
                let source = sequence.pages[tail];
                if self.store.pages.holders(source) == 1 {
                    self.store.forget(source);
                } else if let Some(target) = pages.next() {
                    copies.push(PageCopy { source, target });
                    sequence.pages.set(tail, target);
                    self.store.release(source);
                }
            }
            sequence.reserved += n;
            let all = sequence.pages_of(sequence.tokens(), page_size);
            sequence.pages.extend(pages.by_ref().take(all - sequence.pages.len()));
            debug_assert_eq!(sequence.pages.len(), all, "counted above");
        }
        debug_assert_eq!(pages.len(), 0, "counted above");
        self.write_tables(wanted);
        self.changed();
        Ok(copies)
    }

    /// Pages that [`SeqTable::reserve_each`] would take.
    ///
    /// # Errors
    ///
    /// As [`SeqTable::reserve_each`], but for [`ErrorKind::CacheFull`].
    pub fn pages_needed(&self, wanted: &[(SeqId, usize)]) -> Result<usize> {
        check_distinct(wanted.iter().map(|(id, _)| *id))?;
        let mut needed = 0usize;
        let mut tails = Vec::new();
        for &(id, n) in wanted {
            if n == 0 {
                return Err(ErrorKind::argument("n", "0 tokens to reserve"));
            }
            let sequence = self.sequence(id)?;
            // Saturating: a length past usize needs more pages than any cache has, and is refused later.
            let pages = sequence.pages_of(sequence.tokens().saturating_add(n), self.page_size);
            needed = needed.saturating_add(pages - sequence.pages.len());
            let tail = sequence.tail(self.page_size).map(|tail| sequence.pages[tail]);
            tails.extend(tail.filter(|page| self.store.pages.holders(*page) > 1));
        }
        // Of the holders of a page that all write to it, the last has it for itself.
        tails.sort_unstable();
        let copies = |run: &[u32]| run.len().min(self.store.pages.holders(run[0]) - 1);
        Ok(needed.saturating_add(tails.chunk_by(|a, b| a == b).map(copies).sum()))
    }

    /// Takes back what [`SeqTable::reserve_each`] did, as long as nothing else was done since: for a caller whose copies
    /// failed. What it has evicted stays evicted.
    pub(crate) fn undo_reserve(&mut self, wanted: &[(SeqId, usize)], copies: &[PageCopy]) {
        let mut copies = copies.iter().peekable();
        for &(id, n) in wanted {
            let Some(sequence) = self.slots[id.index()].sequence.as_mut() else { continue };
            if let Some(tail) = sequence.tail(self.page_size) {
                if let Some(copy) = copies.next_if(|copy| copy.target == sequence.pages[tail]) {
                    self.store.retain(copy.source);
                    sequence.pages.set(tail, copy.source);
                    self.store.release(copy.target);
                }
            }
            sequence.reserved -= n;
            for page in sequence.pages.cut(sequence.pages_of(sequence.tokens(), self.page_size)..) {
                self.store.release(page);
            }
        }
        self.write_tables(wanted);
        self.changed();
    }

    /// Brings the page tables of these sequences up to date.
    pub(in crate::cache) fn write_tables(&mut self, sequences: &[(SeqId, usize)]) {
        for (id, _) in sequences {
            let slot = &mut self.slots[id.index()];
            let Some(sequence) = slot.sequence.as_mut() else { continue };
            let same = sequence.pages.written();
            self.resident &= self.tables.write(&mut slot.region, &sequence.pages, same).is_some();
        }
    }
}
