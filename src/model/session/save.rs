//! Sessions between runs: the sequences of a session in a file, with the fingerprint of its model.

use super::Session;
use crate::cache::{LoadedSequence, Save, SaveSequence};
use crate::error::{Error, ErrorKind, Result, SavedFault};
use crate::io::Progress;
use std::io::{Read, Write};
use std::path::Path;

impl Session {
    /// Writes sequences to `writer`, as [`PagedKvCache::save`](crate::PagedKvCache::save), for sessions of the same
    /// [`Decoder`](crate::Decoder), whatever their page size. [`Session::load`] gives the tokens of a sequence back: those
    /// from [`Session::match_prefix`], and forks of them, are known here and need not be given. Give all tokens of others,
    /// and of each sequence those not fed yet, as the last one drawn, after all that were. A
    /// sequence that is longer than its window is saved with what it holds, for sessions whose pages are not larger.
    ///
    /// # Errors
    ///
    /// As there.
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
    /// [`PagedKvCache::save_file`](crate::PagedKvCache::save_file).
    ///
    /// # Errors
    ///
    /// As there.
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
    /// # Errors
    ///
    /// As there; a file of another model, of the same in other dtypes or of a session with another window, is
    /// [`SavedFault::Other`](crate::SavedFault).
    pub async fn load(&mut self, reader: impl Read, progress: impl FnMut(Progress)) -> Result<Vec<LoadedSequence>> {
        let fingerprint = self.fingerprint();
        let loaded = self.cache_mut().load(&fingerprint, reader, progress).await.map_err(of_model)?;
        self.see_window(loaded)
    }

    /// [`Session::load`] from a file, which errors then name.
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn load_file(
        &mut self,
        path: impl AsRef<Path>,
        progress: impl FnMut(Progress),
    ) -> Result<Vec<LoadedSequence>> {
        let fingerprint = self.fingerprint();
        let loaded = self.cache_mut().load_file(&fingerprint, path, progress).await.map_err(of_model)?;
        self.see_window(loaded)
    }

    /// Loaded sequences as this session's own: with its window.
    fn see_window(&mut self, loaded: Vec<LoadedSequence>) -> Result<Vec<LoadedSequence>> {
        let seen = self.seen();
        if seen.window.is_some() {
            loaded.iter().try_for_each(|sequence| self.cache_mut().see(sequence.id, seen))?;
        }
        Ok(loaded)
    }

    /// The model, and what its tokens see: cached states follow from both.
    fn fingerprint(&self) -> Vec<u8> {
        let mut bytes = self.decoder().fingerprint().to_le_bytes().to_vec();
        if let Some((window, keep_first)) = self.window() {
            bytes.extend([window, keep_first].map(|tokens| (tokens as u64).to_le_bytes()).as_flattened());
        }
        bytes
    }
}

/// The error of a load, in words of a session: its callers know no fingerprint.
fn of_model(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Saved { path, fault: SavedFault::Other { name: "fingerprint", file, here } } => {
            let name = "model (weights, dtype and config) or window";
            let fault = SavedFault::Other { name, file: file.clone(), here: here.clone() };
            ErrorKind::Saved { path: path.clone(), fault }.into()
        }
        _ => error,
    }
}
