//! A model's tensors, from files to the device.

/// A safetensors file in memory.
#[derive(Clone, Copy)]
pub struct WeightBytes<'a> {
    /// What errors call it.
    pub name: &'a str,
    /// The whole file.
    pub bytes: &'a [u8],
}

impl std::fmt::Debug for WeightBytes<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WeightBytes").field("name", &self.name).field("bytes", &self.bytes.len()).finish()
    }
}

/// A model's file that is neither in memory nor the system's: a browser's, or a part of an archive. Its bytes are asked for by ranges of
/// some MiB at most, by several threads where there are any.
pub trait ReadAt: Sync {
    /// The file's bytes in all.
    fn total_bytes(&self) -> u64;

    /// Fills `buffer` with what is from byte `offset` on.
    ///
    /// # Errors
    ///
    /// That it cannot be read, or ends before: the load fails with [`ErrorKind::Io`](crate::ErrorKind::Io).
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()>;
}

pub use metadata::{GgufMetadata, GgufTensor};

mod fp8;
pub(crate) mod gguf;
mod groups;
pub(crate) mod header;
mod kinds;
mod made;
pub(crate) mod matrix;
mod metadata;
mod part;
pub(crate) mod reader;
pub(crate) mod safetensors;
pub(crate) mod share;
pub(crate) mod split;
mod stacked;
pub(crate) mod store;
mod stored;
mod tied;
mod unused;
mod upload;
