//! Rotary positions.
#![warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use super::{params, word, Span};
use crate::error::{ErrorKind, Result};
use crate::gpu::Extent;
use crate::gpu::{part, Access, DType, Gpu, Kernel, KernelSpec, ShaderPart, Tensor};
use crate::rope::RopePairs;
use crate::sizes::{sum_of_products, MOST_ROW};

params!(Params {
    heads: u32,
    copy_dim: u32,
    rope_dim: u32,
    x_offset: u32,
    x_row_stride: u32,
    x_head_stride: u32,
    y_offset: u32,
    y_row_stride: u32,
    y_head_stride: u32,
});
#[cfg(test)]
pub(super) const PARAM_FIELDS: &[(&str, usize)] = Params::FIELDS;

/// The slot that says which elements are a pair.
pub(super) fn pairs_part(pairs: RopePairs) -> ShaderPart {
    match pairs {
        RopePairs::Interleaved => part!("rope/interleaved.wgsl"),
        RopePairs::None | RopePairs::Half => part!("rope/half.wgsl"),
    }
}

pub(super) fn spec(pairs: RopePairs) -> KernelSpec {
    KernelSpec {
        name: "rope",
        consts: vec![],
        parts: vec![pairs_part(pairs), part!("nn/rope.wgsl")],
        bindings: vec![Access::Read, Access::Read, Access::Write],
        workgroup_bytes: 0,
    }
}

/// What a [`RopeKernel`] does with each head.
#[derive(Debug, Clone, Copy)]
pub struct RopeShape {
    /// Heads per row.
    pub heads: usize,
    /// Leading elements of a head, copied as they are.
    pub copy_dim: usize,
    /// Elements behind them, rotated. Even.
    pub rope_dim: usize,
    /// Which elements are rotated together.
    pub pairs: RopePairs,
}

/// `y[r, h, :] = [ x[r, h, ..copy_dim] | rotated x[r, h, copy_dim..copy_dim + rope_dim] ]`
/// (Su et al., "RoFormer", arXiv 2104.09864). For the queries: keys are rotated by
/// [`PagedKvCache::append`](crate::PagedKvCache::append).
#[derive(Debug, Clone)]
pub struct RopeKernel {
    gpu: Gpu,
    shape: RopeShape,
    /// Elements of a head.
    width: usize,
    kernel: Kernel,
}

impl RopeKernel {
    /// Compiles the kernel.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for no heads, a `rope_dim` that is 0 or odd, or rows of 2^32 elements or more.
    pub fn new(gpu: &Gpu, shape: RopeShape) -> Result<Self> {
        if shape.heads == 0 {
            return Err(ErrorKind::argument("heads", "0 heads"));
        }
        if shape.rope_dim == 0 {
            return Err(ErrorKind::argument("rope_dim", "0 is not an even number above 0"));
        }
        RopeKernel::or_copy(gpu, shape)
    }

    /// [`RopeKernel::new`], which only copies where `rope_dim` is 0.
    pub(crate) fn or_copy(gpu: &Gpu, shape: RopeShape) -> Result<Self> {
        if !shape.rope_dim.is_multiple_of(2) {
            return Err(ErrorKind::argument("rope_dim", format!("{} is not an even number above 0", shape.rope_dim)));
        }
        let width = sum_of_products("shape", &[&[shape.copy_dim], &[shape.rope_dim]], MOST_ROW)?;
        sum_of_products("shape", &[&[shape.heads, width]], MOST_ROW)?;
        Ok(RopeKernel { gpu: gpu.clone(), shape, width, kernel: gpu.kernel(spec(shape.pairs))? })
    }

    /// Records `rows` rows. `cos_sin` is (at least rows, rope_dim / 2, 2) F32, from
    /// [`PagedKvCache::cos_sin`](crate::PagedKvCache::cos_sin) or
    /// [`cos_sin_table`](crate::rope::cos_sin_table); `x` and `y` are (rows, heads, copy_dim + rope_dim),
    /// in two buffers.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Shape`], [`ErrorKind::DType`], [`ErrorKind::Argument`] for rows that overlap or one buffer.
    pub fn encode(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        rows: usize,
        cos_sin: &Tensor,
        x: Span<'_>,
        y: Span<'_>,
    ) -> Result<()> {
        let RopeShape { heads, copy_dim, rope_dim, .. } = self.shape;
        cos_sin.expect("cos_sin", &[0, rope_dim / 2, 2], DType::F32)?;
        if cos_sin.shape().first().is_none_or(|there| *there < rows) {
            return Err(ErrorKind::shape("cos_sin", cos_sin.shape(), format!("at least {rows} rows")));
        }
        let extent = Extent { rows, heads, dim: self.width };
        x.check("x", extent)?;
        y.check_output("y", extent, &[x.tensor, cos_sin])?;
        let params = Params {
            heads: word(heads),
            copy_dim: word(copy_dim),
            rope_dim: word(rope_dim),
            x_offset: word(x.offset),
            x_row_stride: word(x.row_stride),
            x_head_stride: word(x.head_stride),
            y_offset: word(y.offset),
            y_row_stride: word(y.row_stride),
            y_head_stride: word(y.head_stride),
        };
        let buffers = [&x.tensor.buffer, &cos_sin.buffer, &y.tensor.buffer];
        let grid = (word((heads.saturating_mul(self.width)).div_ceil(64)), word(rows), 1);
        self.gpu.dispatch_over(pass, &self.kernel, &params, &buffers, grid, y.whole(extent).as_slice())
    }

    /// [`RopeKernel::encode`] into the [`Gpu`]'s own pass.
    ///
    /// # Errors
    ///
    /// As [`RopeKernel::encode`].
    pub fn run(&self, rows: usize, cos_sin: &Tensor, x: Span<'_>, y: Span<'_>) -> Result<()> {
        self.gpu.record(|pass| self.encode(pass, rows, cos_sin, x, y))
    }
}
