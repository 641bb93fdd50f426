//! Some rows of a tensor, read at once: by any thread, of a file that others read as well.

use super::made::MadeRows;
use super::store::{Data, WeightFile};
use crate::error::Result;
use crate::io::xxh64;
use std::ops::Range;

/// Bytes of a row from which on it is read by itself, rather than with what lies between.
const CUT_BYTES: usize = 4 << 10;

/// Some whole rows of a tensor, and where they lie.
pub(crate) struct RowsPart<'s, 'a> {
    pub(super) file: &'s WeightFile<'a>,
    pub(super) offset: u64,
    /// Of the file, which may be more than the rows.
    pub(super) bytes: usize,
    pub(super) heads: Option<Heads>,
    /// What the rows are put together of, and the files that have it.
    pub(super) made: Option<(&'s MadeRows, &'s [WeightFile<'a>])>,
    pub(super) row_bytes: usize,
    /// The bytes of each row that are wanted, if not all.
    pub(super) cut: Option<Range<usize>>,
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
        if let Some(cut) = &self.cut {
            self.read_cut(cut, memory)?;
            return Ok((memory, self.counted(memory)));
        }
        let read = self.read_whole(memory)?;
        Ok((read, self.counted(read)))
    }

    /// Some bytes of each row. What lies between is read, too, where that is less work than to ask for each row by itself.
    fn read_cut(&self, cut: &Range<usize>, memory: &mut Vec<u8>) -> Result<()> {
        let plain = self.heads.is_none() && self.made.is_none();
        let by_rows = plain && cut.len() >= CUT_BYTES && 2 * cut.len() <= self.row_bytes;
        let mut read = Vec::new();
        if by_rows {
            let mut made = Vec::with_capacity(self.rows() * cut.len());
            for row in 0..self.rows() {
                let offset = self.offset + (row * self.row_bytes + cut.start) as u64;
                made.extend_from_slice(self.file.read_into(offset, cut.len(), &mut read)?);
            }
            *memory = made;
            return Ok(());
        }
        let whole = self.read_whole(&mut read)?;
        memory.clear();
        whole.chunks_exact(self.row_bytes).for_each(|row| memory.extend_from_slice(&row[cut.clone()]));
        Ok(())
    }

    fn read_whole<'b>(&'b self, memory: &'b mut Vec<u8>) -> Result<&'b [u8]> {
        match (&self.heads, self.made) {
            (_, Some((made, files))) => {
                made.read(files, self.first..self.first + self.rows(), memory)?;
                Ok(memory)
            }
            (None, _) => self.file.read_into(self.offset, self.bytes, memory),
            (Some(heads), _) => {
                let mut as_stored = Vec::new();
                let read = self.file.read_into(self.offset, self.bytes, &mut as_stored)?;
                heads.ordered(read, memory);
                Ok(&memory[heads.cut.clone()])
            }
        }
    }

    /// The same, in `memory` in any case.
    pub(crate) fn read_to(&self, memory: &mut Vec<u8>) -> Result<Counted> {
        let in_memory = self.cut.is_some() || !matches!(self.file.data, Data::Bytes(_));
        if self.heads.is_none() && self.made.is_none() && in_memory {
            return Ok(self.read(memory)?.1);
        }
        let mut own = Vec::new();
        let (read, counted) = self.read(&mut own)?;
        memory.clear();
        memory.extend_from_slice(read);
        Ok(counted)
    }

    fn counted(&self, bytes: &[u8]) -> Counted {
        let row_bytes = self.cut.as_ref().map_or(self.row_bytes, Range::len);
        let rows = bytes.chunks_exact(row_bytes).enumerate();
        let hash = |(i, row): (usize, &[u8])| xxh64(row, self.name.wrapping_add((self.first + i) as u64));
        let is_new = |(i, _): &(usize, &[u8])| match &self.new {
            NewRows::All => true,
            NewRows::Some(new) => new.get(*i).is_some_and(|new| *new),
        };
        let none = Counted { sum: 0, bytes: 0 };
        rows.filter(is_new).fold(none, |all, row| Counted {
            sum: all.sum.wrapping_add(hash(row)),
            bytes: all.bytes + row_bytes as u64,
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
