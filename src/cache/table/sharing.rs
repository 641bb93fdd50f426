//! What sequences share: forks, prefixes found by their tokens, pins. Pure.

use super::prefix::Parent;
use super::sequence::{Known, PageList, Sequence};
use super::{SeqId, SeqTable};
use crate::error::Result;

impl SeqTable {
    /// Tells whether a sequence got tokens since: another number each time that it does. What is cut off changes it not.
    ///
    /// Errors: [`ErrorKind::UnknownSequence`](crate::ErrorKind::UnknownSequence).
    pub(crate) fn committed_at(&self, id: SeqId) -> Result<u64> {
        Ok(self.sequence(id)?.committed_at)
    }

    /// A new sequence of the same committed tokens. It shares all pages and copies none: whoever first adds tokens to a
    /// shared, partly filled page gets a copy of that page ([`SeqTable::reserve`]). Reserved tokens are not shared.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::UnknownSequence`](crate::ErrorKind::UnknownSequence).
    pub fn fork(&mut self, id: SeqId) -> Result<SeqId> {
        let sequence = self.sequence(id)?;
        let pages = sequence.pages[..sequence.pages_of(sequence.len, self.page_size)].to_vec();
        let copy = Sequence { pages: PageList::new(pages), reserved: 0, known: sequence.known.clone(), ..*sequence };
        copy.pages.iter().for_each(|page| self.store.retain(*page));
        Ok(self.insert_as(copy))
    }

    /// Makes a sequence what its fork is, and removes the fork. A sequence that is gone by now stays gone.
    ///
    /// Errors: [`ErrorKind::UnknownSequence`](crate::ErrorKind::UnknownSequence) for the fork.
    pub(crate) fn take_back(&mut self, id: SeqId, fork: SeqId) -> Result<()> {
        let earlier = self.sequence(fork)?.clone();
        let len = earlier.len;
        if let Ok(sequence) = self.sequence_mut(id) {
            let later = std::mem::replace(sequence, earlier);
            *self.sequence_mut(fork)? = later;
        }
        let undone = self.pages_from(fork, len)?;
        self.remove(fork)?;
        self.store.unpublish(&undone);
        Ok(())
    }

    /// Cuts a sequence as [`SeqTable::truncate`] does, and lets no one find what is cut off by its tokens, as far as no
    /// other holds it: for tokens whose rows may not be theirs, as of a call that failed.
    ///
    /// Errors: as there.
    pub(crate) fn discard(&mut self, id: SeqId, len: usize) -> Result<()> {
        let undone = self.pages_from(id, len)?;
        self.truncate(id, len)?;
        if !len.is_multiple_of(self.page_size) {
            // The sequence holds it still, with others or alone.
            if let Some(tail) = undone.first().copied().filter(|page| self.store.pages.holders(*page) == 1) {
                self.store.unpublish(&undone[1..]);
                self.store.forget(tail);
                return Ok(());
            }
        }
        self.store.unpublish(&undone);
        Ok(())
    }

    /// The pages of a sequence's tokens from `len` on, those that hold earlier ones, too, among them.
    fn pages_from(&self, id: SeqId, len: usize) -> Result<Vec<u32>> {
        let (sequence, page_size) = (self.sequence(id)?, self.page_size);
        let before = sequence.pages_of(len - len % page_size, page_size);
        Ok(sequence.pages.get(before..).unwrap_or_default().to_vec())
    }

    /// A new sequence that holds the longest prefix of `tokens` that is in the cache: whole pages, committed before with
    /// the same `salt` by a sequence made here, in use or kept since. At least the last of `tokens` is left to compute.
    /// What is left begins at [`SeqTable::len`]. As long as it is committed by [`SeqTable::commit_tokens`], later calls
    /// find its pages too.
    ///
    /// A salt separates what must not be shared though the tokens are equal: models, adapters, images, users. Tokens are
    /// compared, never hashes alone.
    pub fn match_prefix(&mut self, tokens: &[u32], salt: u64) -> SeqId {
        let mut found = Sequence { known: Some(Known { salt, tail: Vec::new() }), ..Sequence::default() };
        let most = tokens.len().saturating_sub(1) / self.page_size;
        let mut pages = Vec::new();
        let mut parent = Parent::Salt(salt);
        for tokens in tokens.chunks_exact(self.page_size).take(most) {
            let Some(page) = self.store.index().find(parent, tokens) else { break };
            pages.push(page);
            parent = Parent::Page(page);
        }
        found.pages = PageList::new(pages);
        self.hits += found.pages.len() as u64;
        self.misses += (most - found.pages.len()) as u64;
        found.pages.iter().for_each(|page| self.store.retain(*page));
        found.len = found.pages.len() * self.page_size;
        self.insert_as(found)
    }

    /// Keeps the first reserved tokens of each sequence, as many as are given here, and drops the rest of its reservation.
    ///
    /// The full pages of a sequence from [`SeqTable::match_prefix`] (or a fork of one), all of whose tokens were committed
    /// this way, are from now on found by their tokens. Where a page with the same tokens before and in it is known, that
    /// page takes the place of the sequence's own, so that equal prompts are held once; both hold the same up to rounding.
    /// For other sequences this is [`SeqTable::commit`]. Tokens that are reserved and not committed are never shared.
    ///
    /// # Errors
    ///
    /// As [`SeqTable::commit`].
    pub fn commit_tokens(&mut self, accepted: &[(SeqId, &[u32])]) -> Result<()> {
        let counts: Vec<(SeqId, usize)> = accepted.iter().map(|(id, tokens)| (*id, tokens.len())).collect();
        self.check_commit(&counts)?;
        for (id, tokens) in accepted {
            self.commit_one(*id, tokens.len(), Some(tokens));
        }
        self.changed();
        Ok(())
    }

    /// The committed tokens of a sequence, if all of them are known.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::UnknownSequence`](crate::ErrorKind::UnknownSequence).
    pub fn tokens(&self, id: SeqId) -> Result<Option<Vec<u32>>> {
        let sequence = self.sequence(id)?;
        let Some(known) = &sequence.known else { return Ok(None) };
        let mut tokens = Vec::with_capacity(sequence.len);
        for page in &sequence.pages[..(sequence.len - known.tail.len()) / self.page_size] {
            let Some(of_page) = self.store.index().tokens(*page) else { return Ok(None) };
            tokens.extend_from_slice(of_page);
        }
        tokens.extend_from_slice(&known.tail);
        Ok(Some(tokens))
    }

    /// Keeps the full pages that a sequence has now, as far as they can be found by their tokens, from eviction, also when
    /// the sequence is truncated or removed. A second pin of a sequence takes the place of the first.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::UnknownSequence`](crate::ErrorKind::UnknownSequence).
    pub fn pin(&mut self, id: SeqId) -> Result<()> {
        let sequence = self.sequence(id)?;
        let full = &sequence.pages[..sequence.len / self.page_size - sequence.freed];
        let pages: Vec<u32> = full.iter().copied().take_while(|page| self.store.index().contains(*page)).collect();
        pages.iter().for_each(|page| self.store.retain(*page));
        for page in self.pins.insert(id, pages).into_iter().flatten() {
            self.store.release(page);
        }
        Ok(())
    }

    /// Gives up a pin. `id` is that of the sequence, which may have been removed since.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::UnknownSequence`](crate::ErrorKind::UnknownSequence) where it has no pin.
    pub fn unpin(&mut self, id: SeqId) -> Result<()> {
        let pages = self.pins.remove(&id).ok_or_else(|| id.unknown())?;
        pages.into_iter().for_each(|page| self.store.release(page));
        Ok(())
    }

    /// Slabs from the first to the last with a page that is held or kept.
    pub(crate) fn slabs_used(&self) -> usize {
        self.store.pages.slabs_used(false)
    }

    /// Evicts what is kept behind the last slab with a page that is held. Returns the slabs that are left.
    pub(crate) fn vacate_slabs(&mut self) -> usize {
        self.store.vacate_slabs()
    }

    /// Frees all pages that are kept for their content and held by no one. They do not count as evictions.
    pub fn drop_kept(&mut self) {
        self.store.drop_kept();
    }
}

#[cfg(test)]
#[path = "tests/sharing.rs"]
mod tests;
