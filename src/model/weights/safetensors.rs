//! Opening safetensors files: of bytes in memory, or those of a folder.

use super::header::{each_entry, each_entry_of, Fault, Info};
use super::store::{bad, Data, Place, WeightFile, WeightFiles};
use super::stored::Stored;
use super::ReadAt;
use crate::error::{ErrorKind, Result};
use crate::io::foreign::{kind_of, missing};
use crate::io::regular::regular;
use std::collections::btree_map::Entry;
use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

/// Bytes of a header at most, as the safetensors crate has it, and of an index.
const MAX_HEADER_BYTES: u64 = 100_000_000;

impl<'a> WeightFiles<'a> {
    /// The bytes of one file.
    ///
    /// Errors: [`ErrorKind::Weights`].
    pub(crate) fn from_bytes(path: &str, bytes: &'a [u8]) -> Result<Self> {
        let mut store = Self::empty(path);
        store.add(path, Data::Bytes(bytes), bytes.len() as u64)?;
        Ok(store)
    }

    /// One file that is read by ranges.
    ///
    /// Errors: [`ErrorKind::Io`], [`ErrorKind::Weights`].
    pub(crate) fn from_source(path: &str, source: &'a dyn ReadAt) -> Result<Self> {
        let mut store = Self::empty(path);
        store.add(path, Data::Source(source), source.total_bytes())?;
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

    fn add_file(&mut self, path: &Path) -> Result<()> {
        let (file, len) = regular(path).map_err(|e| missing(path, e))?;
        self.add(&path.display().to_string(), Data::File(file), len)
    }

    /// Reads a file's header.
    fn add(&mut self, path: &str, data: Data<'a>, len: u64) -> Result<()> {
        let source = WeightFile { path: path.into(), data };
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
        let (file, first) = (self.files.len(), 8 + size);
        let read =
            each_entry(&header, "__metadata__", &mut |name, info| self.add_tensor(path, (file, first), name, info));
        match read {
            Ok(()) => {}
            Err(Fault::Entry(error)) => return Err(error),
            Err(Fault::Json(e)) => return Err(bad(path, "", not_a(SAFETENSORS, &e.to_string(), &[]))),
        }
        drop(header);
        let end = self.check_offsets(path, (file, first))?;
        if first.checked_add(end) != Some(len) {
            let why = format!("{len} bytes, its header tells of {first} and {end}");
            return Err(bad(path, "", not_a(SAFETENSORS, &why, &[])));
        }
        self.files.push(source);
        Ok(())
    }

    fn add_tensor(&mut self, path: &str, (file, first): (usize, u64), name: String, info: Info) -> Result<()> {
        let bytes = info.checked_bytes().map_err(|why| bad(path, &name, why))?;
        // What exceeds 64 bits is past the file's end, which is looked at when all are known.
        let offset = first.saturating_add(info.data_offsets.0);
        let stored = Stored::of_safetensors(info.dtype);
        let (own_name, neighbours, made) = (None, None, None);
        let place = Place { file, stored, shape: info.shape.0, offset, bytes, own_name, neighbours, made };
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
    fn check_offsets(&self, path: &str, (file, first): (usize, u64)) -> Result<u64> {
        let own = |place: &&Place| place.file == file;
        let mut ranges: Vec<(u64, u64)> =
            self.tensors.values().filter(own).map(|p| (p.offset - first, p.bytes as u64)).collect();
        ranges.sort_unstable();
        let mut end = 0;
        for (start, bytes) in ranges {
            if start != end {
                let at = |(_, place): &(&String, &Place)| place.file == file && place.offset - first == start;
                let name = self.tensors.iter().find(at).map_or("", |(name, _)| name);
                return Err(bad(path, name, format!("begins at byte {start}, where those before it end at {end}")));
            }
            end = start.saturating_add(bytes);
        }
        Ok(end)
    }
}

const SAFETENSORS: &str = "a safetensors file";

/// That a file is not what it should be, why, and what its first bytes tell of it.
fn not_a(what: &str, why: &str, start: &[u8]) -> String {
    let kind = kind_of(start).map_or(String::new(), |kind| format!("; {kind}"));
    format!("not {what}: {why}{kind}")
}
