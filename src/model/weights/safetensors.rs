//! The tensors of safetensors files, read row by row: of bytes in memory, or of a folder's files, of which no more than
//! a few MiB are in memory at a time.

use super::header::{each_entry, each_entry_of, Fault, Info};
use crate::error::{Error, ErrorKind, Result};
use crate::io::foreign::{kind_of, missing};
use crate::io::read_ahead::read_ahead;
use crate::io::{xxh64, Progress};
use safetensors::tensor::Dtype;
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

/// Bytes of a header at most, as the safetensors crate has it, and of an index.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Bytes that are read at once, or a row: fast from a disk, and still in the processor's cache when they are looked at.
const PART_BYTES: usize = 1 << 20;

pub(crate) struct WeightFiles<'a> {
    /// The file or folder, for messages.
    path: String,
    files: Vec<WeightFile<'a>>,
    tensors: BTreeMap<String, Place>,
    /// Of the names and bytes of all rows that were read, each once, in whatever order.
    checksum: Cell<u64>,
    /// By tensor, which rows those are.
    seen: RefCell<HashMap<String, Vec<bool>>>,
    /// How far the reading is, and who is told.
    progress: Cell<Progress>,
    report: Option<&'a dyn Fn(Progress)>,
}

struct WeightFile<'a> {
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
pub(crate) struct Place {
    file: usize,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Box<[usize]>,
    /// From the file's first tensor.
    offset: u64,
    bytes: usize,
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
    /// The bytes of one file.
    ///
    /// Errors: [`ErrorKind::Weights`].
    pub(crate) fn from_bytes(path: &str, bytes: &'a [u8]) -> Result<Self> {
        let mut store = Self::empty(path);
        store.add(path, Data::Bytes(bytes), bytes.len() as u64)?;
        Ok(store)
    }

    /// `model.safetensors`, or what `model.safetensors.index.json` names.
    ///
    /// Errors: [`ErrorKind::Io`], [`ErrorKind::Weights`].
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let (single, index) = (folder.join("model.safetensors"), folder.join("model.safetensors.index.json"));
        let mut store = Self::empty(&folder.display().to_string());
        if single.exists() || !index.exists() {
            store.path = single.display().to_string();
            store.add_file(&single)?;
            return Ok(store);
        }
        store.path = index.display().to_string();
        let (mut file, len) = regular(&index).map_err(|e| ErrorKind::io(&index, e))?;
        if len > MAX_HEADER_BYTES {
            return Err(store.bad("", format!("{len} bytes, an index has at most {MAX_HEADER_BYTES}")));
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(|e| ErrorKind::io(&index, e))?;
        let mut opened = HashMap::new();
        let read = each_entry_of(&text, "weight_map", &mut |tensor, name| {
            store.add_indexed(folder, &mut opened, &tensor, name)
        });
        match read {
            Ok(()) => Ok(store),
            Err(Fault::Entry(error)) => Err(error),
            Err(Fault::Json(e)) => Err(store.bad("", not_a("an index", &e.to_string(), &text))),
        }
    }

    /// Opens the file that an index has a tensor in, unless it is open, and finds the tensor there.
    fn add_indexed(
        &mut self,
        folder: &Path,
        opened: &mut HashMap<String, usize>,
        tensor: &str,
        name: String,
    ) -> Result<()> {
        // A name, not a path: an index has no business outside its folder.
        if name.is_empty() || name.contains(['/', '\\', ':']) || name == ".." {
            return Err(self.bad(tensor, format!("is in {name:?}, which is no file of the folder")));
        }
        if !opened.contains_key(&name) {
            self.add_file(&folder.join(&name))?;
            opened.insert(name.clone(), self.files.len() - 1);
        }
        match self.tensors.get(tensor).map(|place| place.file) == opened.get(&name).copied() {
            true => Ok(()),
            false => Err(self.bad(tensor, format!("is not in {name}, where the index has it"))),
        }
    }

    fn empty(path: &str) -> Self {
        WeightFiles {
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

    fn add_file(&mut self, path: &Path) -> Result<()> {
        let (file, len) = regular(path).map_err(|e| missing(path, e))?;
        self.add(&path.display().to_string(), Data::File(RefCell::new(file)), len)
    }

    /// Reads a file's header.
    fn add(&mut self, path: &str, data: Data<'a>, len: u64) -> Result<()> {
        let mut source = WeightFile { path: path.into(), data, first: 0 };
        let size = source.read(0, len.min(8) as usize)?;
        let size = size.first_chunk().map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes));
        if size > MAX_HEADER_BYTES.min(len.saturating_sub(8)) {
            let why = match len {
                0..8 => format!("{len} bytes"),
                _ => format!("a header of {size} bytes in a file of {len}"),
            };
            let start = source.read(0, len.min(1024) as usize)?;
            return Err(bad(path, "", not_a(SAFETENSORS, &why, &start)));
        }
        let header = source.read(8, size as usize)?;
        source.first = 8 + size;
        let file = self.files.len();
        let read = each_entry(&header, "__metadata__", &mut |name, info| self.add_tensor(path, file, name, info));
        match read {
            Ok(()) => {}
            Err(Fault::Entry(error)) => return Err(error),
            Err(Fault::Json(e)) => return Err(bad(path, "", not_a(SAFETENSORS, &e.to_string(), &[]))),
        }
        drop(header);
        let end = self.check_offsets(path, file)?;
        if source.first.checked_add(end) != Some(len) {
            let why = format!("{len} bytes, its header tells of {} and {end}", source.first);
            return Err(bad(path, "", not_a(SAFETENSORS, &why, &[])));
        }
        self.files.push(source);
        Ok(())
    }

    fn add_tensor(&mut self, path: &str, file: usize, name: String, info: Info) -> Result<()> {
        let bytes = info.checked_bytes().map_err(|why| bad(path, &name, why))?;
        let place = Place { file, dtype: info.dtype, shape: info.shape.0, offset: info.data_offsets.0, bytes };
        match self.tensors.entry(name) {
            Entry::Vacant(entry) => {
                entry.insert(place);
                Ok(())
            }
            Entry::Occupied(entry) => {
                let other = self.files.get(entry.get().file);
                let why = other.map_or("is there twice".into(), |file| format!("is in {} as well", file.path));
                Err(bad(path, entry.key(), why))
            }
        }
    }

    /// Where the tensors of a file end, which must lie one behind the other.
    fn check_offsets(&self, path: &str, file: usize) -> Result<u64> {
        let own = |place: &&Place| place.file == file;
        let mut ranges: Vec<(u64, u64)> =
            self.tensors.values().filter(own).map(|p| (p.offset, p.offset + p.bytes as u64)).collect();
        ranges.sort_unstable();
        let mut end = 0;
        for (start, next) in ranges {
            if start != end {
                let at = |(_, place): &(&String, &Place)| place.file == file && place.offset == start;
                let name = self.tensors.iter().find(at).map_or("", |(name, _)| name);
                return Err(bad(path, name, format!("begins at byte {start}, where those before it end at {end}")));
            }
            end = next;
        }
        Ok(end)
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

    /// The bytes of some of a tensor's rows, which are neither counted nor reported.
    ///
    /// Errors: [`ErrorKind::Io`].
    pub(crate) fn peek(&self, place: &Place, rows: Range<usize>) -> Result<Cow<'a, [u8]>> {
        let (file, row_bytes) = (&self.files[place.file], place.row_bytes());
        file.read(file.first + place.offset + (rows.start * row_bytes) as u64, rows.len() * row_bytes)
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
        bad(file.map_or(&self.path, |file| &file.path), tensor, message)
    }
}

impl<'a> WeightFile<'a> {
    fn read(&self, offset: u64, bytes: usize) -> Result<Cow<'a, [u8]>> {
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

fn bad(path: &str, tensor: &str, message: String) -> Error {
    ErrorKind::Weights { path: path.into(), tensor: tensor.into(), message }.into()
}

const SAFETENSORS: &str = "a safetensors file";

/// That a file is not what it should be, why, and what its first bytes tell of it.
fn not_a(what: &str, why: &str, start: &[u8]) -> String {
    let kind = kind_of(start).map_or(String::new(), |kind| format!("; {kind}"));
    format!("not {what}: {why}{kind}")
}

/// A file and its length. What is no regular file has none, and might never end, or begin.
///
/// Errors: the system's, or that it is something else.
pub(crate) fn regular(path: &Path) -> std::io::Result<(File, u64)> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(std::io::Error::other(crate::cache::not_regular(&metadata.file_type())));
    }
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    Ok((file, len))
}
