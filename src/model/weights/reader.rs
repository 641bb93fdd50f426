//! Reading a model's tensors, and putting them together as the kernels want them.

use super::matrix::{Matrix, Piece};
use super::split::{runs, Split};
use super::store::{Place, WeightFiles};
use super::stored::{halves, Stored};
use crate::error::{shape_text, Error, Result};
use crate::gpu::{DType, Gpu, Tensor};
use crate::model::config::Config;
use crate::nn::{largest_magnitude, BlockType, Linear, NormShape, RmsNorm, Weight, WeightType, WeightWriter};
use std::cell::RefCell;
use std::collections::HashSet;
use std::ops::Range;

/// The tensors of a model's files, and where they go.
pub(crate) struct WeightReader<'a> {
    gpu: &'a Gpu,
    pub(crate) store: WeightFiles<'a>,
    /// What matrices become on the device.
    pub(super) dtype: DType,
    /// In the place of `dtype`, of rows that are whole blocks.
    pub(super) blocks: Option<BlockType>,
    /// Whether the explicit form's matrices are kept beside the absorbed one's.
    explicit: bool,
    /// Whether what looks like a weight of the model, and is not, is left out.
    leave_out: bool,
    /// Which projections have one, if the config says so.
    biases: Option<Vec<&'static str>>,
    pub(crate) used: RefCell<HashSet<String>>,
}

impl<'a> WeightReader<'a> {
    /// A reader of the tensors of `config` in `store`. `dtype` is what matrices become on the device.
    pub(crate) fn new(gpu: &'a Gpu, config: &Config, store: WeightFiles<'a>, dtype: DType) -> Self {
        let (biases, used) = (config.files.biases.clone(), RefCell::default());
        WeightReader { gpu, store, dtype, blocks: None, explicit: true, leave_out: false, biases, used }
    }

    /// The same with or without the matrices of explicit prefill; and whether weights without a place are left out.
    pub(crate) fn with_choices(self, explicit: bool, leave_out: bool) -> Self {
        WeightReader { explicit, leave_out, ..self }
    }

    /// Whether the matrices of explicit prefill are kept.
    pub(crate) fn keeps_explicit(&self) -> bool {
        self.explicit
    }

    pub(crate) fn leaves_out(&self) -> bool {
        self.leave_out
    }

    pub(crate) fn gpu(&self) -> &'a Gpu {
        self.gpu
    }

    /// Of all that was read.
    pub(crate) fn checksum(&self) -> u64 {
        self.store.checksum()
    }

    pub(super) fn bad(&self, tensor: &str, message: String) -> Error {
        self.store.bad(tensor, message)
    }

    /// A tensor, which must have this shape and a dtype that weights may have.
    pub(crate) fn place(&self, name: &str, shape: &[usize]) -> Result<&Place> {
        let missing = || self.bad(name, format!("missing, wanted {}", shape_text(shape)));
        let place = self.store.get(name).ok_or_else(missing)?;
        self.used.borrow_mut().insert(name.to_string());
        // (1, 128) is as good as (128).
        let significant = |shape: &[usize]| shape.iter().copied().skip_while(|d| *d == 1).collect::<Vec<_>>();
        if significant(&place.shape) != significant(shape) {
            let message = format!("has shape {}, wanted {}", shape_text(&place.shape), shape_text(shape));
            return Err(self.bad(name, message));
        }
        if !place.stored.is_read() {
            let why = format!("has dtype {}, wanted {}", place.stored, place.stored.wanted());
            return Err(self.bad(name, why));
        }
        Ok(place)
    }

    /// The values of a tensor of this shape.
    pub(crate) fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let place = self.place(name, shape)?;
        let values = place.stored.decoded(&self.store.read(name, place)?);
        self.check_finite(name, &values)?;
        Ok(values)
    }

    fn check_finite(&self, name: &str, values: &[f32]) -> Result<()> {
        match values.iter().find(|v| !v.is_finite()) {
            Some(v) => Err(self.bad(name, format!("holds {v}"))),
            None => Ok(()),
        }
    }

    /// Values of a matrix must fit the dtype that matrices are kept in.
    fn check_fits(&self, name: &str, values: &[f32]) -> Result<()> {
        // No larger one rounds to an f16.
        let beyond = if self.dtype == DType::F32 && self.blocks.is_none() { f32::INFINITY } else { 65520.0 };
        if largest_magnitude(values) < beyond {
            return Ok(());
        }
        self.check_finite(name, values)?;
        match values.iter().find(|v| v.abs() >= beyond) {
            Some(v) => Err(self.bad(name, format!("holds {v}, beyond f16: load the model with DType::F32"))),
            None => Ok(()),
        }
    }

    /// `{name}.weight` (rows, in_dim) and, if it has one, `{name}.bias` (rows).
    pub(crate) fn matrix(&self, name: &str, rows: usize, in_dim: usize) -> Result<Matrix> {
        let weight = self.bare(&format!("{name}.weight"), rows, in_dim)?;
        let bias = format!("{name}.bias");
        let there = self.store.get(&bias).is_some();
        let part = name.rsplit('.').next().unwrap_or(name);
        let has_bias = self.biases.as_ref().map_or(there, |parts| parts.contains(&part));
        if has_bias && !there {
            let why = format!("missing, wanted {}: by its config.json this model has it", shape_text(&[rows]));
            return Err(self.bad(&bias, why));
        }
        let bias = has_bias.then(|| self.values(&bias, &[rows])).transpose()?;
        Ok(Matrix { bias, ..weight })
    }

    fn bare(&self, tensor: &str, rows: usize, in_dim: usize) -> Result<Matrix> {
        self.place(tensor, &[rows, in_dim])?;
        let piece = Piece { tensor: tensor.into(), rows: 0..rows, factors: None, columns: None };
        Ok(Matrix { in_dim, pieces: vec![piece], bias: None })
    }

    /// Reads a matrix, its rows as they come, behind what a weight has.
    fn write(&self, weight: &mut WeightWriter, matrix: &Matrix) -> Result<()> {
        matrix.pieces.iter().try_for_each(|piece| match &piece.columns {
            Some(columns) => weight.push(&self.columns(piece, columns.clone())?),
            None => self.write_rows(weight, piece),
        })
    }

    fn write_rows(&self, weight: &mut WeightWriter, piece: &Piece) -> Result<()> {
        let place = self.known(&piece.tensor)?;
        if piece.factors.is_none() && place.stored == Stored::F16 && weight.takes_f16() {
            return self.store.read_rows(&piece.tensor, place, piece.rows.clone(), &mut |bytes| {
                // Which one it is, is looked for where there is one.
                if any_odd_f16(bytes) {
                    self.check_finite(&piece.tensor, &halves(bytes))?;
                }
                weight.push_f16(bytes)
            });
        }
        match (place.stored, weight.takes_blocks()) {
            (Stored::Blocks(stored), Some(block)) if stored == block && piece.factors.is_none() => {
                self.store.read_rows(&piece.tensor, place, piece.rows.clone(), &mut |blocks| {
                    weight.push_blocks(blocks).map_err(|e| self.of_blocks(&piece.tensor, e))
                })
            }
            _ => self.read_values(piece, &mut |values| weight.push(values)),
        }
    }

    /// The rows of a piece as they come, a few at a time, multiplied by what they are to be.
    fn read_values(&self, piece: &Piece, each: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()> {
        let place = self.known(&piece.tensor)?;
        let in_dim = place.shape.last().copied().unwrap_or(1).max(1);
        let mut factors = piece.factors.iter().flatten();
        let row_bytes = place.row_bytes();
        let block_bytes = (BLOCK_BYTES / row_bytes).max(1) * row_bytes;
        self.store.read_rows(&piece.tensor, place, piece.rows.clone(), &mut |bytes| {
            bytes.chunks(block_bytes).try_for_each(|block| {
                let mut values = place.stored.decoded(block);
                self.check_fits(&piece.tensor, &values)?;
                for (row, factor) in values.chunks_exact_mut(in_dim).zip(&mut factors) {
                    row.iter_mut().for_each(|w| *w *= factor);
                }
                each(&values)
            })
        })
    }

    /// The rows of a matrix as it was read, one by one.
    pub(crate) fn rows_of(&self, matrix: &Matrix, each: &mut dyn FnMut(&[f32])) -> Result<()> {
        matrix.pieces.iter().try_for_each(|piece| {
            self.read_values(piece, &mut |values| {
                values.chunks_exact(matrix.in_dim.max(1)).for_each(&mut *each);
                Ok(())
            })
        })
    }

    /// Some columns of a piece, as rows.
    fn columns(&self, piece: &Piece, columns: Range<usize>) -> Result<Vec<f32>> {
        let mut values = Vec::new();
        self.read_values(piece, &mut |rows| {
            values.extend_from_slice(rows);
            Ok(())
        })?;
        let (rows, in_dim) = (piece.rows.len(), values.len() / piece.rows.len().max(1));
        Ok(columns
            .flat_map(|c| (0..rows).map(move |r| r * in_dim + c))
            .filter_map(|i| values.get(i).copied())
            .collect())
    }

    /// A tensor that was looked up before.
    fn known(&self, name: &str) -> Result<&Place> {
        self.store.get(name).ok_or_else(|| self.bad(name, "missing".into()))
    }

    /// `{name}.weight` (rows, in_dim) of what can have no bias.
    pub(crate) fn bare_matrix(&self, name: &str, rows: usize, in_dim: usize) -> Result<Matrix> {
        let bias = format!("{name}.bias");
        if self.store.get(&bias).is_some() {
            return Err(self.bad(&bias, "is not supported: routers and experts have no bias".into()));
        }
        self.bare(&format!("{name}.weight"), rows, in_dim)
    }

    /// `{name}.weight` (dim) as the gain of a norm that is fused with the product behind it.
    pub(crate) fn normed(&self, linear: Split, name: &str, eps: f32) -> Result<Split> {
        let dim = linear.in_dim();
        let gain = self.values(&format!("{name}.weight"), &[dim])?;
        let gain = Tensor::from_slice(self.gpu, &[1, dim], &gain, DType::F32)?;
        linear.map(|linear| linear.with_norm(&gain, eps))
    }

    /// A linear of one head, in as many parts as the device needs.
    pub(crate) fn linear(&self, matrix: &Matrix) -> Result<Split> {
        self.side_by_side(std::slice::from_ref(matrix))
    }

    /// The same of several matrices of one shape, below one another in each part: output `i` is of row `i` of each.
    pub(crate) fn side_by_side(&self, matrices: &[Matrix]) -> Result<Split> {
        let part = |run: &Range<usize>| {
            let rows: Vec<Matrix> = matrices.iter().map(|matrix| matrix.cut(run.clone())).collect();
            self.linear_heads(&[Matrix::stack(&rows)])
        };
        Ok(Split::new(self.parts(matrices).iter().map(part).collect::<Result<_>>()?))
    }

    /// A linear of one matrix per head, all of one shape.
    pub(crate) fn linear_heads(&self, heads: &[Matrix]) -> Result<Linear> {
        let (rows, in_dim) = heads.first().map_or((0, 0), |head| (head.rows(), head.in_dim));
        let shape = [heads.len(), rows, in_dim];
        let mut weight = self.writer(shape, self.kind(heads), heads)?;
        heads.iter().try_for_each(|head| self.write(&mut weight, head))?;
        let bias = Matrix::stack(heads).bias;
        let bias = bias.map(|b| Tensor::from_slice(self.gpu, &shape[..2], &b, DType::F32)).transpose()?;
        Linear::new(self.gpu, &weight.finish()?, bias.as_ref())
    }

    /// A linear of one head in F32, whatever the others are: what it decides must not hang on rounding.
    pub(crate) fn exact_linear(&self, matrix: &Matrix) -> Result<Linear> {
        let mut weight =
            self.writer([1, matrix.rows(), matrix.in_dim], DType::F32.into(), std::slice::from_ref(matrix))?;
        self.write(&mut weight, matrix)?;
        Linear::new(self.gpu, &weight.finish()?, None)
    }

    /// A stack of matrices (count, rows, in_dim), read one by one. They have no biases.
    pub(crate) fn stack(&self, shape: [usize; 3], mut matrix: impl FnMut(usize) -> Result<Matrix>) -> Result<Weight> {
        let matrices = (0..shape[0]).map(&mut matrix).collect::<Result<Vec<_>>>()?;
        let mut weight = self.writer(shape, self.kind(&matrices), matrices.get(..1).unwrap_or_default())?;
        matrices.iter().try_for_each(|matrix| self.write(&mut weight, matrix))?;
        weight.finish()
    }

    /// A tensor (dim) in F32.
    pub(crate) fn vector(&self, name: &str, dim: usize) -> Result<Tensor> {
        Tensor::from_slice(self.gpu, &[dim], &self.values(name, &[dim])?, DType::F32)
    }

    /// `{name}.weight` (rows, dim) as a table of rows, in as many parts as the device needs; in F16 where matrices are in
    /// I8, in Q8_0 where they are in blocks.
    pub(crate) fn table(&self, name: &str, rows: usize, dim: usize) -> Result<Vec<Weight>> {
        let table = self.bare(&format!("{name}.weight"), rows, dim)?;
        let kind = self.table_kind(&table);
        let part = |run: Range<usize>| {
            let part = table.cut(run);
            let mut weight = self.writer([1, part.rows(), dim], kind, std::slice::from_ref(&part))?;
            self.write(&mut weight, &part)?;
            weight.finish()
        };
        runs(self.gpu.capabilities(), rows, 1, dim, kind).into_iter().map(part).collect()
    }

    /// Room for what is made of these matrices, by whose names an error tells what did not fit.
    fn writer(&self, shape: [usize; 3], kind: WeightType, matrices: &[Matrix]) -> Result<WeightWriter> {
        WeightWriter::new(self.gpu, shape, kind).map_err(|e| {
            let mut names: Vec<&str> = matrices.iter().flat_map(|m| &m.pieces).map(|piece| &*piece.tensor).collect();
            names.dedup();
            let what = match &names[..] {
                [] => "a matrix".into(),
                [name] => format!("tensor {name}"),
                [first, .., last] => format!("the matrix of tensors {first} to {last}"),
            };
            e.of(&format!("{what}, {} in {kind},", shape_text(&shape)))
        })
    }

    /// `{name}.weight` (groups, dim) as the gain of a norm.
    pub(crate) fn norm(&self, name: &str, shape: NormShape) -> Result<RmsNorm> {
        self.norms(std::slice::from_ref(&name.to_string()), shape)
    }

    /// The same of several tensors, each of as many groups.
    pub(crate) fn norms(&self, names: &[String], shape: NormShape) -> Result<RmsNorm> {
        let wanted = [shape.groups / names.len(), shape.dim];
        let wanted = if wanted[0] == 1 { &wanted[1..] } else { &wanted };
        let gains = names.iter().map(|name| self.values(&format!("{name}.weight"), wanted));
        let gains = gains.collect::<Result<Vec<_>>>()?.concat();
        let gains = Tensor::from_slice(self.gpu, &[shape.groups, shape.dim], &gains, DType::F32)?;
        RmsNorm::new(self.gpu, &gains, shape)
    }

    /// Says that nothing more is read.
    pub(crate) fn end_report(&self) {
        self.store.end_report();
    }
}

/// Of a file, worked on at a time where numbers are converted: what is made of them then stays in the processor's caches, and
/// in memory that the allocator has at hand.
const BLOCK_BYTES: usize = 32 << 10;

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
