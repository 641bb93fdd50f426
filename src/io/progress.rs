//! How far a reader or writer of a file has come. Pure.

/// How far a save or a load is. Reported after each block of at most 1 MiB, or one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the file written or read.
    pub bytes: u64,
    /// Bytes of the whole file.
    pub total_bytes: u64,
}
