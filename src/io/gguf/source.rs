//! A header's bytes in order: no more is asked for than is left. Pure but for the reading.
#![warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use crate::error::{Error, ErrorKind, Result};
use std::io::Read;

/// Bytes that a list of strings is read in at a time.
const PART_BYTES: usize = 1 << 16;

/// What is read, where in it, and how much of it there is.
pub(super) struct Source<'a, R> {
    reader: R,
    path: &'a str,
    pub(super) at: u64,
    /// Bytes of it that a header may take.
    end: u64,
}

impl<'a, R: Read> Source<'a, R> {
    pub(super) fn new(path: &'a str, reader: R, end: u64) -> Self {
        Source { reader, path, at: 0, end }
    }

    pub(super) fn left(&self) -> u64 {
        self.end.saturating_sub(self.at)
    }

    /// An error at the place that was reached.
    pub(super) fn bad(&self, what: &str, why: &str) -> Error {
        bad(self.path, "", format!("{what}, at byte {}: {why}", self.at))
    }

    /// Fails where fewer than so many bytes are left.
    pub(super) fn expect(&self, bytes: Option<u64>, what: &str) -> Result<u64> {
        let left = self.left();
        match bytes {
            Some(bytes) if bytes <= left => Ok(bytes),
            Some(bytes) => Err(self.bad(what, &format!("{bytes} bytes are wanted, {left} are left"))),
            None => Err(self.bad(what, &format!("more than 2^64 bytes are wanted, {left} are left"))),
        }
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.reader.read_exact(bytes).map_err(|e| ErrorKind::io(self.path, e))?;
        self.at = self.at.saturating_add(bytes.len() as u64);
        Ok(())
    }

    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        self.expect(Some(N as u64), what)?;
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// So many bytes behind what `all` has. Its memory never exceeds what it has and what is left of the file.
    pub(super) fn append(&mut self, count: u64, all: &mut Vec<u8>, what: &str) -> Result<()> {
        let mut count = self.expect(Some(count), what)?;
        while count > 0 {
            let part = usize::try_from(count).unwrap_or(usize::MAX).min(PART_BYTES);
            let begin = all.len();
            if all.capacity().saturating_sub(begin) < part {
                let left = usize::try_from(self.left()).unwrap_or(usize::MAX);
                all.reserve_exact(begin.max(part).min(left));
            }
            all.resize(begin.saturating_add(part), 0);
            self.fill(all.get_mut(begin..).unwrap_or_default())?;
            count = count.saturating_sub(part as u64);
        }
        Ok(())
    }

    /// A string's bytes, at most `most` of them.
    pub(super) fn text(&mut self, most: u64, what: &str) -> Result<String> {
        let size = self.u64(what)?;
        if size > most {
            return Err(self.bad(what, &format!("a string of {size} bytes, at most {most} are known")));
        }
        let mut bytes = Vec::new();
        self.append(size, &mut bytes, what)?;
        String::from_utf8(bytes).map_err(|e| self.bad(what, &format!("no UTF-8: {e}")))
    }
}

/// An error about a tensor, or without a name about the file.
pub(super) fn bad(path: &str, tensor: &str, message: String) -> Error {
    ErrorKind::Weights { path: path.into(), tensor: tensor.into(), message }.into()
}
