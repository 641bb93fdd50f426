//! Files: GGUF headers, read ahead, their checksums, and how far a reader or writer has come.

#[cfg(feature = "model")]
pub(crate) mod foreign;
#[cfg(feature = "model")]
pub(crate) mod gguf;
mod progress;
#[cfg(feature = "model")]
pub(crate) mod read_ahead;
pub(crate) mod regular;
pub(crate) mod temporary;

pub use progress::Progress;
pub(crate) use xxhash_rust::xxh64::xxh64;

#[cfg(test)]
mod checksum_tests;
