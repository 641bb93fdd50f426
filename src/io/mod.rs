//! Files: GGUF headers, read by several threads, their checksums, and how far a reader or writer has come.

#[cfg(feature = "model")]
pub(crate) mod foreign;
#[cfg(feature = "model")]
pub(crate) mod gguf;
#[cfg(feature = "model")]
pub(crate) mod in_order;
mod progress;
#[cfg(feature = "model")]
pub(crate) mod read_at;
pub(crate) mod regular;
pub(crate) mod temporary;

pub use progress::Progress;
pub(crate) use xxhash_rust::xxh64::xxh64;

#[cfg(test)]
mod checksum_tests;
