//! Memory that passes of an app's own may refer to: which latten reuses only when it is told that they are submitted.

use super::{Buffer, Gpu};
use std::sync::atomic::Ordering;

impl Gpu {
    /// Says that every pass of the app's own into which something was encoded so far, on whichever thread, is submitted or
    /// dropped. latten cannot see that. Until it is told, it reuses no memory that such a pass refers to: a
    /// [`Plan`](crate::Plan) or [`DecodeOutput`](crate::DecodeOutput) that is dropped gives its memory back to the device, and
    /// the next one allocates. So a loop that encodes into passes of its own calls this after each of its submits.
    ///
    /// Called too early it lets a later plan or result overwrite what the pass reads: wrong numbers, and nothing worse.
    pub fn passes_submitted(&self) {
        let _no_pass_is_noted_meanwhile = self.lock(&self.inner.commands.pending);
        self.inner.commands.passes_submitted.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether a pass of an app's own may refer to this buffer and not be submitted yet.
    pub(crate) fn is_lent(&self, buffer: &Buffer) -> bool {
        self.is_out(buffer.lent())
    }

    /// [`Gpu::is_lent`] of a buffer that was lent in this round.
    pub(super) fn is_out(&self, round: u64) -> bool {
        round > self.inner.commands.passes_submitted.load(Ordering::Relaxed)
    }
}
