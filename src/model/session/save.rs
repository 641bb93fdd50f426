//! Sessions between runs: the sequences of a session in a file, with the fingerprint of its model.

use super::message::RankMessage;
use super::Session;
use crate::cache::{LoadedSequence, Save, SaveSequence, SeqId};
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
        self.expect_alone("Session::save (save_file saves each rank's rows)")?;
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
        let save = Save { sequences, fingerprint: &fingerprint };
        let Some(ranks) = &self.ranks else {
            return self.cache().save_file(save, path, progress).await;
        };
        // What is refused is refused before anyone writes.
        self.cache.check_save(save)?;
        let tokens = sequences.iter().map(|one| match one.tokens {
            [] => Ok(self.cache.tokens(one.id)?.unwrap_or_default()),
            given => Ok(given.to_vec()),
        });
        let tokens = tokens.collect::<Result<_>>()?;
        let ids: Vec<SeqId> = sequences.iter().map(|one| one.id).collect();
        let mirror = self.cache.told(&ids)?;
        ranks.tell(&RankMessage::Save { path: text_of(path.as_ref())?, tokens, mirror })?;
        let saved = self.cache.save_file(save, path, progress).await;
        let others = ranks.outcome(saved.as_ref().err())?;
        saved.and(others)
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
        self.expect_alone("Session::load (load_file loads each rank's rows)")?;
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
        let loaded = self.cache_mut().load_file(&fingerprint, path.as_ref(), progress).await.map_err(of_model)?;
        let ids: Vec<SeqId> = loaded.iter().map(|sequence| sequence.id).collect();
        if let Err(error) = self.load_others(&ids, path.as_ref()) {
            ids.into_iter().for_each(|id| self.cache.remove(id).unwrap_or_default()); // they are there
            return Err(error);
        }
        self.see_window(loaded)
    }

    /// Has the other ranks, if there are any, load what is loaded here.
    fn load_others(&mut self, ids: &[SeqId], path: &Path) -> Result<()> {
        let Some(ranks) = &self.ranks else { return Ok(()) };
        let mirror = self.cache.told(ids)?;
        ranks.tell(&RankMessage::Load { path: text_of(path)?, mirror })?;
        ranks.outcome(None)?
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
    pub(super) fn fingerprint(&self) -> Vec<u8> {
        let mut bytes = self.decoder().fingerprint().to_le_bytes().to_vec();
        if let Some((window, keep_first)) = self.window() {
            bytes.extend([window, keep_first].map(|tokens| (tokens as u64).to_le_bytes()).as_flattened());
        }
        // Rows that no window sees are not in the file: a session that holds all could be cut back to where they are missing.
        bytes.extend(self.cache.has_window_pools().then_some(1));
        bytes
    }
}

/// A path as other ranks are told it.
fn text_of(path: &Path) -> Result<String> {
    let text = path.to_str().map(str::to_string);
    text.ok_or_else(|| {
        ErrorKind::argument("path", format!("{} is no Unicode, as ranks tell each other", path.display()))
    })
}

/// The error of a load, in words of a session: its callers know no fingerprint.
fn of_model(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Saved { path, fault: SavedFault::Other { name: "fingerprint", file, here } } => {
            let name = "model (weights, dtype and config), window or window_pools";
            let fault = SavedFault::Other { name, file: file.clone(), here: here.clone() };
            ErrorKind::Saved { path: path.clone(), fault }.into()
        }
        _ => error,
    }
}
