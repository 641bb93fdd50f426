//! A session on another device, when its own was lost.

use super::Session;
use crate::cache::EmptiedSequence;
use crate::error::{ErrorKind, Result};
use crate::model::decoder::Decoder;

impl Session {
    /// Goes on with the same model on another device, when that of the session was lost: `decoder` is the model loaded
    /// there. Sequences keep their ids and lose their tokens ([`PagedKvCache::rebuild`](crate::PagedKvCache::rebuild));
    /// those that had any are returned: feed them again, or [`Session::load`] what was saved.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for a decoder of another fingerprint, [`ErrorKind::Unsupported`] for a session of several ranks, [`ErrorKind::TooLarge`],
    /// [`ErrorKind::OutOfMemory`]; then the session is as it was.
    pub fn rebuild(&mut self, decoder: &Decoder) -> Result<Vec<EmptiedSequence>> {
        self.expect_alone("Session::rebuild")?;
        let (got, want) = (decoder.fingerprint(), self.decoder().fingerprint());
        if got != want {
            let why = format!("has fingerprint {got:016x}, the session's model has {want:016x}");
            return Err(ErrorKind::argument("decoder", why));
        }
        self.roll_back();
        self.rebuild_on(decoder)
    }
}
