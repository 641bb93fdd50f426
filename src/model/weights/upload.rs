//! Matrices on their way from files to the device: several threads read, hash, check and convert their rows, and the one that
//! loads writes them, in order.

use super::matrix::{Matrix, Piece};
use super::part::{Counted, RowsPart};
use super::reader::WeightReader;
use super::store::PART_BYTES;
use super::stored::{halves, Stored};
use crate::error::{Error, Result};
use crate::io::in_order::in_order;
use crate::nn::{largest_magnitude, PackedRows, RowPacker, WeightWriter};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Of a file, worked on at a time where numbers are converted: what is made of them then stays in the processor's caches, and
/// in memory that the allocator has at hand.
const BLOCK_BYTES: usize = 32 << 10;
/// No number below it rounds to one that f16 lacks.
const BEYOND_F16: f32 = 65520.0;

/// Rows that become numbers, and what must be true of them.
#[derive(Clone, Copy)]
pub(super) struct Numbers<'j> {
    pub(super) stored: Stored,
    /// Elements of a row.
    pub(super) in_dim: usize,
    /// Of a row in the file.
    pub(super) row_bytes: usize,
    /// What each row is multiplied by; none where nothing is.
    pub(super) factors: Option<&'j [f32]>,
    /// Whether they are kept in f16, or in less.
    pub(super) in_halves: bool,
}

/// What is wrong with a tensor's rows.
pub(super) enum RowsFault {
    /// In words.
    Tensor(String),
    /// As a weight of blocks says it.
    Blocks(Error),
    Other(Error),
}

impl From<Error> for RowsFault {
    fn from(error: Error) -> Self {
        RowsFault::Other(error)
    }
}

impl Numbers<'_> {
    /// The numbers of whole rows, some rows at a time, multiplied by what they are to be.
    pub(super) fn each(self, bytes: &[u8], mut each: impl FnMut(&[f32]) -> Result<()>) -> Result<(), RowsFault> {
        let mut factors = self.factors.into_iter().flatten();
        let block_bytes = (BLOCK_BYTES / self.row_bytes).max(1) * self.row_bytes;
        bytes.chunks(block_bytes).try_for_each(|block| {
            let mut values = self.stored.decoded(block);
            self.check(&values).map_err(RowsFault::Tensor)?;
            for (row, factor) in values.chunks_exact_mut(self.in_dim.max(1)).zip(&mut factors) {
                row.iter_mut().for_each(|w| *w *= factor);
            }
            Ok(each(&values)?)
        })
    }

    /// Values of a matrix must fit the dtype that matrices are kept in.
    fn check(self, values: &[f32]) -> Result<(), String> {
        let beyond = if self.in_halves { BEYOND_F16 } else { f32::INFINITY };
        if largest_magnitude(values) < beyond {
            return Ok(());
        }
        check_finite(values)?;
        match values.iter().find(|v| v.abs() >= beyond) {
            Some(v) => Err(format!("holds {v}, beyond f16: load the model with DType::F32")),
            None => Ok(()),
        }
    }
}

/// Errors: in words.
pub(super) fn check_finite(values: &[f32]) -> Result<(), String> {
    match values.iter().find(|v| !v.is_finite()) {
        Some(v) => Err(format!("holds {v}")),
        None => Ok(()),
    }
}

/// What a part's rows become.
#[derive(Clone)]
enum RowsWay {
    /// F16 rows that are F16 rows on the device.
    Copied,
    /// Blocks that stay blocks.
    Kept,
    Converted,
    /// These columns of the rows, as rows.
    Columns(Range<usize>),
}

/// A part of a matrix, for whichever thread comes to it.
struct Job<'j, 'a> {
    tensor: &'j str,
    part: RowsPart<'j, 'a>,
    way: RowsWay,
    numbers: Numbers<'j>,
    packer: RowPacker,
}

/// What was made of it, if it could be read.
struct Done<'j> {
    tensor: &'j str,
    counted: Result<Counted>,
    packed: Result<PackedRows, RowsFault>,
}

impl<'j> Job<'j, '_> {
    fn run(self, memory: &mut Vec<u8>, mut made: PackedRows) -> Done<'j> {
        let read = match self.way {
            RowsWay::Copied => self.part.read_to(&mut made.rows).map(|counted| (&[][..], counted)),
            _ => self.part.read(memory),
        };
        match read {
            Err(e) => Done { tensor: self.tensor, counted: Err(e), packed: Ok(made) },
            Ok((bytes, counted)) => {
                let packed = self.pack(bytes, &mut made).map(|()| made);
                Done { tensor: self.tensor, counted: Ok(counted), packed }
            }
        }
    }

    /// Of what was read, unless it is copied.
    fn pack(&self, bytes: &[u8], made: &mut PackedRows) -> Result<(), RowsFault> {
        match &self.way {
            RowsWay::Copied => {
                // Which one it is, is looked for where there is one.
                match any_odd_f16(&made.rows) {
                    true => check_finite(&halves(&made.rows)).map_err(RowsFault::Tensor),
                    false => Ok(()),
                }
            }
            RowsWay::Kept => self.packer.blocks(bytes, made).map_err(RowsFault::Blocks),
            RowsWay::Converted => self.numbers.each(bytes, |values| self.packer.values(values, made)),
            RowsWay::Columns(columns) => {
                let mut all = Vec::new();
                self.numbers.each(bytes, |values| {
                    all.extend_from_slice(values);
                    Ok(())
                })?;
                Ok(self.packer.values(&transposed(&all, self.numbers.in_dim, columns.clone()), made)?)
            }
        }
    }
}

/// Some columns of rows, as rows.
fn transposed(values: &[f32], in_dim: usize, columns: Range<usize>) -> Vec<f32> {
    let rows = values.len() / in_dim.max(1);
    let places = columns.flat_map(|column| (0..rows).map(move |row| row * in_dim + column));
    places.filter_map(|i| values.get(i).copied()).collect()
}

impl WeightReader<'_> {
    /// Reads matrices, their rows as they come, behind what a weight has.
    pub(super) fn write(&self, weight: &mut WeightWriter, matrices: &[Matrix]) -> Result<()> {
        let (mut jobs, mut packer) = (Vec::new(), weight.packer());
        for piece in matrices.iter().flat_map(|matrix| &matrix.pieces) {
            self.add_jobs(&mut jobs, weight, packer, piece)?;
            packer = packer.behind(piece.len());
        }
        // What was written serves the next parts.
        let spare: Mutex<Vec<PackedRows>> = Mutex::default();
        let spare = || spare.lock().unwrap_or_else(PoisonError::into_inner);
        in_order(
            jobs,
            |memory, job| {
                // By itself, or the lock would be held while the job is done.
                let made = spare().pop().unwrap_or_default();
                job.run(memory, made)
            },
            |done| {
                self.store.count(done.counted?);
                let mut made = done.packed.map_err(|fault| self.of_fault(done.tensor, fault))?;
                weight.push_packed(&mut made)?;
                made.clear();
                spare().push(made);
                Ok(())
            },
        )
    }

    fn add_jobs<'j>(
        &'j self,
        jobs: &mut Vec<Job<'j, 'j>>,
        weight: &WeightWriter,
        mut packer: RowPacker,
        piece: &'j Piece,
    ) -> Result<()> {
        let place = self.known(&piece.tensor)?;
        let plain = piece.factors.is_none();
        let (way, part_bytes) = match (place.stored, weight.takes_blocks()) {
            _ if piece.columns.is_some() => (RowsWay::Columns(piece.columns.clone().unwrap_or_default()), usize::MAX),
            (Stored::F16, _) if plain && weight.takes_f16() => (RowsWay::Copied, PART_BYTES),
            (Stored::Blocks(stored), Some(block)) if stored == block && plain => (RowsWay::Kept, PART_BYTES),
            _ => (RowsWay::Converted, PART_BYTES),
        };
        let numbers = self.numbers(piece, place);
        let mut done = 0;
        let rows = (piece.rows.clone(), self.cut_bytes(piece, place));
        for part in self.store.parts(&piece.tensor, place, rows, part_bytes) {
            let rows = part.rows();
            let factors = piece.factors.as_ref().and_then(|all| all.get(done..done + rows));
            let numbers = Numbers { factors, ..numbers };
            jobs.push(Job { tensor: &piece.tensor, part, way: way.clone(), numbers, packer });
            packer = packer.behind(rows);
            done += rows;
        }
        Ok(())
    }

    pub(super) fn of_fault(&self, tensor: &str, fault: RowsFault) -> Error {
        match fault {
            RowsFault::Tensor(message) => self.bad(tensor, message),
            RowsFault::Blocks(error) => self.of_blocks(tensor, error),
            RowsFault::Other(error) => error,
        }
    }
}

/// Whether one of these f16 numbers is infinite or no number: all bits of its exponent are set. Four at a time, where the lowest
/// bit of an exponent, added to it, reaches the sign's place for those alone.
fn any_odd_f16(bytes: &[u8]) -> bool {
    const EXPONENTS: u64 = 0x7c00_7c00_7c00_7c00;
    const LOWEST: u64 = 0x0400_0400_0400_0400;
    let words = bytes.chunks_exact(8);
    let rest = words.remainder();
    let odd =
        words.filter_map(|w| w.first_chunk()).fold(0, |odd, w| odd | ((u64::from_le_bytes(*w) & EXPONENTS) + LOWEST));
    let rest = rest.chunks_exact(2).any(|b| u16::from_le_bytes([b[0], b[1]]) & 0x7c00 == 0x7c00);
    odd & 0x8000_8000_8000_8000 != 0 || rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    #[test]
    fn odd_numbers_are_found_wherever_they_are() {
        let odd = |values: &[u16]| any_odd_f16(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
        for value in 0..=u16::MAX {
            let at = usize::from(value % 7);
            let mut values = [0x7bff, 0xfbff, 0, 0x8001, 0x3c00, 0xbbff, 0x03ff];
            values[at] = value;
            assert_eq!(odd(&values), !f16::from_bits(value).is_finite(), "{value:04x} at {at}");
        }
    }
}
