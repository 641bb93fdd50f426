//! The tensors of a model's files, read row by row: of bytes in memory, or of files, of which no more than a few MiB are in
//! memory at a time.

use super::stored::Stored;
use crate::error::{Error, ErrorKind, Result};
use crate::io::read_ahead::read_ahead;
use crate::io::{xxh64, Progress};
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;

/// Bytes that are read at once, or a row: fast from a disk, and still in the processor's cache when they are looked at.
const PART_BYTES: usize = 1 << 20;

pub(crate) struct WeightFiles<'a> {
    /// The file or folder, for messages.
    pub(super) path: String,
    pub(super) files: Vec<WeightFile<'a>>,
    pub(super) tensors: BTreeMap<String, Place>,
    /// What a tensor is called in the files, of one that is not there.
    pub(super) own_name: fn(&str) -> String,
    /// Of the names and bytes of all rows that were read, each once, in whatever order.
    checksum: Cell<u64>,
    /// By tensor, which rows those are.
    seen: RefCell<HashMap<String, Vec<bool>>>,
    /// How far the reading is, and who is told.
    progress: Cell<Progress>,
    report: Option<&'a dyn Fn(Progress)>,
}

pub(super) struct WeightFile<'a> {
    pub(super) path: String,
    pub(super) data: Data<'a>,
}

pub(super) enum Data<'a> {
    Bytes(&'a [u8]),
    File(RefCell<File>),
}

/// A tensor in its file.
pub(crate) struct Place {
    pub(super) file: usize,
    pub(crate) stored: Stored,
    pub(crate) shape: Box<[usize]>,
    /// From the file's first byte.
    pub(super) offset: u64,
    pub(super) bytes: usize,
    /// What the file calls it, if that is not what it is asked for by.
    pub(super) own_name: Option<Box<str>>,
    /// Whether the file has the rows of each head, of so many, in another order: those that rotate together are neighbours
    /// there, and half a head apart here.
    pub(super) neighbours: Option<usize>,
}

impl Place {
    /// Bytes of a row, at least 1.
    pub(crate) fn row_bytes(&self) -> usize {
        (self.bytes / self.rows().max(1)).max(1)
    }

    /// Of the slowest dimensions together; a vector is one row.
    pub(crate) fn rows(&self) -> usize {
        self.shape.split_last().map_or(1, |(_, rows)| rows.iter().product())
    }
}

impl<'a> WeightFiles<'a> {
    pub(super) fn empty(path: &str) -> Self {
        WeightFiles {
            path: path.into(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
            own_name: str::to_string,
            checksum: Cell::new(0),
            seen: RefCell::default(),
            progress: Cell::new(Progress { bytes: 0, total_bytes: 0 }),
            report: None,
        }
    }

    /// The same, telling how far the reading is.
    pub(crate) fn with_report(self, report: Option<&'a dyn Fn(Progress)>) -> Self {
        let total_bytes = self.tensors.values().map(|place| place.bytes as u64).sum();
        self.progress.set(Progress { bytes: 0, total_bytes });
        WeightFiles { report, ..self }
    }

    /// All is read that will be.
    pub(crate) fn end_report(&self) {
        let Progress { bytes, total_bytes } = self.progress.get();
        if bytes < total_bytes {
            self.progress.set(Progress { bytes: total_bytes, total_bytes });
            self.report.iter().for_each(|report| report(self.progress.get()));
        }
    }

    pub(crate) fn get(&self, tensor: &str) -> Option<&Place> {
        self.tensors.get(tensor)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The bytes of a tensor of this store.
    ///
    /// Errors: [`ErrorKind::Io`].
    pub(crate) fn read(&self, tensor: &str, place: &Place) -> Result<Vec<u8>> {
        let mut all = Vec::with_capacity(place.bytes);
        self.read_rows(tensor, place, 0..place.rows(), &mut |part| {
            all.extend_from_slice(part);
            Ok(())
        })?;
        Ok(all)
    }

    /// The bytes of some of a tensor's rows, of several whole ones at a time.
    ///
    /// Errors: [`ErrorKind::Io`], those of `each`.
    pub(crate) fn read_rows(
        &self,
        tensor: &str,
        place: &Place,
        rows: Range<usize>,
        each: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        if let Some(head) = place.neighbours {
            return self.read_heads(tensor, place, rows, head, each);
        }
        let file = &self.files[place.file];
        let row_bytes = place.row_bytes();
        let part_bytes = (PART_BYTES / row_bytes).max(1) * row_bytes;
        let first = place.offset + (rows.start * row_bytes) as u64;
        let name = xxh64(tensor.as_bytes(), 0);
        let mut at = rows.start;
        file.read_parts(first, rows.len() * row_bytes, part_bytes, &mut |part| {
            at += self.count(tensor, place, at, name, part);
            each(part)
        })
    }

    /// The same of rows that the file has in another order within each `head` of them. A vector's elements are such rows.
    fn read_heads(
        &self,
        tensor: &str,
        place: &Place,
        rows: Range<usize>,
        head: usize,
        each: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let (file, name) = (&self.files[place.file], xxh64(tensor.as_bytes(), 0));
        let vector = place.shape.len() == 1;
        let unit = if vector { place.bytes / place.shape[0].max(1) } else { place.row_bytes() };
        let wanted = if vector { 0..place.shape[0] } else { rows };
        let head_bytes = head * unit;
        let heads = wanted.start / head..wanted.end.div_ceil(head);
        let part_heads = if vector { heads.len().max(1) } else { (PART_BYTES / head_bytes).max(1) };
        let (mut next, mut ordered) = (heads.start * head, Vec::new());
        let first = place.offset + (next * unit) as u64;
        file.read_parts(first, heads.len() * head_bytes, part_heads * head_bytes, &mut |part| {
            ordered.clear();
            for of_head in part.chunks_exact(head_bytes) {
                let row = |row: usize| &of_head[row * unit..(row + 1) * unit];
                (0..2).for_each(|half| (0..head / 2).for_each(|i| ordered.extend_from_slice(row(2 * i + half))));
            }
            let end = next + ordered.len() / unit;
            let kept = wanted.start.max(next)..wanted.end.min(end);
            let bytes = &ordered[(kept.start - next) * unit..(kept.end - next) * unit];
            next = end;
            self.count(tensor, place, if vector { 0 } else { kept.start }, name, bytes);
            each(bytes)
        })
    }

    /// Some bytes of a tensor's rows, as they lie in the file, which are neither counted nor reported.
    ///
    /// Errors: [`ErrorKind::Io`].
    pub(crate) fn peek(&self, place: &Place, rows: Range<usize>) -> Result<Cow<'a, [u8]>> {
        let (file, row_bytes) = (&self.files[place.file], place.row_bytes());
        file.read(place.offset + (rows.start * row_bytes) as u64, rows.len() * row_bytes)
    }

    /// Takes the rows from `first` on, as far as they have not been read before, into the checksum and the progress.
    /// Returns how many they are.
    fn count(&self, tensor: &str, place: &Place, first: usize, name: u64, bytes: &[u8]) -> usize {
        let row_bytes = place.row_bytes();
        let mut all = self.seen.borrow_mut();
        let seen = all.entry(tensor.into()).or_insert_with(|| vec![false; place.rows()]);
        let (mut sum, mut new) = (self.checksum.get(), 0);
        for (i, row) in bytes.chunks_exact(row_bytes).enumerate() {
            if seen.get_mut(first + i).is_some_and(|seen| !std::mem::replace(seen, true)) {
                sum = sum.wrapping_add(xxh64(row, name.wrapping_add((first + i) as u64)));
                new += row_bytes as u64;
            }
        }
        self.checksum.set(sum);
        let Progress { bytes: before, total_bytes } = self.progress.get();
        self.progress.set(Progress { bytes: before + new, total_bytes });
        if new > 0 {
            self.report.iter().for_each(|report| report(self.progress.get()));
        }
        bytes.len() / row_bytes
    }

    /// Of the rows read so far, whatever their order.
    pub(crate) fn checksum(&self) -> u64 {
        self.checksum.get()
    }

    /// An error about a tensor, or without a name about the file.
    pub(crate) fn bad(&self, tensor: &str, message: String) -> Error {
        let file = self.tensors.get(tensor).and_then(|place| self.files.get(place.file));
        let own_name = match self.tensors.get(tensor) {
            Some(place) => place.own_name.as_deref().unwrap_or(tensor).to_string(),
            None => (self.own_name)(tensor),
        };
        bad(file.map_or(&self.path, |file| &file.path), &own_name, message)
    }
}

impl<'a> WeightFile<'a> {
    pub(super) fn read(&self, offset: u64, bytes: usize) -> Result<Cow<'a, [u8]>> {
        match &self.data {
            Data::Bytes(all) => {
                let first = usize::try_from(offset).unwrap_or(usize::MAX);
                let found = all.get(first..first.saturating_add(bytes));
                found.map(Cow::Borrowed).ok_or_else(|| bad(&self.path, "", format!("ends before byte {offset}")))
            }
            Data::File(file) => {
                let mut file = file.borrow_mut();
                let mut read = vec![0; bytes];
                let done = file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(&mut read));
                done.map_err(|e| ErrorKind::io(&self.path, e))?;
                Ok(Cow::Owned(read))
            }
        }
    }
}

impl WeightFile<'_> {
    /// All of `bytes` from `offset` on, `part_bytes` at a time.
    fn read_parts(
        &self,
        offset: u64,
        bytes: usize,
        part_bytes: usize,
        each: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        match &self.data {
            Data::Bytes(_) => self.read(offset, bytes)?.chunks(part_bytes).try_for_each(each),
            Data::File(file) => {
                let failed = |e: std::io::Error| ErrorKind::io(&self.path, e);
                let mut file = file.borrow_mut();
                file.seek(SeekFrom::Start(offset)).map_err(failed)?;
                read_ahead(&mut file, bytes, part_bytes, |part| each(part.map_err(failed)?))
            }
        }
    }
}

pub(super) fn bad(path: &str, tensor: &str, message: String) -> Error {
    ErrorKind::Weights { path: path.into(), tensor: tensor.into(), message }.into()
}
