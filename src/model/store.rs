//! The tensors of safetensors files, read row by row: of bytes in memory, or of a folder's files, of which no more than
//! a few MiB are in memory at a time.

use super::read_ahead::read_ahead;
use crate::cache::{xxh64, Progress};
use crate::error::{Error, ErrorKind, Result};
use safetensors::tensor::{Dtype, Metadata};
use serde::Deserialize;
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

/// Bytes of a header at most, as the safetensors crate has it.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Bytes that are read at once, or a row: fast from a disk, and still in the processor's cache when they are looked at.
const PART_BYTES: usize = 1 << 20;

pub(super) struct Store<'a> {
    /// The file or folder, for messages.
    path: String,
    files: Vec<Source<'a>>,
    tensors: BTreeMap<String, Place>,
    /// Of the names and bytes of all rows that were read, each once, in whatever order.
    checksum: Cell<u64>,
    /// By tensor, which rows those are.
    seen: RefCell<HashMap<String, Vec<bool>>>,
    /// How far the reading is, and who is told.
    progress: Cell<Progress>,
    report: Option<&'a dyn Fn(Progress)>,
}

struct Source<'a> {
    path: String,
    data: Data<'a>,
    /// Where the tensors' bytes begin.
    first: u64,
}

enum Data<'a> {
    Bytes(&'a [u8]),
    File(RefCell<File>),
}

/// A tensor in its file.
pub(super) struct Place {
    file: usize,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// From the file's first tensor.
    offset: u64,
    bytes: usize,
}

impl Place {
    /// Bytes of a row, at least 1.
    pub(super) fn row_bytes(&self) -> usize {
        (self.bytes / self.rows().max(1)).max(1)
    }

    /// Of the slowest dimensions together; a vector is one row.
    fn rows(&self) -> usize {
        self.shape.split_last().map_or(1, |(_, rows)| rows.iter().product())
    }
}

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct Index {
    /// File of each tensor.
    weight_map: BTreeMap<String, String>,
}

impl<'a> Store<'a> {
    /// The bytes of one file.
    ///
    /// Errors: [`ErrorKind::Weights`].
    pub(super) fn from_bytes(path: &str, bytes: &'a [u8]) -> Result<Self> {
        let mut store = Self::empty(path);
        store.add(path, Data::Bytes(bytes), bytes.len() as u64)?;
        Ok(store)
    }

    /// `model.safetensors`, or what `model.safetensors.index.json` names.
    ///
    /// Errors: [`ErrorKind::Io`], [`ErrorKind::Weights`].
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let (single, index) = (folder.join("model.safetensors"), folder.join("model.safetensors.index.json"));
        let mut store = Self::empty(&folder.display().to_string());
        if single.exists() || !index.exists() {
            store.path = single.display().to_string();
            store.add_file(&single)?;
            return Ok(store);
        }
        store.path = index.display().to_string();
        let text = std::fs::read(&index).map_err(|e| io(&index, &e))?;
        let parsed: Index = serde_json::from_slice(&text).map_err(|e| store.bad("-", format!("not an index: {e}")))?;
        let mut opened = HashMap::new();
        for (tensor, name) in parsed.weight_map {
            // A name, not a path: an index has no business outside its folder.
            if name.is_empty() || name.contains(['/', '\\', ':']) || name == ".." {
                return Err(store.bad(&tensor, format!("is in {name:?}, which is no file of the folder")));
            }
            if !opened.contains_key(&name) {
                store.add_file(&folder.join(&name))?;
                opened.insert(name.clone(), store.files.len() - 1);
            }
            if store.tensors.get(&tensor).map(|place| place.file) != opened.get(&name).copied() {
                return Err(store.bad(&tensor, format!("is not in {name}, where the index has it")));
            }
        }
        Ok(store)
    }

    fn empty(path: &str) -> Self {
        Store {
            path: path.into(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
            checksum: Cell::new(0),
            seen: RefCell::default(),
            progress: Cell::new(Progress { bytes: 0, total_bytes: 0 }),
            report: None,
        }
    }

    /// The same, telling how far the reading is.
    pub(super) fn with_report(self, report: Option<&'a dyn Fn(Progress)>) -> Self {
        let total_bytes = self.tensors.values().map(|place| place.bytes as u64).sum();
        self.progress.set(Progress { bytes: 0, total_bytes });
        Store { report, ..self }
    }

    /// All is read that will be.
    pub(super) fn end_report(&self) {
        let Progress { bytes, total_bytes } = self.progress.get();
        if bytes < total_bytes {
            self.progress.set(Progress { bytes: total_bytes, total_bytes });
            self.report.iter().for_each(|report| report(self.progress.get()));
        }
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        let file = File::open(path).map_err(|e| io(path, &e))?;
        let len = file.metadata().map_err(|e| io(path, &e))?.len();
        self.add(&path.display().to_string(), Data::File(RefCell::new(file)), len)
    }

    /// Reads a file's header.
    fn add(&mut self, path: &str, data: Data<'a>, len: u64) -> Result<()> {
        let broken = |why: String| bad(path, "-", format!("not a safetensors file: {why}"));
        let mut source = Source { path: path.into(), data, first: 0 };
        if len < 8 {
            return Err(broken(format!("{len} bytes")));
        }
        let size = source.read(0, 8)?;
        let size = size.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        if size > MAX_HEADER_BYTES.min(len - 8) {
            return Err(broken(format!("a header of {size} bytes in a file of {len}")));
        }
        let header = source.read(8, size as usize)?;
        let header: Metadata = serde_json::from_slice(&header).map_err(|e| broken(e.to_string()))?;
        source.first = 8 + size;
        if source.first + header.data_len() as u64 != len {
            return Err(broken(format!(
                "{len} bytes, its header tells of {}",
                source.first + header.data_len() as u64
            )));
        }
        for (name, info) in header.tensors() {
            let (start, end) = info.data_offsets;
            let (dtype, shape, file) = (info.dtype, info.shape.clone(), self.files.len());
            let place = Place { file, dtype, shape, offset: start as u64, bytes: end - start };
            if let Some(twice) = self.tensors.insert(name.clone(), place) {
                return Err(bad(path, &name, format!("is in {} as well", self.files[twice.file].path)));
            }
        }
        self.files.push(source);
        Ok(())
    }

    pub(super) fn get(&self, tensor: &str) -> Option<&Place> {
        self.tensors.get(tensor)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The bytes of a tensor of this store.
    ///
    /// Errors: [`ErrorKind::Io`].
    pub(super) fn read(&self, tensor: &str, place: &Place) -> Result<Vec<u8>> {
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
    pub(super) fn read_rows(
        &self,
        tensor: &str,
        place: &Place,
        rows: Range<usize>,
        each: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let file = &self.files[place.file];
        let row_bytes = place.row_bytes();
        let part_bytes = (PART_BYTES / row_bytes).max(1) * row_bytes;
        let first = file.first + place.offset + (rows.start * row_bytes) as u64;
        let name = xxh64(tensor.as_bytes(), 0);
        let mut at = rows.start;
        file.read_parts(first, rows.len() * row_bytes, part_bytes, &mut |part| {
            at += self.count(tensor, place, at, name, part);
            each(part)
        })
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
    pub(super) fn checksum(&self) -> u64 {
        self.checksum.get()
    }

    /// An error about a tensor, or with "-" about the file.
    pub(super) fn bad(&self, tensor: &str, message: String) -> Error {
        let file = self.tensors.get(tensor).and_then(|place| self.files.get(place.file));
        bad(file.map_or(&self.path, |file| &file.path), tensor, message)
    }
}

impl<'a> Source<'a> {
    fn read(&self, offset: u64, bytes: usize) -> Result<Cow<'a, [u8]>> {
        match &self.data {
            Data::Bytes(all) => {
                let first = usize::try_from(offset).unwrap_or(usize::MAX);
                let found = all.get(first..first.saturating_add(bytes));
                found.map(Cow::Borrowed).ok_or_else(|| bad(&self.path, "-", format!("ends before byte {offset}")))
            }
            Data::File(file) => {
                let mut file = file.borrow_mut();
                let mut read = vec![0; bytes];
                let done = file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(&mut read));
                done.map_err(|e| io(Path::new(&self.path), &e))?;
                Ok(Cow::Owned(read))
            }
        }
    }
}

impl Source<'_> {
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
                let failed = |e: std::io::Error| io(Path::new(&self.path), &e);
                let mut file = file.borrow_mut();
                file.seek(SeekFrom::Start(offset)).map_err(failed)?;
                read_ahead(&mut file, bytes, part_bytes, |part| each(part.map_err(failed)?))
            }
        }
    }
}

fn bad(path: &str, tensor: &str, message: String) -> Error {
    ErrorKind::Weights { path: path.into(), tensor: tensor.into(), message }.into()
}

pub(super) fn io(path: &Path, error: &std::io::Error) -> Error {
    ErrorKind::Io { path: path.display().to_string(), message: error.to_string() }.into()
}
