//! Files: read ahead, their checksums, and how far a reader or writer has come.

#[cfg(feature = "model")]
pub(crate) mod foreign;
mod progress;
#[cfg(feature = "model")]
pub(crate) mod read_ahead;
pub(crate) mod temporary;

pub use progress::Progress;
pub(crate) use xxhash_rust::xxh64::xxh64;

#[cfg(test)]
mod checksum_tests;
