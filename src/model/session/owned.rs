//! Sequences that a call makes for itself.

use super::Session;
use crate::cache::SeqId;
use crate::error::Result;
use std::future::poll_fn;
use std::task::Poll;

/// Sequences that are removed when this is dropped: at the end of the call that made them, after an error, and where
/// the call's future is dropped half way.
pub(crate) struct Owned<'a> {
    pub(crate) session: &'a mut Session,
    ids: Vec<SeqId>,
}

impl<'a> Owned<'a> {
    pub(crate) fn new(session: &'a mut Session) -> Self {
        // What an earlier call left half done must not be forked.
        session.roll_back();
        Owned { session, ids: Vec::new() }
    }

    pub(crate) fn insert(&mut self) -> SeqId {
        let id = self.session.insert();
        self.ids.push(id);
        id
    }

    pub(crate) fn fork(&mut self, id: SeqId) -> Result<SeqId> {
        let fork = self.session.fork(id)?;
        self.ids.push(fork);
        Ok(fork)
    }

    /// Removes one of these sequences early.
    pub(crate) fn remove(&mut self, id: SeqId) -> Result<()> {
        self.ids.retain(|own| *own != id);
        self.session.remove(id)
    }
}

impl Drop for Owned<'_> {
    fn drop(&mut self) {
        for id in self.ids.drain(..) {
            let removed = self.session.remove(id);
            debug_assert!(removed.is_ok(), "sequence {id} was this call's own");
        }
    }
}

/// Lets whoever waits do something else once, such as giving up: outside browsers a step never does, it waits for the
/// device itself.
pub(crate) async fn pause() {
    let mut paused = false;
    poll_fn(|context| {
        if std::mem::replace(&mut paused, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
