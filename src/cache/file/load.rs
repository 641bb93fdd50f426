//! Loading saved sequences into new ones: all of a file, or nothing. The file: `format.rs`.

use super::format::{RowBlock, SavedInfo, SavedSequence, SUM_BYTES};
use super::input::Input;
use super::page_rows::{Direction, PageRows};
use crate::cache::{PagedKvCache, SeqId};
use crate::error::{bytes_text, ErrorKind, Result, SavedFault};
use crate::io::Progress;
use crate::kv::turns::TokenShare;
use std::fmt::Debug;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// A sequence that was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadedSequence {
    /// The new sequence.
    pub id: SeqId,
    /// The tokens that it was saved with. Those past the sequence's length are not in the cache: feed them next.
    pub tokens: Vec<u32>,
}

impl PagedKvCache {
    /// Adds the sequences of a saved cache, of whatever page size, in the order in which they were saved. What follows is as
    /// if they had never been away, bit for bit where the split of the work is the same
    /// ([`SplitPolicy::FixedTokens`](crate::SplitPolicy), or the planner's choice on the same device).
    ///
    /// One block of the file passes through the host at a time. The reader should be at its best with reads of 1 MiB; it is
    /// read to its end. Every block is checked before it reaches the device. A load that fails, or is dropped, leaves no
    /// sequence and no page taken; plans made before it are stale all the same. Kept pages are evicted where no others are
    /// free, but only if they suffice; what a load has evicted before it fails in its blocks stays evicted.
    ///
    /// Windowed sequences are windowed again. One whose window has freed pages can be loaded where pages are as large as those
    /// it was saved from, or smaller: larger ones would begin before the rows that there are.
    ///
    /// A checksum is no signature: load files that you or your user wrote.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Saved`] for a file that is foreign, newer, truncated, damaged, longer than
    /// it should be, or of another layout, dtype, rotation, number of layers or fingerprint, or of smaller pages than a
    /// window's gap has here;
    /// [`ErrorKind::CacheFull`] with the pages of all its sequences and those to be had, kept
    /// ones counted as free; [`ErrorKind::Io`]; those of the device.
    pub async fn load(
        &mut self,
        fingerprint: &[u8],
        reader: impl Read,
        progress: impl FnMut(Progress),
    ) -> Result<Vec<LoadedSequence>> {
        self.load_from(fingerprint, Input::new(reader, ""), None, progress).await
    }

    /// [`PagedKvCache::load`] from a file, which errors then name.
    ///
    /// # Errors
    ///
    /// As [`PagedKvCache::load`].
    pub async fn load_file(
        &mut self,
        fingerprint: &[u8],
        path: impl AsRef<Path>,
        progress: impl FnMut(Progress),
    ) -> Result<Vec<LoadedSequence>> {
        let path = path.as_ref().display().to_string();
        let file = File::open(&path).map_err(|e| ErrorKind::io(&path, e))?;
        self.load_from(fingerprint, Input::new(file, &path), None, progress).await
    }

    /// [`PagedKvCache::load_file`] into the pages of sequences that another rank's cache has for them.
    #[cfg(feature = "model")]
    pub(crate) async fn load_file_into(&mut self, ids: &[SeqId], fingerprint: &[u8], path: &str) -> Result<()> {
        let file = File::open(path).map_err(|e| ErrorKind::io(path, e))?;
        self.load_from(fingerprint, Input::new(file, path), Some(ids), |_| {}).await.map(drop)
    }

    /// `into`: the sequences, if they are there, without their rows.
    async fn load_from<R: Read>(
        &mut self,
        fingerprint: &[u8],
        mut input: Input<'_, R>,
        into: Option<&[SeqId]>,
        mut progress: impl FnMut(Progress),
    ) -> Result<Vec<LoadedSequence>> {
        let (info, seed) = SavedInfo::read(&mut input)?;
        self.expect_same(&info, fingerprint).map_err(|fault| input.fault(fault))?;
        let mut done =
            Progress { bytes: input.at, total_bytes: input.at.saturating_add(info.blocks_bytes().unwrap_or(u64::MAX)) };
        progress(done);

        let mut new = NewSequences { cache: self, ids: Vec::new(), own: into.is_none() };
        match into {
            Some(ids) => new.take(ids, &info).map_err(|fault| input.fault(fault))?,
            None => new.reserve(&info)?,
        }
        let mut writer = RowWriter::new(new.cache, &info)?;
        let mut bytes = vec![0; writer.rows.most_bytes() as usize + SUM_BYTES];
        for (index, block) in info.blocks().enumerate() {
            let bytes = &mut bytes[..block.tokens * info.row_bytes() + SUM_BYTES];
            let rows = input.block(&block, bytes, seed.wrapping_add(index as u64))?;
            writer.write(new.cache, &new.ids, &block, rows).await?;
            done.bytes = input.at;
            progress(done);
        }
        input.end()?;
        // What the device refused or lost comes to light here, before anything is kept.
        new.cache.gpu.finished().await?;
        let ids = new.commit(&info)?;
        let tokens = info.sequences.into_iter().map(|s| s.tokens);
        Ok(ids.into_iter().zip(tokens).map(|(id, tokens)| LoadedSequence { id, tokens }).collect())
    }

    /// Whether rows of that file are rows of this cache.
    fn expect_same(&self, info: &SavedInfo, fingerprint: &[u8]) -> Result<(), SavedFault> {
        same("layout", &info.heads, &self.heads)?;
        same("dtype", &info.dtype, &self.dtype)?;
        same("layer count", &info.layers, &self.pages.layers)?;
        same("rotation", &info.rotation, &self.append.rotation())?;
        same("number of frequencies", &info.inv_freq.len(), &self.inv_freq.len())?;
        for (i, (file, here)) in info.inv_freq.iter().zip(&self.inv_freq).enumerate() {
            if file.to_bits() != here.to_bits() {
                let text = |f: &f32| format!("{f} at {i}");
                return Err(SavedFault::Other { name: "frequency", file: text(file), here: text(here) });
            }
        }
        same("wide channels", &info.wide.as_ref(), &self.wide_channels())?;
        let numbers = |share: Option<TokenShare>| share.map(|share| share.numbers());
        same("part of the tokens (rank, ranks, turn)", &numbers(info.share), &numbers(self.share))?;
        let size = self.pages.size;
        let cut = |s: &&SavedSequence| !s.gap.start.is_multiple_of(size) || !s.gap.end.is_multiple_of(size);
        if let Some(SavedSequence { gap, .. }) = info.sequences.iter().find(cut) {
            let file = format!("{}, and a window has freed the tokens {gap:?}", info.page_size);
            return Err(SavedFault::Other { name: "page size", file, here: size.to_string() });
        }
        if info.fingerprint != fingerprint {
            let (file, here) = (bytes_text(&info.fingerprint), bytes_text(fingerprint));
            return Err(SavedFault::Other { name: "fingerprint", file, here });
        }
        Ok(())
    }
}

fn same<T: PartialEq + Debug>(name: &'static str, file: &T, here: &T) -> Result<(), SavedFault> {
    match file == here {
        true => Ok(()),
        false => Err(SavedFault::Other { name, file: format!("{file:?}"), here: format!("{here:?}") }),
    }
}

/// Sequences that go again unless they are committed: after an error, or if the future is dropped.
struct NewSequences<'a> {
    cache: &'a mut PagedKvCache,
    ids: Vec<SeqId>,
    /// Whether they are made here, and not by another rank.
    own: bool,
}

impl NewSequences<'_> {
    /// Room for all of them, in one call: where it is too little, no kept page is evicted either.
    fn reserve(&mut self, info: &SavedInfo) -> Result<()> {
        self.ids = info.sequences.iter().map(|sequence| self.cache.insert_saved(sequence)).collect();
        let lengths = info.sequences.iter().map(|sequence| sequence.len);
        let wanted: Vec<(SeqId, usize)> = self.ids.iter().copied().zip(lengths).filter(|(_, len)| *len > 0).collect();
        self.cache.reserve_at_once(&wanted)
    }

    /// Sequences that are there, which must be those of the file.
    fn take(&mut self, ids: &[SeqId], info: &SavedInfo) -> Result<(), SavedFault> {
        same("number of sequences", &info.sequences.len(), &ids.len())?;
        for (id, sequence) in ids.iter().zip(&info.sequences) {
            let there = self.cache.table.to_save(*id).unwrap_or_default();
            let numbers = |s: &SavedSequence| (s.len, s.window, s.gap.clone());
            same("sequence", &numbers(sequence), &numbers(&there))?;
        }
        self.ids = ids.to_vec();
        Ok(())
    }

    fn commit(&mut self, info: &SavedInfo) -> Result<Vec<SeqId>> {
        if !self.own {
            return Ok(std::mem::take(&mut self.ids));
        }
        for (id, sequence) in self.ids.iter().zip(&info.sequences) {
            self.cache.commit(&[*id], sequence.len)?;
        }
        Ok(std::mem::take(&mut self.ids))
    }
}

impl Drop for NewSequences<'_> {
    fn drop(&mut self) {
        for id in self.ids.drain(..).filter(|_| self.own) {
            let removed = self.cache.remove(id);
            debug_assert!(removed.is_ok(), "sequence {id} was this load's own");
        }
    }
}

/// Rows on their way into pages: while the device moves a block, the host reads the next.
struct RowWriter {
    rows: PageRows,
    /// The sequence whose pages `rows` has, and whether they are those of layers with pools of their own.
    sequence: Option<(usize, bool)>,
}

impl RowWriter {
    fn new(cache: &PagedKvCache, info: &SavedInfo) -> Result<RowWriter> {
        let rows = PageRows::new(cache, Direction::ToPages, info.block_tokens, info.most_rows())?;
        Ok(RowWriter { rows, sequence: None })
    }

    async fn write(&mut self, cache: &PagedKvCache, ids: &[SeqId], block: &RowBlock, bytes: &[u8]) -> Result<()> {
        // wgpu keeps a copy of what is written until the device has it: no more than one block at a time.
        cache.gpu.finished().await?;
        let now = (block.sequence, cache.is_window_layer(block.layer));
        if self.sequence != Some(now) {
            let pages = cache.table.page_table(ids[block.sequence])?;
            self.rows.sequence(&cache.gpu, &cache.pages_in(block.layer, pages, true))?;
            self.sequence = Some(now);
        }
        self.rows.write(&cache.gpu, &cache.layer(block.layer)?, block, bytes)
    }
}
