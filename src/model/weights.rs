//! Reading a model's tensors, and putting them together as the kernels want them.

use super::config::Config;
use super::store::Store;
use crate::error::{shape_text, Error, Result};
use crate::gpu::{DType, Gpu, Tensor};
use crate::nn::{Linear, NormShape, RmsNorm, Weight};
use half::{bf16, f16};
use safetensors::tensor::Dtype;
use std::cell::RefCell;
use std::collections::HashSet;
use std::ops::Range;

/// The tensors of a model's files, and where they go.
pub(super) struct Source<'a> {
    gpu: &'a Gpu,
    store: Store<'a>,
    /// What matrices become on the device.
    dtype: DType,
    /// Whether the explicit form's matrices are kept beside the absorbed one's.
    explicit: bool,
    /// [`Config::biases`]
    biases: Option<Vec<&'static str>>,
    used: RefCell<HashSet<String>>,
}

/// Rows of a projection, on the host.
#[derive(Clone)]
pub(super) struct Matrix {
    in_dim: usize,
    /// (rows, in_dim)
    weight: Vec<f32>,
    /// (rows)
    bias: Option<Vec<f32>>,
}

impl Matrix {
    fn rows(&self) -> usize {
        self.weight.len() / self.in_dim
    }

    /// The same without its bias in the elements `part` of each stretch of `head` rows.
    pub(super) fn without_bias(mut self, head: usize, part: Range<usize>) -> Matrix {
        let biases = self.bias.iter_mut().flatten().enumerate().filter(|(row, _)| part.contains(&(row % head)));
        biases.for_each(|(_, b)| *b = 0.0);
        self
    }

    /// A few of the rows.
    pub(super) fn cut(&self, rows: Range<usize>) -> Matrix {
        let weight = self.weight[rows.start * self.in_dim..rows.end * self.in_dim].to_vec();
        Matrix { in_dim: self.in_dim, weight, bias: self.bias.as_ref().map(|b| b[rows].to_vec()) }
    }

    /// Rows below one another; where only some have a bias, the others get zeros.
    pub(super) fn stack(parts: &[Matrix]) -> Matrix {
        let has_bias = parts.iter().any(|p| p.bias.is_some());
        let bias = |p: &Matrix| p.bias.clone().unwrap_or_else(|| vec![0.0; p.rows()]);
        Matrix {
            in_dim: parts.first().map_or(1, |p| p.in_dim),
            weight: parts.iter().flat_map(|p| p.weight.iter().copied()).collect(),
            bias: has_bias.then(|| parts.iter().flat_map(bias).collect()),
        }
    }

    /// Multiplies the elements `part` of each stretch of `head` rows.
    pub(super) fn scale_rows(&mut self, head: usize, part: Range<usize>, factor: f32) {
        let scaled = |row: usize| part.contains(&(row % head));
        let rows = self.weight.chunks_exact_mut(self.in_dim).enumerate().filter(|(row, _)| scaled(*row));
        rows.for_each(|(_, row)| row.iter_mut().for_each(|w| *w *= factor));
        let biases = self.bias.iter_mut().flatten().enumerate().filter(|(row, _)| scaled(*row));
        biases.for_each(|(_, b)| *b *= factor);
    }

    /// Columns become rows. The bias, which belongs to rows, is dropped.
    pub(super) fn transposed(&self) -> Matrix {
        let rows = self.rows();
        let weight = (0..self.in_dim).flat_map(|c| (0..rows).map(move |r| self.weight[r * self.in_dim + c]));
        Matrix { in_dim: rows, weight: weight.collect(), bias: None }
    }
}

impl<'a> Source<'a> {
    /// A reader of the tensors of `config` in `store`. `dtype` is what matrices become on the device.
    pub(super) fn new(gpu: &'a Gpu, config: &Config, store: Store<'a>, dtype: DType) -> Self {
        Source { gpu, store, dtype, explicit: true, biases: config.biases.clone(), used: RefCell::default() }
    }

    /// The same with or without the matrices of explicit prefill.
    pub(super) fn with_explicit(self, explicit: bool) -> Self {
        Source { explicit, ..self }
    }

    /// Whether those are kept.
    pub(super) fn keeps_explicit(&self) -> bool {
        self.explicit
    }

    pub(super) fn gpu(&self) -> &'a Gpu {
        self.gpu
    }

    /// Of all that was read.
    pub(super) fn checksum(&self) -> u64 {
        self.store.checksum()
    }

    fn bad(&self, tensor: &str, message: String) -> Error {
        self.store.bad(tensor, message)
    }

    /// The values of a tensor of this shape.
    fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let missing = || self.bad(name, format!("missing, wanted {}", shape_text(shape)));
        let place = self.store.get(name).ok_or_else(missing)?;
        self.used.borrow_mut().insert(name.to_string());
        // (1, 128) is as good as (128).
        let significant = |shape: &[usize]| shape.iter().copied().skip_while(|d| *d == 1).collect::<Vec<_>>();
        if significant(&place.shape) != significant(shape) {
            let message = format!("has shape {}, wanted {}", shape_text(&place.shape), shape_text(shape));
            return Err(self.bad(name, message));
        }
        let decode = decoder(place.dtype)
            .ok_or_else(|| self.bad(name, format!("has dtype {:?}, wanted F32, F16 or BF16", place.dtype)))?;
        let values = decode(&self.store.read(name, place)?);
        match values.iter().find(|v| !v.is_finite()) {
            Some(v) => Err(self.bad(name, format!("holds {v}"))),
            None => Ok(values),
        }
    }

    /// The values of a matrix, which must fit the dtype that matrices are kept in.
    fn matrix_values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let values = self.values(name, shape)?;
        let beyond = |v: &&f32| self.dtype != DType::F32 && !f16::from_f32(**v).is_finite();
        match values.iter().find(beyond) {
            Some(v) => Err(self.bad(name, format!("holds {v}, beyond f16: load the model with DType::F32"))),
            None => Ok(values),
        }
    }

    /// `{name}.weight` (rows, in_dim) and, if it has one ([`Config::biases`]), `{name}.bias` (rows).
    pub(super) fn matrix(&self, name: &str, rows: usize, in_dim: usize) -> Result<Matrix> {
        let weight = self.matrix_values(&format!("{name}.weight"), &[rows, in_dim])?;
        let bias = format!("{name}.bias");
        let there = self.store.get(&bias).is_some();
        let part = name.rsplit('.').next().unwrap_or(name);
        let has_bias = self.biases.as_ref().map_or(there, |parts| parts.contains(&part));
        if has_bias && !there {
            let why = format!("missing, wanted {}: by its config.json this model has it", shape_text(&[rows]));
            return Err(self.bad(&bias, why));
        }
        let bias = has_bias.then(|| self.values(&bias, &[rows])).transpose()?;
        Ok(Matrix { in_dim, weight, bias })
    }

    /// `{name}.weight` (rows, in_dim) of what can have no bias.
    pub(super) fn bare_matrix(&self, name: &str, rows: usize, in_dim: usize) -> Result<Matrix> {
        let bias = format!("{name}.bias");
        if self.store.get(&bias).is_some() {
            return Err(self.bad(&bias, "is not supported: routers and experts have no bias".into()));
        }
        let weight = self.matrix_values(&format!("{name}.weight"), &[rows, in_dim])?;
        Ok(Matrix { in_dim, weight, bias: None })
    }

    /// `{name}.weight` (dim) as the gain of a norm that is fused with the product behind it.
    pub(super) fn normed(&self, linear: Linear, name: &str, eps: f32) -> Result<Linear> {
        let dim = linear.weight().in_dim();
        let gain = self.values(&format!("{name}.weight"), &[dim])?;
        linear.with_norm(&Tensor::from_f32(self.gpu, &[1, dim], &gain, DType::F32)?, eps)
    }

    /// A linear of one head.
    pub(super) fn linear(&self, matrix: &Matrix) -> Result<Linear> {
        self.linear_heads(std::slice::from_ref(matrix))
    }

    /// A linear of one matrix per head, all of one shape.
    pub(super) fn linear_heads(&self, heads: &[Matrix]) -> Result<Linear> {
        let all = Matrix::stack(heads);
        let shape = [heads.len(), all.rows() / heads.len(), all.in_dim];
        let weight = Weight::new(self.gpu, shape, &all.weight, self.dtype)?;
        let bias = all.bias.map(|b| Tensor::from_f32(self.gpu, &shape[..2], &b, DType::F32)).transpose()?;
        Linear::new(self.gpu, &weight, bias.as_ref())
    }

    /// A linear of one head in F32, whatever the others are: what it decides must not hang on rounding.
    pub(super) fn exact_linear(&self, matrix: &Matrix) -> Result<Linear> {
        let shape = [1, matrix.rows(), matrix.in_dim];
        Linear::new(self.gpu, &Weight::new(self.gpu, shape, &matrix.weight, DType::F32)?, None)
    }

    /// A stack of matrices (count, rows, in_dim), read one by one. They have no biases.
    pub(super) fn stack(&self, shape: [usize; 3], mut matrix: impl FnMut(usize) -> Result<Matrix>) -> Result<Weight> {
        Weight::from_heads(self.gpu, shape, self.dtype, |head| Ok(matrix(head)?.weight))
    }

    /// A tensor (dim) in F32.
    pub(super) fn vector(&self, name: &str, dim: usize) -> Result<Tensor> {
        Tensor::from_f32(self.gpu, &[dim], &self.values(name, &[dim])?, DType::F32)
    }

    /// `{name}.weight` (rows, dim) as a table of rows; in F16 where matrices are in I8.
    pub(super) fn table(&self, name: &str, rows: usize, dim: usize) -> Result<Weight> {
        let values = self.matrix_values(&format!("{name}.weight"), &[rows, dim])?;
        let dtype = if self.dtype == DType::I8 { DType::F16 } else { self.dtype };
        Weight::new(self.gpu, [1, rows, dim], &values, dtype)
    }

    /// `{name}.weight` (groups, dim) as the gain of a norm.
    pub(super) fn norm(&self, name: &str, shape: NormShape) -> Result<RmsNorm> {
        self.norms(std::slice::from_ref(&name.to_string()), shape)
    }

    /// The same of several tensors, each of as many groups.
    pub(super) fn norms(&self, names: &[String], shape: NormShape) -> Result<RmsNorm> {
        let wanted = [shape.groups / names.len(), shape.dim];
        let wanted = if wanted[0] == 1 { &wanted[1..] } else { &wanted };
        let gains = names.iter().map(|name| self.values(&format!("{name}.weight"), wanted));
        let gains = gains.collect::<Result<Vec<_>>>()?.concat();
        let gains = Tensor::from_f32(self.gpu, &[shape.groups, shape.dim], &gains, DType::F32)?;
        RmsNorm::new(self.gpu, &gains, shape)
    }

    /// Says which tensors of the file the model has no use for.
    pub(super) fn warn_of_unused(&self) {
        let used = self.used.borrow();
        for name in self.store.names().filter(|n| !used.contains(*n)) {
            log::warn!("{}", self.bad(name, "is not part of this model and is left out".into()));
        }
    }
}

type Decode = fn(&[u8]) -> Vec<f32>;

/// From bytes to numbers, for the dtypes that weights may have in a file.
fn decoder(dtype: Dtype) -> Option<Decode> {
    match dtype {
        Dtype::F32 => Some(|b| b.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()),
        Dtype::F16 => Some(|b| b.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()),
        Dtype::BF16 => Some(|b| b.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()),
        _ => None,
    }
}
