//! Sequences of a session that share their part of the cache.

use super::Session;
use crate::cache::SeqId;
use crate::error::{ErrorKind, Result};

impl Session {
    /// A new sequence of the same tokens, for parallel samples and beams. It shares the cache of the first and computes
    /// nothing; one page is copied when either gets its next token, unless the last page is full.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::UnknownSequence`](crate::ErrorKind::UnknownSequence).
    pub fn fork(&mut self, id: SeqId) -> Result<SeqId> {
        self.roll_back();
        self.cache.fork(id)
    }

    /// A new sequence that holds the longest prefix of `tokens` that is cached, in whole pages, from sequences made here
    /// with the same `salt`, whether they are in use or removed. At least the last token is left: the caller feeds
    /// `tokens[session.len(id)..]`. A salt separates what must not be shared though tokens are equal, such as users.
    ///
    /// Such a sequence keeps all of its pages, whatever the session's window: others may come for them.
    ///
    /// Logits may differ in their last bits from those of a prompt that is fed whole, as they do for a prompt that is cut
    /// into steps at other places.
    pub fn match_prefix(&mut self, tokens: &[u32], salt: u64) -> SeqId {
        self.cache.match_prefix(tokens, salt)
    }

    /// A new sequence of `len` tokens that no step has computed: its rows are what the pages hold, perhaps those of removed
    /// sequences. For benchmarks of long contexts, which write the pages themselves
    /// ([`KvView::wgpu_buffers`](crate::kv::KvView::wgpu_buffers)).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for 0 tokens or more than [`Session::max_positions`],
    /// [`ErrorKind::CacheFull`](crate::ErrorKind::CacheFull).
    #[doc(hidden)]
    pub fn insert_uncomputed(&mut self, len: usize) -> Result<SeqId> {
        self.roll_back();
        let most = self.max_positions();
        if len > most {
            return Err(ErrorKind::argument("len", format!("{len}, {} is {most}", self.what_is_most())));
        }
        let id = self.insert();
        let filled = self.cache.reserve_at_once(&[(id, len)]).and_then(|()| self.cache.commit(&[id], len));
        if let Err(error) = filled {
            self.cache.remove(id)?;
            return Err(error);
        }
        Ok(id)
    }

    /// Keeps the full pages that a sequence from [`Session::match_prefix`] has now from eviction, also after its removal:
    /// a system prompt. See [`PagedKvCache::pin`](crate::PagedKvCache::pin).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::UnknownSequence`](crate::ErrorKind::UnknownSequence).
    pub fn pin(&mut self, id: SeqId) -> Result<()> {
        self.cache.pin(id)
    }

    /// Gives up a pin.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::UnknownSequence`](crate::ErrorKind::UnknownSequence) where there is none.
    pub fn unpin(&mut self, id: SeqId) -> Result<()> {
        self.cache.unpin(id)
    }

    /// Lets the cache take at most `bytes` of what it has. See
    /// [`PagedKvCache::set_byte_budget`](crate::PagedKvCache::set_byte_budget).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::CacheFull`](crate::ErrorKind::CacheFull) where more is in use.
    pub fn set_byte_budget(&mut self, bytes: u64) -> Result<()> {
        self.cache.set_byte_budget(bytes)
    }
}
