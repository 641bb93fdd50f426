//! `y = W x + b`, for one matrix or one per head. The absorbed projections of GLA and MLA are this kernel too, and so are
//! a norm before a projection, a SwiGLU after it, and the rotation of what lies beside the input.

mod blocks;
mod cached;
mod dispatch_flop;
pub(super) mod matrix;
mod packer;
mod run;
pub(super) mod shape;
pub(super) mod specs;
pub(super) mod weight;
mod weight_type;
mod writer;

pub use blocks::BlockType;
pub use cached::AppendRows;
pub use dispatch_flop::measure_dispatch_flop;
pub use matrix::MatrixTile;
#[cfg(feature = "model")]
pub(crate) use packer::{PackedRows, RowPacker};
pub use run::LinearArgs;
#[cfg(test)]
pub(super) use run::PARAM_FIELDS;
pub use shape::LinearTuning;
pub(crate) use weight::largest_magnitude;
pub use weight::{quantise, Weight};
pub use weight_type::WeightType;
pub(crate) use writer::WeightWriter;

use super::RmsNorm;
use crate::error::{ErrorKind, Result};
use crate::gpu::{DType, Gpu, Kernel, Tensor};
use crate::rope::RopePairs;
use crate::sizes::{sum_of_products, MOST_ROW};
use cached::CachedOutputs;
use matrix::pack_spec;
use shape::{Fusion, Shape};
use std::sync::{Arc, OnceLock};

/// A linear layer on the device: `y[r, h, :] (+)= scale (W[h] x[r, h, :] + b[h])`, the scale 1 unless it is given.
///
/// Its kernels, one per class of row counts, are compiled at their first use, or ahead by [`Linear::prepare`].
///
/// On a device of [`Tier::Matrix`](crate::Tier), with F16, I8 or block weights, more than [`LinearTuning::max_rows`] rows are rounded
/// to f16 before they are multiplied, each row under a power of two of its own, whatever its size: so each element is off by at
/// most 2^-11 of itself; so are the numbers that blocks stand for, those below 2^-14 by 2^-25. Sums are f32.
#[derive(Debug, Clone)]
pub struct Linear {
    gpu: Gpu,
    weight: Weight,
    /// (heads, out_dim) F32.
    bias: Option<Tensor>,
    /// Gain (in_dim) F32 and eps of a norm of the input.
    norm: Option<(Tensor, f32)>,
    swiglu: bool,
    /// Of the SwiGLU, that it is a GeGLU.
    gelu: bool,
    /// What outputs are capped at.
    softcap: Option<f32>,
    /// Elements behind the input of each head that are rotated behind its output.
    tail: Option<(usize, RopePairs)>,
    /// A norm of what lies behind the input.
    rest: Option<RmsNorm>,
    /// Whether the outputs are queries and new rows of a cache, or the rest is such rows; and of which cache.
    cached: Option<CachedOutputs>,
    /// Dot products of bytes, of few rows.
    integers: bool,
    /// What outputs are multiplied by.
    scale: f32,
    /// Of one row of input, of more, and of 3 to 8.
    tunings: [LinearTuning; 3],
    /// Of the device's cooperative matrices, from large to small.
    tiles: Vec<MatrixTile>,
    /// Those of the tuning by rows, then the tiles.
    shapes: Vec<Shape>,
    /// Per shape: for input at multiples of 4 elements, then for any; last those that pack input. Shared by clones.
    kernels: Arc<[[OnceLock<Kernel>; 2]]>,
}

impl Linear {
    /// A product with `weight`. `bias` is (heads, out_dim) F32.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Shape`], [`ErrorKind::DType`].
    pub fn new(gpu: &Gpu, weight: &Weight, bias: Option<&Tensor>) -> Result<Self> {
        if let Some(bias) = bias {
            bias.expect("bias", &[weight.heads(), weight.out_dim()], DType::F32)?;
        }
        let tunings = LinearTuning::of(gpu.capabilities(), weight);
        let tiles = MatrixTile::all(gpu.capabilities(), weight.weight_type());
        let shapes = shapes(&tunings[1], &tiles);
        Ok(Linear {
            gpu: gpu.clone(),
            weight: weight.clone(),
            bias: bias.cloned(),
            norm: None,
            swiglu: false,
            gelu: false,
            softcap: None,
            tail: None,
            rest: None,
            cached: None,
            integers: false,
            scale: 1.0,
            tunings,
            tiles,
            kernels: fresh(shapes.len()),
            shapes,
        })
    }

    /// The same with a norm before it: the input is `gain * x / sqrt(mean(x^2) + eps)`, of each row and head by itself
    /// ([`reference::norm_linear`](crate::reference::norm_linear)). `gain` is (1, in_dim) F32.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Shape`], [`ErrorKind::DType`], [`ErrorKind::Argument`] for an `eps` that is not positive, or
    /// after [`Linear::with_rest`].
    pub fn with_norm(self, gain: &Tensor, eps: f32) -> Result<Self> {
        if !(eps > 0.0 && eps.is_finite()) {
            return Err(ErrorKind::argument("eps", format!("{eps} is not positive")));
        }
        gain.expect("gain", &[1, self.weight.in_dim()], DType::F32)?;
        if self.rest.is_some() {
            return Err(ErrorKind::argument("norm", "comes before the rest"));
        }
        Ok(Linear { norm: Some((gain.clone(), eps)), ..self.without_kernels() })
    }

    /// The same with SwiGLU behind it: of a matrix `[gate | up]`, `y = silu(gate x + b) (up x + b)`, half as wide as
    /// `out_dim` ([`reference::swiglu`](crate::reference::swiglu())).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Shape`] where `out_dim` is odd, [`ErrorKind::Argument`] beside a tail or a scale, or after [`Linear::with_append`].
    pub fn with_swiglu(self) -> Result<Self> {
        let w = &self.weight;
        if !w.out_dim().is_multiple_of(2) {
            let shape = [w.heads(), w.out_dim(), w.in_dim()];
            return Err(ErrorKind::shape("weight", &shape, "(_,an even number,_)"));
        }
        if self.tail.is_some() || self.cached.is_some() || self.changes_outputs() {
            return Err(ErrorKind::argument("swiglu", "this linear has a tail, a scale or a softcap, or appends"));
        }
        let tunings = self.tunings.map(|tuning| LinearTuning { outs: tuning.outs.max(2), ..tuning });
        Ok(Linear { swiglu: true, tunings, ..self.without_kernels() })
    }

    /// [`Linear::with_swiglu`] with GELU, in its tanh form, in the place of silu: `y = gelu(gate x + b) (up x + b)`
    /// ([`reference::geglu`](crate::reference::geglu())).
    ///
    /// # Errors
    ///
    /// As [`Linear::with_swiglu`].
    pub fn with_geglu(self) -> Result<Self> {
        Ok(Linear { gelu: true, ..self.with_swiglu()? }.without_kernels())
    }

    /// The same with rotated elements behind each head's output: those that lie behind the head's input, `rope_dim` of
    /// them, at the row's position. So absorbed queries are made of plain ones, `[nope | rope]`:
    /// `y[r, h, :] = [ W[h] x[r, h, ..in_dim] | RoPE(x[r, h, in_dim..in_dim + rope_dim]) ]`. Each call
    /// gives [`LinearArgs::cos_sin`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for a `rope_dim` that is 0 or odd, rows of 2^32 elements or more, beside SwiGLU, a
    /// rest or a scale, or after [`Linear::with_append`].
    pub fn with_tail(self, rope_dim: usize, rotation: RopePairs) -> Result<Self> {
        if rope_dim == 0 || !rope_dim.is_multiple_of(2) {
            return Err(ErrorKind::argument("rope_dim", format!("{rope_dim} is not an even number above 0")));
        }
        let w = &self.weight;
        let (heads, width) = (w.heads(), w.in_dim().max(w.out_dim()));
        sum_of_products("rope_dim", &[&[heads, width], &[heads, rope_dim]], MOST_ROW)?;
        if self.swiglu || self.rest.is_some() || self.cached.is_some() || self.changes_outputs() {
            let why = "this linear has SwiGLU, a rest, a scale or a softcap, or appends";
            return Err(ErrorKind::argument("tail", why));
        }
        Ok(Linear { tail: Some((rope_dim, rotation)), ..self.without_kernels() })
    }

    /// The same with a norm beside it, of what lies behind the input of each row: `rest[r, :] = norm(x[r, in_dim..])`, in
    /// the same dispatch for few rows and in one of its own for many. Each call gives [`LinearArgs::rest`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for several heads, beside a tail, after [`Linear::with_append`], for a norm with gaps
    /// ([`RmsNorm::with_gap`]) or that is joined or adding, or where the norm before the product has another `eps`.
    pub fn with_rest(self, norm: RmsNorm) -> Result<Self> {
        if self.weight.heads() != 1 || self.tail.is_some() || self.cached.is_some() {
            return Err(ErrorKind::argument("rest", "this linear has several heads or a tail, or appends"));
        }
        if !norm.is_plain() {
            let why = format!("has gaps of {} elements, or is joined or adding", norm.gap());
            return Err(ErrorKind::argument("rest", why));
        }
        match &self.norm {
            Some((_, eps)) if *eps != norm.shape().eps => {
                Err(ErrorKind::argument("rest", format!("eps {} beside {eps}", norm.shape().eps)))
            }
            _ => Ok(Linear { rest: Some(norm), ..self.without_kernels() }),
        }
    }

    /// The same with products of few rows (up to [`LinearTuning::max_rows`]) by dot products of bytes (WGSL's `dot4I8Packed`): the
    /// input, normed if there is a norm, is rounded to 8 bits, each 8 elements (16 for weights in I8) under the largest magnitude of
    /// them, `m`. So an element is off by at most `m / 254`, and an output by the sum of these errors times the weights' magnitudes.
    /// Elements that are not finite give no defined output. Weights are multiplied as they are. Many GPUs are faster so; software
    /// adapters are not, and multiply as before.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] for weights that are neither I8 nor in blocks.
    pub fn with_integer_dot(self) -> Result<Self> {
        match self.weight.weight_type() {
            WeightType::Plain(DType::I8) | WeightType::Blocks(_) => {
                Ok(Linear { integers: true, ..self.without_kernels() })
            }
            other => Err(ErrorKind::Unsupported { what: format!("dot products of bytes for {other} weights") }.into()),
        }
    }

    /// The same with other numbers than those chosen for the device, for any count of rows: for measurements and tests.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for numbers that make no kernel, [`ErrorKind::Unsupported`] for subgroups where
    /// [`Capabilities::tier`](crate::Capabilities) has none.
    pub fn with_tuning(self, tuning: LinearTuning) -> Result<Self> {
        tuning.check(self.gpu.capabilities(), self.swiglu)?;
        Ok(Linear { tunings: [tuning; 3], ..self }.without_kernels())
    }

    /// The same with this tile for every count of rows above [`LinearTuning::max_rows`]: for measurements and tests.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for numbers that make no kernel, [`ErrorKind::Unsupported`] where
    /// [`Capabilities::tier`](crate::Capabilities) has no cooperative matrices, or the weights are F32.
    pub fn with_matrix_tile(self, tile: MatrixTile) -> Result<Self> {
        tile.check_for(self.weight.weight_type())?;
        if self.tiles.is_empty() {
            let what = format!("cooperative matrices for {} weights", self.weight.weight_type());
            return Err(ErrorKind::Unsupported { what }.into());
        }
        Ok(Linear { tiles: vec![tile], ..self }.without_kernels())
    }

    /// The same with outputs multiplied by a number, biases included: Granite's residual multiplier, or the scale of logits.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for what is not finite, beside SwiGLU or a tail, or after [`Linear::with_append`].
    pub fn with_scale(self, scale: f32) -> Result<Self> {
        if !scale.is_finite() {
            return Err(ErrorKind::argument("scale", format!("{scale} is not finite")));
        }
        let taken = self.swiglu || self.tail.is_some() || self.cached.is_some() || self.softcap.is_some();
        if taken && scale != 1.0 {
            return Err(ErrorKind::argument("scale", "this linear has SwiGLU, a tail or a softcap, or appends"));
        }
        Ok(Linear { scale, ..self })
    }

    /// The same with outputs `cap tanh(y / cap)` in the place of `y`: the logits of Gemma 2.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for a `cap` that is not in 1e-3..=1e6, beside SwiGLU, a tail or a scale, or after
    /// [`Linear::with_append`].
    pub fn with_softcap(self, cap: f32) -> Result<Self> {
        if !(1e-3..=1e6).contains(&cap) {
            return Err(ErrorKind::argument("cap", format!("{cap} is not in 1e-3..=1e6")));
        }
        if self.swiglu || self.tail.is_some() || self.cached.is_some() || self.scale != 1.0 {
            return Err(ErrorKind::argument("cap", "this linear has SwiGLU, a tail or a scale, or appends"));
        }
        Ok(Linear { softcap: Some(cap), ..self.without_kernels() })
    }

    /// Whether something is done to single outputs.
    fn changes_outputs(&self) -> bool {
        self.scale != 1.0 || self.softcap.is_some()
    }

    fn without_kernels(mut self) -> Self {
        self.shapes = shapes(&self.tunings[1], &self.tiles);
        self.kernels = fresh(self.shapes.len());
        self
    }

    /// The tile of cooperative matrices for so many rows, if the device has them and they are used.
    pub fn matrix_tile(&self, rows: usize) -> Option<MatrixTile> {
        match self.shapes[self.choose(rows)] {
            Shape::Matrix(tile) => Some(tile),
            _ => None,
        }
    }

    /// The numbers of its kernel for so many rows.
    pub fn tuning(&self, rows: usize) -> LinearTuning {
        self.tunings[match rows {
            0 | 1 => 0,
            3..=8 => 2,
            _ => 1,
        }]
    }

    /// The weights.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// Outputs of a head: `out_dim`, half of it with SwiGLU, and the tail.
    pub fn outputs(&self) -> usize {
        self.weight.out_dim() / if self.swiglu { 2 } else { 1 } + self.tail_dim()
    }

    fn tail_dim(&self) -> usize {
        self.tail.map_or(0, |(dim, _)| dim)
    }

    /// Compiles the kernel for so many rows of input at multiples of 4 elements (where `in_dim` is one), so that the
    /// first call does not.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Gpu`], [`ErrorKind::Unsupported`].
    pub fn prepare(&self, rows: usize) -> Result<()> {
        let (choice, aligned) = (self.choose(rows), self.weight.in_dim().is_multiple_of(4));
        if matches!(self.shapes[choice], Shape::Matrix(_)) {
            self.pack_kernel(aligned)?;
        }
        self.kernel(choice, aligned).map(drop)
    }

    /// Index of the shape for so many rows.
    fn choose(&self, rows: usize) -> usize {
        let plain = self.shapes.len() - self.tiles.len();
        if rows > self.tuning(rows).max_rows {
            let w = &self.weight;
            let shape = [w.heads(), w.out_dim(), w.in_dim()];
            if let Some(tile) = MatrixTile::choose(&self.tiles, self.gpu.capabilities(), rows, shape) {
                return plain + tile;
            }
        }
        self.shapes[..plain].iter().position(|s| rows <= s.rows()).unwrap_or(plain - 1)
    }

    fn pack_kernel(&self, aligned: bool) -> Result<&Kernel> {
        let cell = &self.kernels[self.shapes.len()][usize::from(!aligned)];
        self.gpu.kernel_in(cell, || Ok(pack_spec(self.weight.in_dim(), aligned, self.norm.is_some())))
    }

    fn kernel(&self, choice: usize, aligned: bool) -> Result<&Kernel> {
        // Packed input is aligned, whatever it was packed from.
        let aligned = aligned || matches!(self.shapes[choice], Shape::Matrix(_));
        let cell = &self.kernels[choice][usize::from(!aligned)];
        self.gpu.kernel_in(cell, || {
            let shape = self.shapes[choice];
            let tuning = self.tuning(shape.rows());
            let fusion = Fusion {
                norm: self.norm.is_some(),
                swiglu: self.swiglu,
                gelu: self.gelu,
                softcap: self.softcap.is_some(),
                tail: self.tail.map(|(_, rotation)| rotation),
                rest: self.rest.is_some(),
                cached: self.cached,
                clamp: None,
                listed: false,
                biased: false,
                whole: tuning.whole_steps(shape.rows(), &self.weight),
                integers: self.integers,
            };
            shape.spec(&tuning, self.weight.weight_type(), aligned, fusion)
        })
    }
}

fn shapes(tuning: &LinearTuning, tiles: &[MatrixTile]) -> Vec<Shape> {
    tuning.shapes().into_iter().chain(tiles.iter().map(|tile| Shape::Matrix(*tile))).collect()
}

/// Of so many shapes, and of what packs input.
fn fresh(shapes: usize) -> Arc<[[OnceLock<Kernel>; 2]]> {
    (0..=shapes).map(|_| Default::default()).collect()
}

#[cfg(test)]
#[path = "matrix_tests.rs"]
mod matrix_tests;
