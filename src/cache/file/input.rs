//! Reading a saved cache, whatever its bytes. Pure.

use super::format::{check_sum, RowBlock, SUM_BYTES};
use crate::error::{Error, ErrorKind, Result, SavedFault};
use std::io::Read;

/// A reader that knows its place, and turns what goes wrong into this crate's errors.
pub(crate) struct Input<'a, R> {
    reader: R,
    path: &'a str,
    /// Bytes read so far.
    pub(crate) at: u64,
}

impl<'a, R: Read> Input<'a, R> {
    pub(crate) fn new(reader: R, path: &'a str) -> Self {
        Input { reader, path, at: 0 }
    }

    /// Fills `bytes`.
    pub(crate) fn exact(&mut self, bytes: &mut [u8], part: impl Fn() -> String) -> Result<()> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.reader.read(&mut bytes[filled..]) {
                Ok(0) => {
                    let missing = (bytes.len() - filled) as u64;
                    return Err(self.fault(SavedFault::Truncated { part: part(), end: self.at, missing }));
                }
                Ok(n) => (filled, self.at) = (filled + n.min(bytes.len() - filled), self.at + n as u64),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.io(e)),
            }
        }
        Ok(())
    }

    /// So many bytes, in memory that grows with what there is.
    pub(crate) fn vec(&mut self, count: u64, part: &str) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = self.reader.by_ref().take(count).read_to_end(&mut bytes);
        read.map_err(|e| self.io(e))?;
        self.at += bytes.len() as u64;
        match count - bytes.len() as u64 {
            0 => Ok(bytes),
            missing => Err(self.fault(SavedFault::Truncated { part: part.into(), end: self.at, missing })),
        }
    }

    /// Fills `bytes` with a block and its checksum, and returns the rows if the checksum, of this seed, is theirs.
    pub(crate) fn block<'b>(&mut self, block: &RowBlock, bytes: &'b mut [u8], seed: u64) -> Result<&'b [u8]> {
        let name = || {
            let RowBlock { sequence, layer, first, tokens } = *block;
            format!("block of sequence {sequence}, layer {layer}, tokens {first}..{}", first + tokens)
        };
        let first = self.at;
        self.exact(bytes, name)?;
        check_sum(bytes, seed, first, name).map_err(|fault| self.fault(fault))?;
        Ok(&bytes[..bytes.len() - SUM_BYTES])
    }

    /// Nothing may follow.
    pub(crate) fn end(&mut self) -> Result<()> {
        let size = self.at;
        match self.exact(&mut [0], String::new) {
            Ok(()) => Err(self.fault(SavedFault::TooLong { size })),
            Err(e) if matches!(e.kind(), ErrorKind::Saved { fault: SavedFault::Truncated { .. }, .. }) => Ok(()),
            Err(e) => Err(e),
        }
    }

    pub(crate) fn fault(&self, fault: SavedFault) -> Error {
        ErrorKind::Saved { path: self.path.into(), fault }.into()
    }

    fn io(&self, e: std::io::Error) -> Error {
        Error::from(ErrorKind::Io { path: self.path.into(), message: e.to_string() }).caused_by(e)
    }
}
