//! Sequences that share pages, and how much of the cache they may take: what [`SeqTable`](super::SeqTable) does, on a
//! cache with memory.

#[cfg(doc)]
use super::Pages;
use super::{PagedKvCache, SavedSequence, SeqId, SequenceOptions};
#[cfg(doc)]
use crate::error::ErrorKind;
use crate::error::Result;

impl PagedKvCache {
    /// Adds an empty sequence that will share no prefix, as [`PagedKvCache::insert`] does, for attention that sees less than all
    /// of it. A `Decode` that sees more is refused such a sequence. It shares by forks.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for a window of 0, or first tokens without a window.
    pub fn insert_with(&mut self, options: SequenceOptions) -> Result<SeqId> {
        self.table.insert_with(options)
    }

    /// The same of options that are known to be good.
    pub(crate) fn insert_seeing(&mut self, options: SequenceOptions) -> SeqId {
        self.table.insert_seeing(options)
    }

    /// As [`SeqTable::insert_saved`](super::SeqTable).
    pub(super) fn insert_saved(&mut self, saved: &SavedSequence) -> SeqId {
        self.table.insert_saved(saved)
    }

    /// As [`SeqTable::see`](super::SeqTable).
    pub(crate) fn see(&mut self, id: SeqId, seen: SequenceOptions) -> Result<()> {
        self.table.see(id, seen)
    }

    /// As [`SeqTable::take_back`](super::SeqTable).
    pub(crate) fn take_back(&mut self, id: SeqId, fork: SeqId) -> Result<()> {
        self.table.take_back(id, fork)?;
        self.forget_losses();
        Ok(())
    }

    /// As [`SeqTable::committed_at`](super::SeqTable).
    pub(crate) fn committed_at(&self, id: SeqId) -> Result<u64> {
        self.table.committed_at(id)
    }

    /// As [`SeqTable::pages_held`](super::SeqTable).
    pub(crate) fn pages_held(&self, seen: SequenceOptions, len: usize, tokens: usize) -> usize {
        self.table.pages_held(seen, len, tokens)
    }

    /// As [`SeqTable::frees_with`](super::SeqTable).
    pub(crate) fn frees_with(&self, id: SeqId, n: usize) -> Result<bool> {
        self.table.frees_with(id, n)
    }

    /// As [`SeqTable::discard`](super::SeqTable).
    pub(crate) fn discard(&mut self, id: SeqId, len: usize) -> Result<()> {
        self.table.discard(id, len)?;
        self.forget_losses();
        Ok(())
    }

    /// A new sequence of the same committed tokens, for parallel samples and beams. It shares all pages and copies none;
    /// the first of them to add tokens to a shared, partly filled page gets a copy of that page, in
    /// [`PagedKvCache::reserve`]. Reserved tokens are not shared. O(pages), on the host alone.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::UnknownSequence`].
    pub fn fork(&mut self, id: SeqId) -> Result<SeqId> {
        self.table.fork(id)
    }

    /// A new sequence that holds the longest prefix of `tokens` that is in the cache: whole pages, committed before with
    /// the same `salt` by a sequence made here, in use or kept since. At least the last of `tokens` is left to compute,
    /// beginning at [`PagedKvCache::len`]. As long as it is committed by [`PagedKvCache::commit_tokens`], later calls find
    /// its pages too.
    ///
    /// A salt separates what must not be shared though the tokens are equal: models, adapters, images, users. Tokens are
    /// compared, never hashes alone.
    pub fn match_prefix(&mut self, tokens: &[u32], salt: u64) -> SeqId {
        let id = self.table.match_prefix(tokens, salt);
        self.cut_to_usable(id);
        id
    }

    /// Keeps the first reserved tokens of each sequence, as many as are given here, and gives back the rest of its
    /// reservation.
    ///
    /// The full pages of a sequence from [`PagedKvCache::match_prefix`] (or a fork of one), all of whose tokens were
    /// committed this way, are from now on found by their tokens. Where a page with the same tokens before and in it is
    /// known, that page takes the place of the sequence's own, so that equal prompts are held once; both hold the same up
    /// to rounding. For other sequences this is [`PagedKvCache::commit`]. Tokens that are reserved and not committed, drafts,
    /// are never shared. Whatever wrote the tokens must be recorded by now.
    ///
    /// # Errors
    ///
    /// As [`PagedKvCache::commit`].
    pub fn commit_tokens(&mut self, accepted: &[(SeqId, &[u32])]) -> Result<()> {
        if accepted.iter().any(|(_, tokens)| !tokens.is_empty()) {
            self.expect_written()?;
        }
        let before = self.open_pages(accepted);
        self.table.commit_tokens(accepted)?;
        self.hand_places_on(accepted, before);
        self.forget_losses();
        Ok(())
    }

    /// The committed tokens of a sequence, if all of them are known.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::UnknownSequence`].
    pub fn tokens(&self, id: SeqId) -> Result<Option<Vec<u32>>> {
        self.table.tokens(id)
    }

    /// Keeps the full pages that a sequence has now, as far as they can be found by their tokens, from eviction, also when
    /// the sequence is truncated or removed. A second pin of a sequence takes the place of the first.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::UnknownSequence`].
    pub fn pin(&mut self, id: SeqId) -> Result<()> {
        self.table.pin(id)
    }

    /// Gives up a pin. `id` is that of the sequence, which may have been removed since.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::UnknownSequence`] where it has no pin.
    pub fn unpin(&mut self, id: SeqId) -> Result<()> {
        self.table.unpin(id)
    }

    /// Frees all pages that are kept for their content and held by no one.
    pub fn drop_kept(&mut self) {
        self.table.drop_kept();
    }

    /// Gives back the memory of slabs that no sequence and no pin needs, behind the last that one does; what is kept there
    /// is evicted. Returns the bytes given back. They are allocated again when they are needed. Pages do not move, so one
    /// that is held may keep its slab and those before it; a cache of one buffer has nothing to give.
    ///
    /// # Errors
    ///
    /// Those of the device.
    pub fn shrink(&mut self) -> Result<u64> {
        let slabs = self.table.vacate_slabs();
        self.slabs.shrink(&self.gpu, slabs)
    }

    /// Lets sequences, pins and kept pages take at most `bytes` of the pools together, in whole pages; what is kept beyond
    /// that is evicted at once, and later calls fail as they would in a smaller cache. The pools stay as they are: what is
    /// allocated is decided by [`Pages`], before, with [`Pages::within`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::CacheFull`] where more pages are held.
    pub fn set_byte_budget(&mut self, bytes: u64) -> Result<()> {
        let pages = bytes / self.page_bytes();
        self.table.set_page_limit(usize::try_from(pages).unwrap_or(usize::MAX))
    }
}
