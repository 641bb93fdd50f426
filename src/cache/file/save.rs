//! Saving sequences: head and table, then rows, block by block through memory of a fixed size. The file: `format.rs`.

use super::format::{block_tokens, RowBlock, SavedInfo, SavedSequence};
use super::page_rows::{Direction, PageRows, Unsorted};
use super::target::target;
use crate::cache::{PagedKvCache, SeqId};
use crate::error::{ErrorKind, Result};
use crate::gpu::{Arrived, HostBuffer, Reading};
use crate::io::temporary::create_beside;
use crate::io::xxh64;
use crate::io::Progress;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A sequence to be saved, and what is known of its tokens.
#[derive(Debug, Clone, Copy)]
pub struct SaveSequence<'a> {
    /// The sequence.
    pub id: SeqId,
    /// Its token ids, to be given back by load; or none: then those that the cache knows, if it knows them all
    /// ([`PagedKvCache::tokens`]), else none. More than the sequence has in the cache are tokens that are yet to be fed, as
    /// the last one drawn.
    pub tokens: &'a [u32],
}

/// What is saved.
#[derive(Debug, Clone, Copy)]
pub struct Save<'a> {
    /// The sequences, in the order in which load returns them. A page that several of them hold is saved with each.
    pub sequences: &'a [SaveSequence<'a>],
    /// What tells this model from others, 64 KiB at most: a hash or name of its weights. Load refuses another.
    pub fingerprint: &'a [u8],
}

/// Bytes of a fingerprint at most.
const MOST_FINGERPRINT: usize = 64 << 10;

impl PagedKvCache {
    /// Writes the committed tokens of sequences to `writer`, with all that [`PagedKvCache::load`] needs to go on bit for bit
    /// where they are. Reserved tokens are not saved.
    ///
    /// Two blocks of 1 MiB (or one row) pass through the host at a time, on the way to `writer` straight from mapped memory;
    /// besides them it takes one block on the device (on software GPUs with small pages one more on the host), and the
    /// tokens. Every block is one call of `write_all`. Submits what is
    /// recorded. Dropping the future stops it and leaves the cache as it was.
    ///
    /// Of a windowed sequence ([`PagedKvCache::insert_with`]) what it holds is saved, however long it has become, and it
    /// is windowed again when it is loaded.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::UnknownSequence`]; [`ErrorKind::Argument`] for tokens that are some, but fewer than the sequence
    /// has, or others than those that the cache knows, and for a fingerprint of more than 64 KiB; [`ErrorKind::Io`] of the
    /// writer; those of the device.
    pub async fn save(&self, what: Save<'_>, writer: impl Write, progress: impl FnMut(Progress)) -> Result<()> {
        self.save_as("", what, writer, progress).await
    }

    /// [`PagedKvCache::save`] to a file, which appears whole or not at all: it is written and synchronised under another
    /// name in the same folder, then renamed over `path`. What fails, or is dropped, leaves `path` as it was and no other
    /// file behind. A link stays, and the file that it leads to is written.
    ///
    /// # Errors
    ///
    /// As [`PagedKvCache::save`]; [`ErrorKind::Io`] too where `path` is a folder, a pipe, a device or a socket, none of which is
    /// replaced: write to those with [`PagedKvCache::save`].
    pub async fn save_file(
        &self,
        what: Save<'_>,
        path: impl AsRef<Path>,
        progress: impl FnMut(Progress),
    ) -> Result<()> {
        let path = target(path.as_ref())?;
        let name = path.display().to_string();
        let mut file = NewFile::create(&path)?;
        self.save_as(&name, what, file.file()?, progress).await?;
        file.finish(&path)
    }

    async fn save_as(
        &self,
        path: &str,
        what: Save<'_>,
        mut writer: impl Write,
        mut progress: impl FnMut(Progress),
    ) -> Result<()> {
        let info = self.saved_info(what)?;
        let (head, seed) = info.encode();
        let blocks_bytes = info.blocks_bytes().unwrap_or(u64::MAX);
        let mut done = Progress { bytes: head.len() as u64, total_bytes: head.len() as u64 + blocks_bytes };
        writer.write_all(&head).map_err(|e| ErrorKind::io(path, e))?;
        progress(done);

        let mut rows = RowReader::new(self, &info, what)?;
        let mut index = 0;
        while let Some((unsorted, arrived)) = rows.next().await? {
            let (written, memory) = arrived.take(|bytes| {
                let bytes = rows.rows.read(unsorted.as_ref(), bytes);
                let sum = xxh64(bytes, seed.wrapping_add(index));
                writer.write_all(bytes).and_then(|()| writer.write_all(&sum.to_le_bytes()))?;
                Ok(bytes.len() as u64 + 8)
            })?;
            rows.free.push(memory);
            done.bytes += written.map_err(|e| ErrorKind::io(path, e))?;
            progress(done);
            index += 1;
        }
        rows.free.drain(..).for_each(|memory| self.gpu.keep(memory));
        writer.flush().map_err(|e| ErrorKind::io(path, e))
    }

    /// Refuses what [`PagedKvCache::save`] refuses before it writes.
    #[cfg(feature = "model")]
    pub(crate) fn check_save(&self, what: Save<'_>) -> Result<()> {
        self.saved_info(what).map(drop)
    }

    /// The head of the file that this makes.
    fn saved_info(&self, what: Save<'_>) -> Result<SavedInfo> {
        let most = MOST_FINGERPRINT;
        if what.fingerprint.len() > most {
            let why = format!("{} bytes, at most {most}", what.fingerprint.len());
            return Err(ErrorKind::argument("fingerprint", why));
        }
        let mut sequences = Vec::new();
        for &SaveSequence { id, tokens } in what.sequences {
            let tokens = self.tokens_to_save(id, self.len(id)?, tokens)?;
            sequences.push(SavedSequence { tokens, ..self.table.to_save(id)? });
        }
        let row_bytes = 16 * self.layout.row_words(self.heads.groups());
        Ok(SavedInfo {
            heads: self.heads,
            dtype: self.dtype,
            rotation: self.append.rotation(),
            inv_freq: self.inv_freq.clone(),
            wide: self.wide_channels().cloned(),
            page_size: self.own_page_size(),
            layers: self.pages.layers,
            fingerprint: what.fingerprint.to_vec(),
            sequences,
            block_tokens: block_tokens(row_bytes),
            share: self.share,
        })
    }

    /// The tokens of a sequence of this length: those given if any are, else those that are known.
    fn tokens_to_save(&self, id: SeqId, len: usize, given: &[u32]) -> Result<Vec<u32>> {
        let known = self.tokens(id)?;
        if given.is_empty() {
            return Ok(known.unwrap_or_default());
        }
        if given.len() < len {
            let why = format!("{} of sequence {id}, which has {len} in the cache", given.len());
            return Err(ErrorKind::argument("tokens", why));
        }
        let pairs = || known.iter().flatten().zip(given);
        if let Some((at, (known, given))) = pairs().enumerate().find(|(_, (known, given))| known != given) {
            let why = format!("{given} at {at}, where sequence {id} has {known} in the cache");
            return Err(ErrorKind::argument("tokens", why));
        }
        Ok(given.to_vec())
    }
}

/// The rows of the sequences, block by block, one ahead of who takes them: while the host writes a block, the device makes
/// the next.
struct RowReader<'a, B> {
    cache: &'a PagedKvCache,
    what: Save<'a>,
    info: &'a SavedInfo,
    blocks: B,
    rows: PageRows,
    /// The sequence whose pages `rows` has, and whether they are those of layers with pools of their own.
    sequence: Option<(usize, bool)>,
    under_way: Option<(Reading, Option<Unsorted>)>,
    /// Memory for the next blocks.
    free: Vec<HostBuffer>,
}

impl<'a> RowReader<'a, ()> {
    #[allow(clippy::new_ret_no_self)] // the iterator's type has no name
    fn new(
        cache: &'a PagedKvCache,
        info: &'a SavedInfo,
        what: Save<'a>,
    ) -> Result<RowReader<'a, impl Iterator<Item = RowBlock> + 'a>> {
        let rows = PageRows::new(cache, Direction::FromPages, info.block_tokens, info.most_rows())?;
        let size = rows.most_bytes();
        let free = vec![cache.gpu.host_buffer(size)?, cache.gpu.host_buffer(size)?];
        let mut reader =
            RowReader { cache, what, info, blocks: info.blocks(), rows, sequence: None, under_way: None, free };
        reader.start()?;
        Ok(reader)
    }
}

impl<B: Iterator<Item = RowBlock>> RowReader<'_, B> {
    /// The next block, as [`PageRows::read`] takes it; None after the last.
    async fn next(&mut self) -> Result<Option<(Option<Unsorted>, Arrived)>> {
        let Some((reading, unsorted)) = self.under_way.take() else { return Ok(None) };
        let arrived = self.cache.gpu.arrived(reading).await?;
        self.start()?;
        Ok(Some((unsorted, arrived)))
    }

    /// Sends the next block on its way, if there is one.
    fn start(&mut self) -> Result<()> {
        let gpu = &self.cache.gpu;
        let Some(block) = self.blocks.next() else { return Ok(()) };
        let memory = match self.free.pop() {
            Some(memory) => memory,
            None => gpu.host_buffer(self.rows.most_bytes())?,
        };
        let now = (block.sequence, self.cache.is_window_layer(block.layer));
        if self.sequence != Some(now) {
            let id = self.what.sequences[block.sequence].id;
            let held = self.cache.table.page_table(id)?;
            let rows = self.info.rows(&self.info.sequences[block.sequence]);
            let pages = rows.div_ceil(self.cache.own_page_size());
            let held = held.get(..pages).unwrap_or(held); // not those of reserved tokens
            self.rows.sequence(gpu, &self.cache.pages_in(block.layer, held, false))?;
            self.sequence = Some(now);
        }
        self.under_way = Some(self.rows.start_read(gpu, &self.cache.layer(block.layer)?, &block, memory)?);
        Ok(())
    }
}

/// A file under a temporary name, removed unless it is finished.
struct NewFile {
    temporary: PathBuf,
    file: Option<File>,
}

impl NewFile {
    fn create(path: &Path) -> Result<NewFile> {
        // Two saves to one path: each has a file of its own, and the last to end stays.
        let (file, temporary) = create_beside(path).map_err(|e| ErrorKind::io(path, e))?;
        Ok(NewFile { temporary, file: Some(file) })
    }

    fn file(&mut self) -> Result<&mut File> {
        self.file.as_mut().ok_or_else(|| ErrorKind::argument("file", "already finished"))
    }

    /// Gives the file its name, with all its bytes on the disk: after a power cut there is the old file or the new one.
    fn finish(mut self, path: &Path) -> Result<()> {
        let named = (|| {
            self.file.take().map_or(Ok(()), |file| file.sync_all())?;
            std::fs::rename(&self.temporary, path)
        })();
        if named.is_ok() {
            self.temporary = PathBuf::new();
        }
        named.map_err(|e| ErrorKind::io(path, e))
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.temporary.as_os_str().is_empty() {
            self.file = None; // an open file cannot be removed everywhere
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}
