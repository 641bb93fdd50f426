//! The tensors of a model's files, read row by row: of bytes in memory, or of files, of which no more than a few MiB are in
//! memory at a time.

use super::made::MadeRows;
use super::part::{Counted, Heads, NewRows, RowsPart};
use super::stored::Stored;
use super::ReadAt;
use crate::error::{Error, ErrorKind, Result};
use crate::io::read_at::read_exact_at;
use crate::io::{xxh64, Progress};
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::ops::Range;

/// Bytes that are read at once, or a row: fast from a disk, and still in the processor's cache when they are looked at.
pub(super) const PART_BYTES: usize = 1 << 20;

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
    File(File),
    Source(&'a dyn ReadAt),
}

impl Data<'_> {
    /// Fills `buffer` from byte `offset` on, of what is not in memory.
    fn fill(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        match self {
            Data::File(file) => read_exact_at(file, buffer, offset),
            Data::Source(source) => source.read_exact_at(offset, buffer),
            Data::Bytes(_) => Ok(()),
        }
    }
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
    /// Where its rows are put together of, if they do not lie in the file as they are read. Boxed: files may name a tensor for each of 60
    /// bytes of their header, and few have such rows.
    pub(super) made: Option<Box<MadeRows>>,
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
        let mut memory = Vec::new();
        self.parts(tensor, place, (rows, None), PART_BYTES).into_iter().try_for_each(|part| {
            let (bytes, counted) = part.read(&mut memory)?;
            self.count(counted);
            each(bytes)
        })
    }

    /// Some of a tensor's rows, or some bytes of each, in parts of whole ones, of about `part_bytes` each. Whoever asks for them reads them: what they are
    /// is taken as read here, and is in the checksum when [`WeightFiles::count`] is told of each.
    pub(crate) fn parts<'s>(
        &'s self,
        tensor: &str,
        place: &'s Place,
        (rows, cut): (Range<usize>, Option<Range<usize>>),
        part_bytes: usize,
    ) -> Vec<RowsPart<'s, 'a>> {
        let (file, row_bytes) = (&self.files[place.file], place.row_bytes());
        let name = xxh64(tensor.as_bytes(), 0);
        let part = |first: usize, count: usize, offset: u64, bytes: usize, heads: Option<Heads>| {
            let new = self.mark_new(tensor, place, first..first + count);
            let made = place.made.as_deref().map(|made| (made, &self.files[..]));
            let cut = cut.clone();
            RowsPart { file, offset: place.offset + offset, bytes, heads, made, row_bytes, cut, first, name, new }
        };
        let Some(head) = place.neighbours else {
            let step = (part_bytes / row_bytes).max(1);
            let firsts = rows.clone().step_by(step).map(|first| (first, step.min(rows.end - first)));
            let plain = |(first, count)| part(first, count, (first * row_bytes) as u64, count * row_bytes, None);
            return firsts.map(plain).collect();
        };
        // A vector's elements are such rows.
        let vector = place.shape.len() == 1;
        let unit = if vector { place.bytes / place.shape[0].max(1) } else { row_bytes };
        let wanted = if vector { 0..place.shape[0] } else { rows };
        let heads = wanted.start / head..wanted.end.div_ceil(head);
        let step = if vector { heads.len() } else { part_bytes / (head * unit) }.max(1);
        let of_heads = |from: usize| {
            let these = from..heads.end.min(from + step);
            let (begin, end) = (these.start * head, these.end * head);
            let kept = wanted.start.max(begin)..wanted.end.min(end);
            let cut = (kept.start - begin) * unit..(kept.end - begin) * unit;
            let (first, count) = if vector { (0, 1) } else { (kept.start, kept.len()) };
            let bytes = (end - begin) * unit;
            part(first, count, (begin * unit) as u64, bytes, Some(Heads { rows: head, row_bytes: unit, cut }))
        };
        heads.clone().step_by(step).map(of_heads).collect()
    }

    /// Some bytes of a tensor's rows, as they lie in the file, which are neither counted nor reported.
    ///
    /// Errors: [`ErrorKind::Io`].
    pub(crate) fn peek(&self, place: &Place, rows: Range<usize>) -> Result<Cow<'a, [u8]>> {
        if let Some(made) = &place.made {
            let mut read = Vec::new();
            made.read(&self.files, rows, &mut read)?;
            return Ok(read.into());
        }
        let (file, row_bytes) = (&self.files[place.file], place.row_bytes());
        file.read(place.offset + (rows.start * row_bytes) as u64, rows.len() * row_bytes)
    }

    /// Takes rows as read. Returns which of them were not before.
    fn mark_new(&self, tensor: &str, place: &Place, rows: Range<usize>) -> NewRows {
        let mut all = self.seen.borrow_mut();
        let seen = all.entry(tensor.into()).or_insert_with(|| vec![false; place.rows()]);
        let Some(seen) = seen.get_mut(rows) else { return NewRows::Some(Vec::new()) };
        let new = match seen.contains(&true) {
            false => NewRows::All,
            true => NewRows::Some(seen.iter().map(|seen| !seen).collect()),
        };
        seen.fill(true);
        new
    }

    /// Takes what was read, as far as it was not before, into the checksum and the progress.
    pub(crate) fn count(&self, counted: Counted) {
        self.checksum.set(self.checksum.get().wrapping_add(counted.sum));
        let Progress { bytes: before, total_bytes } = self.progress.get();
        self.progress.set(Progress { bytes: before + counted.bytes, total_bytes });
        if counted.bytes > 0 {
            self.report.iter().for_each(|report| report(self.progress.get()));
        }
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
            Data::File(_) | Data::Source(_) => {
                let mut read = vec![0; bytes];
                self.data.fill(&mut read, offset).map_err(|e| ErrorKind::io(&self.path, e))?;
                Ok(Cow::Owned(read))
            }
        }
    }

    /// The same, in `memory` unless they are in memory anyway.
    pub(super) fn read_into<'b>(&'b self, offset: u64, bytes: usize, memory: &'b mut Vec<u8>) -> Result<&'b [u8]> {
        match &self.data {
            Data::Bytes(all) => {
                let first = usize::try_from(offset).unwrap_or(usize::MAX);
                let found = all.get(first..first.saturating_add(bytes));
                found.ok_or_else(|| bad(&self.path, "", format!("ends before byte {offset}")))
            }
            Data::File(_) | Data::Source(_) => {
                memory.resize(bytes, 0);
                self.data.fill(memory, offset).map_err(|e| ErrorKind::io(&self.path, e))?;
                Ok(memory)
            }
        }
    }
}

pub(super) fn bad(path: &str, tensor: &str, message: String) -> Error {
    ErrorKind::Weights { path: path.into(), tensor: tensor.into(), message }.into()
}
