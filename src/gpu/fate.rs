//! What is known of a buffer's content: whether commands that were to write it are lost.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Of a buffer whose content goes from one call to another.
#[derive(Debug)]
pub(super) struct Fate {
    /// The number of the last loss of a batch that was to write it, counted from 1; 0 if none is lost, or it has been wholly
    /// written since.
    loss: AtomicU64,
    /// The last batch that it is listed in.
    batch: AtomicU64,
    /// The last batch in which an app's buffer was found not to be destroyed.
    asked: AtomicU64,
    /// Error scopes of sent batches that write it and have not answered: only in browsers is it ever more than 0.
    unanswered: AtomicU32,
}

impl Default for Fate {
    fn default() -> Self {
        let never = || AtomicU64::new(u64::MAX);
        Fate { loss: AtomicU64::new(0), batch: never(), asked: never(), unanswered: AtomicU32::new(0) }
    }
}

impl Fate {
    pub(super) fn loss(&self) -> u64 {
        self.loss.load(Ordering::Acquire)
    }

    pub(super) fn set_loss(&self, number: u64) {
        self.loss.store(number, Ordering::Release);
    }

    /// It was wholly written after this loss, but not after one that came since.
    pub(super) fn renew_after(&self, loss: u64) {
        let _ = self.loss.compare_exchange(loss, 0, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Whether the batch is to write it.
    pub(super) fn is_in(&self, batch: u64) -> bool {
        self.batch.load(Ordering::Relaxed) == batch
    }

    /// Takes down that the batch writes it. Whether that is new.
    pub(super) fn enter(&self, batch: u64) -> bool {
        self.batch.swap(batch, Ordering::Relaxed) != batch
    }

    pub(super) fn was_asked(&self, batch: u64) -> bool {
        self.asked.load(Ordering::Relaxed) == batch
    }

    pub(super) fn note_asked(&self, batch: u64) {
        self.asked.store(batch, Ordering::Relaxed);
    }

    pub(super) fn is_unanswered(&self) -> bool {
        self.unanswered.load(Ordering::Acquire) > 0
    }

    pub(super) fn await_answer(&self) {
        self.unanswered.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn answered(&self) {
        self.unanswered.fetch_sub(1, Ordering::AcqRel);
    }
}
