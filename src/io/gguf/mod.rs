//! GGUF files: metadata, and where their tensors lie. Versions 2 and 3, little endian. Reading a header takes no more memory
//! than the file has bytes, but for its names; tensors are read elsewhere.
//!
//! Source: github.com/ggml-org/ggml, `docs/gguf.md`.
#![warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

mod header;
mod parts;
mod source;
mod types;
pub(crate) mod value;

pub(crate) use parts::parts;

use super::regular::regular;
use crate::error::{Error, ErrorKind, Result};
use crate::io::foreign::missing;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
pub(crate) use types::GgmlLayout;
use value::{MetadataValue, ValueList};

const ALIGNMENT: &str = "general.alignment";

/// What a file says of itself.
pub(crate) struct Gguf {
    /// For messages.
    pub(crate) path: String,
    pub(crate) version: u32,
    values: BTreeMap<String, MetadataValue>,
    pub(crate) tensors: BTreeMap<String, StoredTensor>,
}

/// A tensor in its file: its bytes are there, and are no other tensor's.
pub(crate) struct StoredTensor {
    /// ggml's number of its type.
    pub(crate) number: u32,
    pub(crate) block: GgmlLayout,
    /// Sizes, slowest first.
    pub(crate) shape: Box<[usize]>,
    /// Its first byte in the file.
    pub(crate) first: u64,
    pub(crate) bytes: u64,
}

impl Gguf {
    /// Opens a file and reads its header. Returns the file too, and its length.
    ///
    /// Errors: [`ErrorKind::Io`], [`ErrorKind::Weights`].
    pub(crate) fn open(path: &Path) -> Result<(Gguf, File, u64)> {
        let (file, len) = regular(path).map_err(|e| missing(path, e))?;
        let name = path.display().to_string();
        let gguf = Gguf::read(&name, BufReader::new(&file), len)?;
        Ok((gguf, file, len))
    }

    /// The file of a model that is one, or of a folder that has one and no safetensors file: of one in several parts the first.
    ///
    /// Errors: [`ErrorKind::Weights`] for a folder with several models.
    pub(crate) fn of_model(path: &Path) -> Result<Option<PathBuf>> {
        let named = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf"));
        // What is not there, and would be one, is an error when it is opened.
        if path.is_file() || named && !path.exists() {
            return Ok((named || Self::begins(path)).then(|| path.to_path_buf()));
        }
        let Ok(entries) = std::fs::read_dir(path) else { return Ok(None) };
        if ["model.safetensors", "model.safetensors.index.json"].iter().any(|name| path.join(name).exists()) {
            return Ok(None);
        }
        let names = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let names = names.filter(|path| path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf")));
        let mut models: Vec<PathBuf> =
            names.filter(|path| parts(path).is_none_or(|parts| parts.first() == Some(path))).collect();
        models.sort();
        match &models[..] {
            [first, second, ..] => {
                let why = format!("has {} and {}: which of them is it?", first.display(), second.display());
                Err(source::bad(&path.display().to_string(), "", why))
            }
            _ => Ok(models.pop()),
        }
    }

    /// Whether a file begins as GGUF files do. No, where it cannot be read.
    fn begins(path: &Path) -> bool {
        let mut start = [0; 4];
        let read = regular(path).and_then(|(mut file, _)| file.read_exact(&mut start));
        read.is_ok() && start == *header::MAGIC
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    pub(crate) fn get(&self, key: &str) -> Option<&MetadataValue> {
        self.values.get(key)
    }

    /// `key general.alignment = 7 <why>`.
    pub(crate) fn bad(&self, key: &str, why: &str) -> Error {
        let message = match self.values.get(key) {
            Some(value) => format!("key {key} = {value} {why}"),
            None => format!("key {key} is missing"),
        };
        ErrorKind::Config { path: self.path.clone(), message }.into()
    }

    /// A string, if the key is there.
    ///
    /// Errors: [`ErrorKind::Config`] for what is none.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.text().map(Some).ok_or_else(|| self.bad(key, "is not a string"))
    }

    /// A whole number of this range, if the key is there.
    ///
    /// Errors: [`ErrorKind::Config`] for what is none.
    pub(crate) fn count(&self, key: &str, range: std::ops::RangeInclusive<usize>) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let count = value.whole().and_then(|n| usize::try_from(n).ok()).filter(|n| range.contains(n));
        let why = || self.bad(key, &format!("is not a whole number in {}..={}", range.start(), range.end()));
        count.map(Some).ok_or_else(why)
    }

    /// A number of this range, if the key is there.
    ///
    /// Errors: [`ErrorKind::Config`] for what is none.
    pub(crate) fn number(&self, key: &str, range: std::ops::RangeInclusive<f64>) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.number().filter(|n| range.contains(n));
        number.map(Some).ok_or_else(|| self.bad(key, &format!("is not a number in {range:?}")))
    }

    /// A flag, if the key is there.
    ///
    /// Errors: [`ErrorKind::Config`] for what is none.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(MetadataValue::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.bad(key, "is neither true nor false")),
        }
    }

    /// A list, if the key is there.
    ///
    /// Errors: [`ErrorKind::Config`] for what is none.
    pub(crate) fn list(&self, key: &str) -> Result<Option<&ValueList>> {
        match self.get(key) {
            None => Ok(None),
            Some(MetadataValue::List(list)) => Ok(Some(list)),
            Some(_) => Err(self.bad(key, "is not a list")),
        }
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)]
mod header_tests;
