//! Rows of matrices that do not lie in the files as they are read: in several tensors, or by columns.

use super::fp8::Fp8Rows;
use super::groups::Groups;
use super::stacked::{ColumnRows, Mxfp4Rows};
use super::store::{WeightFile, WeightFiles};
use super::stored::Stored;
use crate::error::{shape_text, Result};
use crate::model::config::quantised::Quantised;
use crate::model::config::Config;
use std::borrow::Cow;
use std::ops::Range;

/// Of what a matrix's rows are made.
pub(super) enum MadeRows {
    /// AWQ's and GPTQ's three tensors.
    Groups(Groups),
    /// Floats of 8 bits, and a scale for each square of them.
    Fp8(Fp8Rows),
    /// Some rows of an expert's codes and scales.
    Mxfp4(Mxfp4Rows),
    /// Some columns of an expert's matrix.
    Columns(ColumnRows),
}

impl MadeRows {
    /// Some rows, behind each other in `made`.
    ///
    /// Errors: [`ErrorKind::Io`](crate::ErrorKind::Io).
    pub(super) fn read(&self, files: &[WeightFile<'_>], rows: Range<usize>, made: &mut Vec<u8>) -> Result<()> {
        match self {
            MadeRows::Groups(groups) => groups.read(files, rows, made),
            MadeRows::Fp8(fp8) => fp8.read(files, rows, made),
            MadeRows::Mxfp4(blocks) => blocks.read(files, rows, made),
            MadeRows::Columns(columns) => columns.read(files, rows, made),
        }
    }
}

/// Rows of a tensor in a file.
#[derive(Clone, Copy)]
pub(super) struct Lines {
    pub(super) file: usize,
    pub(super) offset: u64,
    pub(super) count: usize,
    /// Of each.
    pub(super) bytes: usize,
}

impl Lines {
    /// The `n`-th of as many runs of `count` of these.
    pub(super) fn run(self, n: usize, count: usize) -> Lines {
        Lines { offset: self.offset + (n * count * self.bytes) as u64, count, ..self }
    }

    /// These lines, whole.
    pub(super) fn whole<'f>(&self, files: &'f [WeightFile<'_>], lines: Range<usize>) -> Result<Cow<'f, [u8]>> {
        files[self.file].read(self.offset + (lines.start * self.bytes) as u64, lines.len() * self.bytes)
    }

    /// These bytes of all lines.
    pub(super) fn read<'f>(&self, files: &'f [WeightFile<'_>], columns: Range<usize>) -> Result<Cow<'f, [u8]>> {
        let file = &files[self.file];
        // What is between takes less time than asking for each row.
        let whole = 4 * columns.len() >= self.bytes;
        if whole {
            let all = self.whole(files, 0..self.count)?;
            if columns.len() == self.bytes {
                return Ok(all);
            }
            return Ok(all.chunks_exact(self.bytes).flat_map(|row| &row[columns.clone()]).copied().collect());
        }
        let (mut all, mut memory) = (Vec::with_capacity(self.count * columns.len()), Vec::new());
        for row in 0..self.count {
            let offset = self.offset + (row * self.bytes + columns.start) as u64;
            all.extend_from_slice(file.read_into(offset, columns.len(), &mut memory)?);
        }
        Ok(all.into())
    }
}

impl WeightFiles<'_> {
    /// Makes one tensor of each of those that the model's files have in parts, or behind one another.
    ///
    /// Errors: [`ErrorKind::Weights`](crate::ErrorKind::Weights), [`ErrorKind::Io`](crate::ErrorKind::Io).
    pub(crate) fn with_made(self, config: &Config) -> Result<Self> {
        let store = match config.files.quantised {
            Some(Quantised::Groups(groups)) => self.with_groups(groups)?,
            Some(Quantised::Fp8 { square }) => self.with_fp8(square)?,
            None => self,
        };
        match config.experts.filter(|experts| experts.with_biases) {
            Some(experts) => store.with_stacked(config, &experts),
            None => Ok(store),
        }
    }

    /// A tensor of the files, which must have this shape and be stored so, as rows of its last dimension.
    pub(super) fn lines(&self, name: &str, stored: Stored, shape: impl AsRef<[usize]>) -> Result<Lines> {
        let shape = shape.as_ref();
        let wanted = shape_text(shape);
        let place = self.tensors.get(name).ok_or_else(|| self.bad(name, format!("missing, wanted {wanted}")))?;
        if *place.shape != *shape || place.stored != stored {
            let found = format!("has shape {} in {}", shape_text(&place.shape), place.stored);
            return Err(self.bad(name, format!("{found}, wanted {wanted} in {stored}")));
        }
        let count = place.rows();
        Ok(Lines { file: place.file, offset: place.offset, count, bytes: place.row_bytes() })
    }
}
