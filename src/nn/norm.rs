//! RMSNorm, over the groups of a row or over all of it.
#![warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use super::{params, word, Span};
use crate::error::{ErrorKind, Result};
use crate::gpu::Extent;
use crate::gpu::{number, part, Access, DType, Gpu, Kernel, KernelSpec, Tensor};
use crate::sizes::{sum_of_products, MOST_ROW};

params!(Params {
    groups: u32,
    dim: u32,
    tail: u32,
    x_offset: u32,
    x_row_stride: u32,
    y_offset: u32,
    y_row_stride: u32,
    eps: f32,
    gap: u32,
    joined: u32,
    adds: u32,
});
#[cfg(test)]
pub(super) const PARAM_FIELDS: &[(&str, usize)] = Params::FIELDS;

const LANES: usize = 64;

pub(super) fn spec() -> KernelSpec {
    KernelSpec {
        name: "norm",
        consts: vec![("LANES", number(LANES))],
        parts: vec![part!("nn/norm.wgsl")],
        bindings: vec![Access::Read, Access::Read, Access::Write],
        workgroup_bytes: 4 * LANES,
    }
}

/// What an [`RmsNorm`] does with a row of `groups * dim + tail` elements.
#[derive(Debug, Clone, Copy)]
pub struct NormShape {
    /// Stretches that are normalised each by itself (latent heads); 1 for a plain norm.
    pub groups: usize,
    /// Elements of one group.
    pub dim: usize,
    /// Elements behind the groups that are copied as they are (a rope key); 0 for a plain norm.
    pub tail: usize,
    /// Added to the mean square.
    pub eps: f32,
}

/// `y[r, g, :] = gain[g, :] x[r, g, :] / sqrt(mean(x[r, g, :]^2) + eps)`, then the tail of the row copied; and the gap behind each
/// group, where there is one.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    gpu: Gpu,
    /// (groups, dim) F32.
    gain: Tensor,
    shape: NormShape,
    /// Elements behind each group that are copied.
    gap: usize,
    /// Elements of a row.
    width: usize,
    /// Whether all groups have one mean.
    joined: bool,
    /// Whether what is made is added to the output.
    adds: bool,
    kernel: Kernel,
}

impl RmsNorm {
    /// `gain` is (groups, dim) F32.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Shape`], [`ErrorKind::DType`], [`ErrorKind::Argument`] for an `eps` that is not positive, no
    /// groups or elements, or rows of 2^32 elements or more.
    pub fn new(gpu: &Gpu, gain: &Tensor, shape: NormShape) -> Result<Self> {
        if !(shape.eps > 0.0 && shape.eps.is_finite()) {
            return Err(ErrorKind::argument("eps", format!("{} is not positive", shape.eps)));
        }
        if shape.groups == 0 || shape.dim == 0 {
            return Err(ErrorKind::argument("shape", format!("{} groups of {} elements", shape.groups, shape.dim)));
        }
        let width = sum_of_products("shape", &[&[shape.groups, shape.dim], &[shape.tail]], MOST_ROW)?;
        gain.expect("gain", &[shape.groups, shape.dim], DType::F32)?;
        let kernel = gpu.kernel(spec())?;
        Ok(RmsNorm { gpu: gpu.clone(), gain: gain.clone(), shape, gap: 0, width, joined: false, adds: false, kernel })
    }

    /// The same of rows of `groups * (dim + gap) + tail` elements, of which those behind each group are copied as they are: the values
    /// of GQA's heads, between keys that are normalised.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for rows of 2^32 elements or more.
    pub fn with_gap(self, gap: usize) -> Result<Self> {
        let NormShape { groups, dim, tail, .. } = self.shape;
        let width = sum_of_products("gap", &[&[groups, dim], &[groups, gap], &[tail]], MOST_ROW)?;
        Ok(RmsNorm { gap, width, ..self })
    }

    /// The same with one mean over all groups of a row: `y[r, g, :] = gain[g, :] x[r, g, :] / sqrt(mean(x[r, :, :]^2) + eps)`, as OLMo 2
    /// norms all keys of a token together ([`reference::rms_norm`](crate::reference::rms_norm) of the groups side by side).
    pub fn joined(self) -> Self {
        RmsNorm { joined: true, ..self }
    }

    /// The same, added to what the output holds: a norm behind a layer, whose result goes into the stream.
    pub fn adding(self) -> Self {
        RmsNorm { adds: true, ..self }
    }

    /// Whether it does no more than the norm of each group by itself, which may be fused with a product.
    pub(super) fn is_plain(&self) -> bool {
        self.gap == 0 && !self.joined && !self.adds
    }

    /// What it does with a row.
    pub fn shape(&self) -> NormShape {
        self.shape
    }

    /// Elements behind each group that are copied ([`RmsNorm::with_gap`]).
    pub fn gap(&self) -> usize {
        self.gap
    }

    /// Elements of a row.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    pub(super) fn gain(&self) -> &Tensor {
        &self.gain
    }

    pub(super) fn check(&self, rows: usize, x: Span<'_>, y: Span<'_>) -> Result<()> {
        let extent = Extent { rows, heads: 1, dim: self.width() };
        x.check("x", extent)?;
        y.check_output("y", extent, &[x.tensor, &self.gain])
    }

    /// Records `rows` rows; `x` and `y` are (rows, groups * (dim + gap) + tail) F32, in two buffers.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Shape`], [`ErrorKind::DType`], [`ErrorKind::Argument`] for rows that overlap or one buffer.
    pub fn encode(&self, pass: &mut wgpu::ComputePass<'_>, rows: usize, x: Span<'_>, y: Span<'_>) -> Result<()> {
        let NormShape { groups, dim, tail, eps } = self.shape;
        self.check(rows, x, y)?;
        let params = Params {
            groups: word(groups),
            dim: word(dim),
            tail: word(tail),
            x_offset: word(x.offset),
            x_row_stride: word(x.row_stride),
            y_offset: word(y.offset),
            y_row_stride: word(y.row_stride),
            eps,
            gap: word(self.gap),
            joined: u32::from(self.joined),
            adds: u32::from(self.adds),
        };
        let buffers = [&x.tensor.buffer, &self.gain.buffer, &y.tensor.buffer];
        let grid = (word(groups.saturating_add(usize::from(tail > 0))), word(rows), 1);
        let whole = y.whole(Extent { rows, heads: 1, dim: self.width() }).filter(|_| !self.adds);
        self.gpu.dispatch_over(pass, &self.kernel, &params, &buffers, grid, whole.as_slice())
    }

    /// [`RmsNorm::encode`] into the [`Gpu`]'s own pass.
    ///
    /// # Errors
    ///
    /// As [`RmsNorm::encode`].
    pub fn run(&self, rows: usize, x: Span<'_>, y: Span<'_>) -> Result<()> {
        self.gpu.record(|pass| self.encode(pass, rows, x, y))
    }
}
