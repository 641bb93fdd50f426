//! Sessions with a window: how far they go, and how a call of several steps is undone though its steps have freed
//! pages.

use super::Session;
use crate::cache::SeqId;
use crate::error::Result;

/// Tokens of a sequence with a window at most: f32 tells no more positions apart. (Angles of rotations are rounded to
/// f32, by up to 2^-24 of the angle; at a million tokens the fastest pairs are off by 0.03 radians.)
const MOST_STREAMED: usize = 1 << 24;

/// A sequence before a call.
pub(crate) struct Unfinished {
    pub(crate) id: SeqId,
    pub(crate) len: usize,
    /// Where a window may give pages back between the steps of the call: the sequence as it was.
    pub(crate) fork: Option<SeqId>,
}

impl Session {
    /// Tokens that a sequence may have: the model's `max_position_embeddings`, or 2^24 with a window; and no more than
    /// [`SessionOptions::max_tokens`](super::SessionOptions).
    pub fn max_positions(&self) -> usize {
        let most = self.window().map_or(self.decoder().config().max_positions, |_| MOST_STREAMED);
        most.min(self.options().max_tokens.unwrap_or(most))
    }

    /// What [`Session::max_positions`] is, for errors.
    pub(crate) fn what_is_most(&self) -> &'static str {
        match self.window() {
            _ if self.options().max_tokens == Some(self.max_positions()) => "the session's max_tokens",
            None => "the model's max_position_embeddings",
            Some(_) => "the most that positions tell apart",
        }
    }

    /// What the window is, for errors.
    pub(crate) fn what_is_window(&self) -> &'static str {
        match self.decoder().config().window {
            Some(own) if self.window().is_some_and(|(window, _)| window == own) => "the model's sliding_window",
            _ => "the session's",
        }
    }

    /// Remembers what a call begins with.
    pub(crate) fn begin(&mut self, batch: &[(SeqId, &[u32])]) -> Result<()> {
        let forks = self.frees_between_steps(batch);
        for &(id, _) in batch {
            let len = self.cache.len(id)?;
            let fork = if forks { Some(self.cache.fork(id)?) } else { None };
            self.unfinished.push(Unfinished { id, len, fork });
        }
        Ok(())
    }

    /// Whether a window may give pages back before the call's last step, which cannot fail once it is committed.
    pub(crate) fn frees_between_steps(&self, batch: &[(SeqId, &[u32])]) -> bool {
        let tokens: usize = batch.iter().map(|(_, tokens)| tokens.len()).sum();
        (self.window().is_some() || self.cache.has_window_pools()) && tokens > self.capacity()
    }

    /// A call has ended well.
    pub(crate) fn finish(&mut self) {
        for fork in self.unfinished.drain(..).filter_map(|sequence| sequence.fork) {
            let _ = self.cache.remove(fork); // the call's own, so it is there
        }
    }

    /// Undoes a call that did not end.
    pub(crate) fn roll_back(&mut self) {
        for Unfinished { id, len, fork } in std::mem::take(&mut self.unfinished) {
            let _ = match fork {
                Some(fork) => self.cache.take_back(id, fork), // the call's own, so it is there
                None => self.cache.discard(id, len),          // a sequence that is gone has nothing to undo
            };
        }
    }
}
