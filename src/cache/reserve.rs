//! Room for tokens to come: pages of the table, memory for them, and copies of those that are shared.

use super::window_pages::PlacesWanted;
use super::{PagedKvCache, SeqId};
use crate::error::{ErrorKind, Result};

impl PagedKvCache {
    /// Makes room for `n` more tokens in each sequence, beside those reserved already.
    ///
    /// Evicts kept pages where no others are free. Where a sequence shares its last, partly filled page, that page is
    /// copied first, in all layers; the copies of a call are submitted with all that was recorded before. A cache that grows
    /// allocates rather than evicts.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::CacheFull`] with pages needed and to be had, [`ErrorKind::UnknownSequence`],
    /// [`ErrorKind::RepeatedSequence`], [`ErrorKind::Argument`] for 0, those of the device.
    pub fn reserve(&mut self, ids: &[SeqId], n: usize) -> Result<()> {
        let wanted: Vec<(SeqId, usize)> = ids.iter().map(|id| (*id, n)).collect();
        self.reserve_each(&wanted)
    }

    /// [`PagedKvCache::reserve`] with a number of tokens for each sequence.
    ///
    /// # Errors
    ///
    /// As [`PagedKvCache::reserve`].
    pub fn reserve_each(&mut self, wanted: &[(SeqId, usize)]) -> Result<()> {
        self.reserve_as(wanted, false)
    }

    /// [`PagedKvCache::reserve_each`] of tokens that are all committed next, so that layers with a window need no room for those before the
    /// last window.
    pub(crate) fn reserve_at_once(&mut self, wanted: &[(SeqId, usize)]) -> Result<()> {
        self.reserve_as(wanted, true)
    }

    fn reserve_as(&mut self, wanted: &[(SeqId, usize)], at_once: bool) -> Result<()> {
        let copies = self.table.reserve_each(wanted)?;
        let places = PlacesWanted { sequences: wanted, copies: &copies, at_once };
        if let Err(error) = self.reserve_places(places) {
            self.table.undo_reserve(wanted, &copies);
            self.forget_losses();
            return Err(error);
        }
        let made = self.slabs.grow(&self.gpu, self.table.slabs_used());
        let made = made.and_then(|()| self.copy.run(&self.gpu, &self.slabs.layers, &copies));
        // Another thread may have sent the copies, and they may be lost.
        let made = made.and_then(|()| if copies.is_empty() { Ok(()) } else { self.expect_pages_kept() });
        if made.is_err() {
            self.table.undo_reserve(wanted, &copies);
            self.forget_losses();
        } else if let Some(journal) = self.journal.as_mut().filter(|_| !copies.is_empty()) {
            journal.push(copies);
        }
        made
    }

    /// Whether [`PagedKvCache::reserve_each`] would find its pages.
    ///
    /// # Errors
    ///
    /// As [`PagedKvCache::reserve_each`], but for those of the device.
    pub fn check_reserve(&self, wanted: &[(SeqId, usize)]) -> Result<()> {
        let (needed, free) = (self.table.pages_needed(wanted)?, self.table.stats().available());
        match needed > free {
            true => Err(ErrorKind::CacheFull { needed, free }.into()),
            false => Ok(()),
        }
    }
}
