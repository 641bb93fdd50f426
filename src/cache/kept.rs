//! What a cache does where commands are lost: rows of reserved tokens are not there then, those of committed tokens are.
//!
//! Only reserved tokens are written, and a commit sends what writes them before it counts them; so what is lost with a batch is
//! lost for sequences that have a reservation. The pages' buffers are marked, nothing reads or writes them, and no
//! commit counts a token, until every reservation has been given up.

use super::{PagedKvCache, SeqTable};
use crate::error::Result;
use crate::gpu::Buffer;
use std::sync::atomic::Ordering;

impl PagedKvCache {
    /// Fails unless all that is recorded for the pages is sent, and none of it lost.
    pub(super) fn expect_written(&self) -> Result<()> {
        let gpu = &self.gpu;
        if gpu.is_pending() && self.any_page_buffer(|buffer| gpu.is_recorded(buffer)) {
            gpu.send_recorded()?;
        }
        self.expect_pages_kept()?;
        // A browser may say later that it was lost, when the tokens have been counted.
        if gpu.answers_late() && self.any_page_buffer(Buffer::is_unanswered) {
            self.unsure.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Fails where commands that were to write pages are lost.
    pub(super) fn expect_pages_kept(&self) -> Result<()> {
        match self.has_losses() {
            true => Err(self.gpu.loss("the KV cache".into())),
            false => Ok(()),
        }
    }

    /// Called after every change by which a reservation may go: what was lost concerns nobody once there is none left.
    pub(super) fn forget_losses(&self) {
        let lost = self.has_losses();
        if self.unsure.load(Ordering::Relaxed) {
            // Tokens may have been counted whose rows are lost: only `rebuild` helps then.
            if lost || self.any_page_buffer(Buffer::is_unanswered) {
                return;
            }
            self.unsure.store(false, Ordering::Relaxed);
        }
        if lost && !self.table.has_reservations() {
            self.any_page_buffer(|buffer| {
                buffer.renew();
                false
            });
        }
    }

    fn has_losses(&self) -> bool {
        self.gpu.losses() > 0 && self.any_page_buffer(Buffer::is_lost)
    }

    fn any_page_buffer(&self, is: impl Fn(&Buffer) -> bool) -> bool {
        self.pools().any(|pool| pool.any_buffer(&is))
    }
}

impl SeqTable {
    /// Whether a sequence has tokens that are reserved and not committed.
    fn has_reservations(&self) -> bool {
        self.ids().any(|id| self.reserved(id).is_ok_and(|tokens| tokens > 0))
    }
}
