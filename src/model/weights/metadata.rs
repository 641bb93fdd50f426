//! What a GGUF file says of itself, for users and tools.

use crate::error::Result;
use crate::io::gguf::value::MetadataValue;
use crate::io::gguf::Gguf;
use std::fmt;
use std::path::Path;

/// What a GGUF file says of itself: its metadata, and which tensors it has. No tensor's numbers are read. Of a model in several
/// files each has its own, and the first has the most.
pub struct GgufMetadata {
    file: Gguf,
}

/// A tensor of a GGUF file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct GgufTensor<'a> {
    /// As in the file: `blk.0.attn_q.weight`.
    pub name: &'a str,
    /// How its elements are stored, as ggml calls it: `F32`, `Q4_K`.
    pub stored: &'static str,
    /// Sizes, slowest first: the reverse of the file's order.
    pub shape: &'a [usize],
    /// Bytes in the file.
    pub bytes: u64,
}

impl GgufMetadata {
    /// Reads the header of a file.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io); [`ErrorKind::Weights`](crate::ErrorKind::Weights) for what is no GGUF file of
    /// version 2 or 3, or one whose numbers do not fit each other or the file's length.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Gguf::open(path.as_ref()).map(|(file, ..)| GgufMetadata { file })
    }

    /// The same of a file's bytes; `name` is for messages.
    ///
    /// # Errors
    ///
    /// As there, but [`ErrorKind::Io`](crate::ErrorKind::Io).
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Self> {
        Ok(GgufMetadata { file: Gguf::read(name, bytes, bytes.len() as u64)? })
    }

    /// The format's version.
    pub fn version(&self) -> u32 {
        self.file.version
    }

    /// The keys, in alphabetical order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.file.keys()
    }

    /// The value of a key that is a string: of `general.name`, `general.license`, `tokenizer.chat_template`.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.file.get(key).and_then(MetadataValue::text)
    }

    /// The value of a key that is a number, as near as f64 comes.
    pub fn number(&self, key: &str) -> Option<f64> {
        self.file.get(key).and_then(MetadataValue::number)
    }

    /// The value of a key in words, for people: of long texts the beginning, of lists the length.
    pub fn words(&self, key: &str) -> Option<String> {
        self.file.get(key).map(MetadataValue::to_string)
    }

    /// The tensors, in alphabetical order of their names.
    pub fn tensors(&self) -> impl Iterator<Item = GgufTensor<'_>> {
        self.file.tensors.iter().map(|(name, tensor)| GgufTensor {
            name,
            stored: tensor.block.name,
            shape: &tensor.shape,
            bytes: tensor.bytes,
        })
    }
}

impl fmt::Debug for GgufMetadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("GgufMetadata");
        fields.field("path", &self.file.path).field("version", &self.file.version);
        fields.field("keys", &self.keys().count()).field("tensors", &self.file.tensors.len()).finish()
    }
}
