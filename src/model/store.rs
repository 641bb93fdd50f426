//! The tensors of safetensors files, read one by one: of bytes in memory, or of a folder's files, of which no more than
//! a tensor is in memory at a time.

use crate::cache::xxh64;
use crate::error::{Error, ErrorKind, Result};
use safetensors::tensor::{Dtype, Metadata};
use serde::Deserialize;
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Bytes of a header at most, as the safetensors crate has it.
const MAX_HEADER_BYTES: u64 = 100_000_000;

pub(super) struct Store<'a> {
    /// The file or folder, for messages.
    path: String,
    files: Vec<Source<'a>>,
    tensors: BTreeMap<String, Place>,
    /// Of the names and bytes of all tensors that were read.
    checksum: Cell<u64>,
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
        Store { path: path.into(), files: Vec::new(), tensors: BTreeMap::new(), checksum: Cell::new(0) }
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
    pub(super) fn read(&self, tensor: &str, place: &Place) -> Result<Cow<'a, [u8]>> {
        let file = &self.files[place.file];
        let bytes = file.read(file.first + place.offset, place.bytes)?;
        self.checksum.set(xxh64(&bytes, xxh64(tensor.as_bytes(), self.checksum.get())));
        Ok(bytes)
    }

    /// Of the tensors read so far, in their order.
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

fn bad(path: &str, tensor: &str, message: String) -> Error {
    ErrorKind::Weights { path: path.into(), tensor: tensor.into(), message }.into()
}

pub(super) fn io(path: &Path, error: &std::io::Error) -> Error {
    ErrorKind::Io { path: path.display().to_string(), message: error.to_string() }.into()
}
