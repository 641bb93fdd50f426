//! Some rows of a tensor, read at once: by any thread, of a file that others read as well.

use super::groups::Groups;
use super::store::{Data, WeightFile};
use crate::error::Result;
use crate::io::xxh64;
use std::ops::Range;

/// Some whole rows of a tensor, and where they lie.
pub(crate) struct RowsPart<'s, 'a> {
    pub(super) file: &'s WeightFile<'a>,
    pub(super) offset: u64,
    /// Of the file, which may be more than the rows.
    pub(super) bytes: usize,
    pub(super) heads: Option<Heads>,
    /// What the rows are put together of, and the files that have it.
    pub(super) groups: Option<(&'s Groups, &'s [WeightFile<'a>])>,
    pub(super) row_bytes: usize,
    /// The number of the first row.
    pub(super) first: usize,
    /// That of the tensor, hashed.
    pub(super) name: u64,
    pub(super) new: NewRows,
}

/// Rows that the file has in another order within each head: those that rotate together are neighbours there, and half a head
/// apart here.
pub(super) struct Heads {
    /// Of a head.
    pub(super) rows: usize,
    pub(super) row_bytes: usize,
    /// The bytes of the heads that are wanted, in the order here.
    pub(super) cut: Range<usize>,
}

/// Which rows of a part were not read before.
pub(super) enum NewRows {
    All,
    Some(Vec<bool>),
}

/// What a part's new rows add to the checksum, and their bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counted {
    pub(super) sum: u64,
    pub(super) bytes: u64,
}

impl RowsPart<'_, '_> {
    pub(crate) fn rows(&self) -> usize {
        match &self.heads {
            Some(heads) => heads.cut.len() / self.row_bytes,
            None => self.bytes / self.row_bytes,
        }
    }

    /// The rows, in `memory` unless they are in memory anyway.
    ///
    /// Errors: [`ErrorKind::Io`](crate::ErrorKind::Io).
    pub(crate) fn read<'b>(&'b self, memory: &'b mut Vec<u8>) -> Result<(&'b [u8], Counted)> {
        let read = match (&self.heads, self.groups) {
            (_, Some((groups, files))) => {
                groups.read(files, self.first..self.first + self.rows(), memory)?;
                memory
            }
            (None, _) => self.file.read_into(self.offset, self.bytes, memory)?,
            (Some(heads), _) => {
                let mut as_stored = Vec::new();
                let read = self.file.read_into(self.offset, self.bytes, &mut as_stored)?;
                heads.ordered(read, memory);
                &memory[heads.cut.clone()]
            }
        };
        Ok((read, self.counted(read)))
    }

    /// The same, in `memory` in any case.
    pub(crate) fn read_to(&self, memory: &mut Vec<u8>) -> Result<Counted> {
        if let (None, None, Data::File(_)) = (&self.heads, self.groups, &self.file.data) {
            return Ok(self.read(memory)?.1);
        }
        let mut own = Vec::new();
        let (read, counted) = self.read(&mut own)?;
        memory.clear();
        memory.extend_from_slice(read);
        Ok(counted)
    }

    fn counted(&self, bytes: &[u8]) -> Counted {
        let rows = bytes.chunks_exact(self.row_bytes).enumerate();
        let hash = |(i, row): (usize, &[u8])| xxh64(row, self.name.wrapping_add((self.first + i) as u64));
        let is_new = |(i, _): &(usize, &[u8])| match &self.new {
            NewRows::All => true,
            NewRows::Some(new) => new.get(*i).is_some_and(|new| *new),
        };
        let none = Counted { sum: 0, bytes: 0 };
        rows.filter(is_new).fold(none, |all, row| Counted {
            sum: all.sum.wrapping_add(hash(row)),
            bytes: all.bytes + self.row_bytes as u64,
        })
    }
}

impl Heads {
    /// Whole heads' rows, in the order here.
    fn ordered(&self, read: &[u8], ordered: &mut Vec<u8>) {
        ordered.clear();
        for head in read.chunks_exact(self.rows * self.row_bytes) {
            let row = |row: usize| &head[row * self.row_bytes..(row + 1) * self.row_bytes];
            (0..2).for_each(|half| (0..self.rows / 2).for_each(|i| ordered.extend_from_slice(row(2 * i + half))));
        }
    }
}
