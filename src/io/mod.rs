//! Files: read ahead, their checksums, and how far a reader or writer has come.

pub(crate) mod checksum;
#[cfg(feature = "model")]
pub(crate) mod foreign;
mod progress;
#[cfg(feature = "model")]
pub(crate) mod read_ahead;
pub(crate) mod temporary;

pub(crate) use checksum::xxh64;
pub use progress::Progress;
