//! Reading a model's tensors, and putting them together as the kernels want them.

use super::matrix::{Matrix, Piece};
use super::split::{runs, Split};
use super::store::{Place, WeightFiles};
use super::upload::{check_finite, Numbers};
use crate::error::{shape_text, Error, Result};
use crate::gpu::{DType, Gpu, Tensor};
use crate::model::config::Config;
use crate::nn::{BlockType, Linear, NormShape, RmsNorm, Weight, WeightType, WeightWriter};
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
    /// Whether linears of bytes and blocks multiply few rows by dot products of bytes.
    integer_dot: bool,
    /// Whether the explicit form's matrices are kept beside the absorbed one's.
    explicit: bool,
    /// Whether what looks like a weight of the model, and is not, is left out.
    leave_out: bool,
    /// Which projections have one, if the config says so.
    biases: Option<Vec<&'static str>>,
    /// What gains of norms are beside their numbers in the files.
    gains_from: f32,
    pub(crate) used: RefCell<HashSet<String>>,
}

impl<'a> WeightReader<'a> {
    /// A reader of the tensors of `config` in `store`. `dtype` is what matrices become on the device.
    pub(crate) fn new(gpu: &'a Gpu, config: &Config, store: WeightFiles<'a>, dtype: DType) -> Self {
        let (biases, used) = (config.files.biases.clone(), RefCell::default());
        let gains_from = if config.files.gains_from_one { 1.0 } else { 0.0 };
        WeightReader {
            gpu,
            store,
            dtype,
            blocks: None,
            integer_dot: false,
            explicit: true,
            leave_out: false,
            biases,
            gains_from,
            used,
        }
    }

    /// The same with or without the matrices of explicit prefill; and whether weights without a place are left out.
    pub(crate) fn with_choices(self, explicit: bool, leave_out: bool) -> Self {
        WeightReader { explicit, leave_out, ..self }
    }

    /// The same with or without dot products of bytes.
    pub(crate) fn with_integer_dot(self, integer_dot: bool) -> Self {
        WeightReader { integer_dot, ..self }
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
        let missing = || {
            let stem = name.strip_suffix("weight").unwrap_or(name);
            let quantised = match self.has(&format!("{stem}qweight")) {
                true => format!("; there is {stem}qweight, and config.json has no quantization_config"),
                false => String::new(),
            };
            self.bad(name, format!("missing, wanted {}{quantised}", shape_text(shape)))
        };
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

    /// Whether the files have such a tensor.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.store.get(name).is_some()
    }

    /// The values of a tensor of this shape.
    pub(crate) fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let place = self.place(name, shape)?;
        let values = place.stored.decoded(&self.store.read(name, place)?);
        check_finite(&values).map_err(|why| self.bad(name, why))?;
        Ok(values)
    }

    /// The gains of a norm.
    pub(crate) fn gains(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let mut gains = self.values(&format!("{name}.weight"), shape)?;
        gains.iter_mut().for_each(|gain| *gain += self.gains_from);
        Ok(gains)
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
        let piece = Piece { tensor: tensor.into(), rows: 0..rows, factors: None, columns: None, inputs: None };
        Ok(Matrix { in_dim, pieces: vec![piece], bias: None })
    }

    /// What the rows of a piece are, as numbers.
    pub(super) fn numbers<'p>(&self, piece: &'p Piece, place: &Place) -> Numbers<'p> {
        let all = place.shape.last().copied().unwrap_or(1);
        Numbers {
            stored: place.stored,
            in_dim: piece.inputs.as_ref().map_or(all, Range::len).max(1),
            row_bytes: self.cut_bytes(piece, place).map_or(place.row_bytes(), |cut| cut.len()),
            factors: piece.factors.as_deref(),
            in_halves: self.dtype != DType::F32 || self.blocks.is_some(),
        }
    }

    /// The rows of a matrix as it was read, one by one.
    pub(crate) fn rows_of(&self, matrix: &Matrix, each: &mut dyn FnMut(&[f32])) -> Result<()> {
        matrix.pieces.iter().try_for_each(|piece| {
            let place = self.known(&piece.tensor)?;
            let numbers = self.numbers(piece, place);
            let mut factors = numbers.factors;
            self.store.read_rows(&piece.tensor, place, piece.rows.clone(), &mut |bytes| {
                let (of_these, behind) = match factors {
                    Some(all) => all.split_at_checked(bytes.len() / numbers.row_bytes).unzip(),
                    None => (None, None),
                };
                factors = behind;
                let rows = |values: &[f32]| {
                    values.chunks_exact(matrix.in_dim.max(1)).for_each(&mut *each);
                    Ok(())
                };
                let read = Numbers { factors: of_these, ..numbers }.each(bytes, rows);
                read.map_err(|fault| self.of_fault(&piece.tensor, fault))
            })
        })
    }

    /// A tensor that was looked up before.
    pub(super) fn known(&self, name: &str) -> Result<&Place> {
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
        let gain = self.gains(name, &[dim])?;
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
        self.write(&mut weight, heads)?;
        let bias = Matrix::stack(heads).bias;
        let bias = bias.map(|b| Tensor::from_slice(self.gpu, &shape[..2], &b, DType::F32)).transpose()?;
        self.linear_of(&weight.finish()?, bias.as_ref())
    }

    /// A linear of a weight that is whole, with dot products of bytes where they are wanted and there are any.
    pub(crate) fn linear_of(&self, weight: &Weight, bias: Option<&Tensor>) -> Result<Linear> {
        let linear = Linear::new(self.gpu, weight, bias)?;
        match weight.weight_type() {
            WeightType::Plain(DType::I8) | WeightType::Blocks(_) if self.integer_dot => linear.with_integer_dot(),
            _ => Ok(linear),
        }
    }

    /// A linear of one head in F32, whatever the others are: what it decides must not hang on rounding.
    pub(crate) fn exact_linear(&self, matrix: &Matrix) -> Result<Linear> {
        let mut weight =
            self.writer([1, matrix.rows(), matrix.in_dim], DType::F32.into(), std::slice::from_ref(matrix))?;
        self.write(&mut weight, std::slice::from_ref(matrix))?;
        let bias = matrix.bias().map(|bias| Tensor::from_slice(self.gpu, &[1, bias.len()], bias, DType::F32));
        Linear::new(self.gpu, &weight.finish()?, bias.transpose()?.as_ref())
    }

    /// A stack of matrices (count, rows, in_dim), read one by one. They have no biases.
    pub(crate) fn stack(&self, shape: [usize; 3], mut matrix: impl FnMut(usize) -> Result<Matrix>) -> Result<Weight> {
        let matrices = (0..shape[0]).map(&mut matrix).collect::<Result<Vec<_>>>()?;
        let mut weight = self.writer(shape, self.kind(&matrices), matrices.get(..1).unwrap_or_default())?;
        self.write(&mut weight, &matrices)?;
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
            self.write(&mut weight, std::slice::from_ref(&part))?;
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
        self.norms_of(names, shape, 0..shape.groups)
    }

    /// The same of these groups of them alone. `shape` is that of all.
    pub(crate) fn norms_of(&self, names: &[String], shape: NormShape, groups: Range<usize>) -> Result<RmsNorm> {
        let wanted = [shape.groups / names.len(), shape.dim];
        let wanted = if wanted[0] == 1 { &wanted[1..] } else { &wanted };
        let gains = names.iter().map(|name| self.gains(name, wanted));
        let gains = gains.collect::<Result<Vec<_>>>()?.concat();
        let shape = NormShape { groups: groups.len(), ..shape };
        let gains = &gains[groups.start * shape.dim..groups.end * shape.dim];
        let gains = Tensor::from_slice(self.gpu, &[shape.groups, shape.dim], gains, DType::F32)?;
        RmsNorm::new(self.gpu, &gains, shape)
    }

    /// Says that nothing more is read.
    pub(crate) fn end_report(&self) {
        self.store.end_report();
    }
}
