//! Sessions between runs: the sequences of a session in a file, with the fingerprint of its model.

use super::session::Session;
use crate::cache::{LoadedSequence, Progress, Save, SaveSequence};
use crate::error::Result;
use std::io::{Read, Write};
use std::path::Path;

impl Session {
    /// Writes sequences to `writer`, as [`PagedKvCache::save`](crate::PagedKvCache::save), for sessions of the same
    /// [`Decoder`](crate::Decoder), whatever their page size. [`Session::load`] gives the tokens of a sequence back: those
    /// from [`Session::match_prefix`], and forks of them, are known here and need not be given. Give all tokens of others,
    /// and of each sequence those not fed yet, as the last one drawn, after all that were.
    ///
    /// Errors: as there.
    pub async fn save(
        &mut self,
        sequences: &[SaveSequence<'_>],
        writer: impl Write,
        progress: impl FnMut(Progress),
    ) -> Result<()> {
        self.roll_back();
        let fingerprint = self.fingerprint();
        self.cache().save(Save { sequences, fingerprint: &fingerprint }, writer, progress).await
    }

    /// [`Session::save`] to a file, which appears whole or not at all:
    /// [`PagedKvCache::save_file`](crate::PagedKvCache::save_file). Errors: as there.
    pub async fn save_file(
        &mut self,
        sequences: &[SaveSequence<'_>],
        path: impl AsRef<Path>,
        progress: impl FnMut(Progress),
    ) -> Result<()> {
        self.roll_back();
        let fingerprint = self.fingerprint();
        self.cache().save_file(Save { sequences, fingerprint: &fingerprint }, path, progress).await
    }

    /// Adds the sequences of a saved session, or none if anything is wrong:
    /// [`PagedKvCache::load`](crate::PagedKvCache::load). They go on bit for bit as if they had never been away. For each,
    /// feed what its tokens have past [`Session::len`], and then anything new.
    ///
    /// Errors: as there; a file of another model, or of the same in other dtypes, is
    /// [`SavedFault::Other`](crate::SavedFault).
    pub async fn load(&mut self, reader: impl Read, progress: impl FnMut(Progress)) -> Result<Vec<LoadedSequence>> {
        let fingerprint = self.fingerprint();
        self.cache_mut().load(&fingerprint, reader, progress).await
    }

    /// [`Session::load`] from a file, which errors then name. Errors: as there.
    pub async fn load_file(
        &mut self,
        path: impl AsRef<Path>,
        progress: impl FnMut(Progress),
    ) -> Result<Vec<LoadedSequence>> {
        let fingerprint = self.fingerprint();
        self.cache_mut().load_file(&fingerprint, path, progress).await
    }

    fn fingerprint(&self) -> [u8; 8] {
        self.decoder().fingerprint().to_le_bytes()
    }
}
