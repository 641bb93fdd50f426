//! A table's change counter, which views of a cache see as it goes on. Pure.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// What no table's generation ever is.
const NEVER: u64 = u64::MAX;

/// The counter. A clone counts by itself, from the same number on.
#[derive(Debug)]
pub(super) struct Generation(Arc<AtomicU64>);

impl Generation {
    pub(super) fn starting_at(number: u64) -> Self {
        Generation(Arc::new(AtomicU64::new(number)))
    }

    pub(super) fn now(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// After every change.
    pub(super) fn rise(&mut self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    /// For whoever is to see it rise.
    pub(super) fn live(&self) -> Arc<AtomicU64> {
        self.0.clone()
    }

    /// Whoever has seen it so far sees from now on what no plan is of.
    pub(super) fn disown(&mut self) {
        let fresh = Self::starting_at(self.now());
        std::mem::replace(self, fresh).0.store(NEVER, Ordering::Release);
    }
}

impl Clone for Generation {
    fn clone(&self) -> Self {
        Self::starting_at(self.now())
    }
}
