//! Rotary positions of queries that read wide channels: `HeadLayout::gqa_wide`.

use super::rope::pairs_part;
use super::{params, word, Span};
use crate::error::{ErrorKind, Result};
use crate::gpu::Extent;
use crate::gpu::{part, Access, DType, Gpu, Kernel, KernelSpec, Tensor};
use crate::kv::{HeadLayout, KvView};
use crate::rope::RopePairs;

params!(Params {
    heads: u32,
    heads_per_group: u32,
    key_dim: u32,
    wide_dim: u32,
    groups: u32,
    rotated: u32,
    x_offset: u32,
    x_row_stride: u32,
    x_head_stride: u32,
    y_offset: u32,
    y_row_stride: u32,
    y_head_stride: u32,
});
#[cfg(test)]
pub(super) const PARAM_FIELDS: &[(&str, usize)] = Params::FIELDS;

pub(super) fn spec(rotation: RopePairs) -> KernelSpec {
    KernelSpec {
        name: "rope_wide",
        consts: vec![],
        parts: vec![pairs_part(rotation), part!("nn/rope_wide.wgsl")],
        bindings: vec![Access::Read, Access::Read, Access::Read, Access::Write],
        workgroup_bytes: 0,
    }
}

/// `y[r, h, :] = [ rotated x[r, h, ..head_dim] | those of its wide channels, in the place of h's KV head, else zeros ]`: the
/// queries of a cache of [`HeadLayout::gqa_wide`], whose keys [`PagedKvCache::append`](crate::PagedKvCache::append)
/// rotates.
#[derive(Debug, Clone)]
pub struct RopeWideKernel {
    gpu: Gpu,
    heads: HeadLayout,
    rotation: RopePairs,
    kernel: Kernel,
}

/// Arguments of [`RopeWideKernel::run`] and [`RopeWideKernel::encode`].
#[derive(Debug, Clone, Copy)]
pub struct RopeWideArgs<'a> {
    /// Rows of queries.
    pub rows: usize,
    /// A layer of the cache, which knows its wide channels.
    pub layer: &'a KvView,
    /// (at least rows, head_dim / 2, 2) F32, from [`PagedKvCache::cos_sin`](crate::PagedKvCache::cos_sin), or without a
    /// rotation any F32 tensor.
    pub cos_sin: &'a Tensor,
    /// (rows, heads, head_dim) F32.
    pub x: Span<'a>,
    /// (rows, heads, q_dim) F32, in another buffer.
    pub y: Span<'a>,
}

impl RopeWideKernel {
    /// Compiles the kernel. `rotation` is that of the cache, [`RopePairs::None`] for queries that come rotated.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for a layout without wide channels, or a `head_dim` that is odd and to be rotated.
    pub fn new(gpu: &Gpu, heads: HeadLayout, rotation: RopePairs) -> Result<Self> {
        if heads.wide_dim() == 0 {
            let why = "has no wide channels: HeadLayout::gqa_wide makes such a layout";
            return Err(ErrorKind::argument("heads", why));
        }
        if rotation != RopePairs::None && !heads.nope_dim().is_multiple_of(2) {
            let why = format!("{} elements cannot be rotated in pairs", heads.nope_dim());
            return Err(ErrorKind::argument("head_dim", why));
        }
        Ok(RopeWideKernel { gpu: gpu.clone(), heads, rotation, kernel: gpu.kernel(spec(rotation))? })
    }

    /// Records the rotation of queries into a pass of the caller's, on the same device.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Shape`], [`ErrorKind::DType`], [`ErrorKind::Argument`] for rows that overlap or one buffer, for a layer of
    /// another layout, or one whose wide channels nobody has named.
    pub fn encode(&self, pass: &mut wgpu::ComputePass<'_>, args: RopeWideArgs<'_>) -> Result<()> {
        let RopeWideArgs { rows, layer, cos_sin, x, y } = args;
        let (heads, key_dim) = (self.heads, self.heads.nope_dim());
        if *layer.heads() != heads {
            return Err(ErrorKind::argument("layer", format!("is {:?}, made for {heads:?}", layer.heads())));
        }
        let wide = layer.wide()?;
        let rotated = if self.rotation == RopePairs::None { 0 } else { key_dim };
        if rotated > 0 {
            cos_sin.expect("cos_sin", &[0, rotated / 2, 2], DType::F32)?;
        }
        if rotated > 0 && cos_sin.shape()[0] < rows {
            return Err(ErrorKind::shape("cos_sin", cos_sin.shape(), format!("at least {rows} rows")));
        }
        x.check("x", Extent { rows, heads: heads.q_heads(), dim: key_dim })?;
        let extent = Extent { rows, heads: heads.q_heads(), dim: heads.q_dim() };
        y.check_output("y", extent, &[x.tensor, cos_sin, wide])?;
        let params = Params {
            heads: word(heads.q_heads()),
            heads_per_group: word(heads.heads_per_group()),
            key_dim: word(key_dim),
            wide_dim: word(heads.wide_dim()),
            groups: word(heads.groups()),
            rotated: word(rotated),
            x_offset: word(x.offset),
            x_row_stride: word(x.row_stride),
            x_head_stride: word(x.head_stride),
            y_offset: word(y.offset),
            y_row_stride: word(y.row_stride),
            y_head_stride: word(y.head_stride),
        };
        let buffers = [&x.tensor.buffer, &cos_sin.buffer, &wide.buffer, &y.tensor.buffer];
        let grid = (word((heads.q_heads() * heads.q_dim()).div_ceil(64)), word(rows), 1);
        self.gpu.dispatch(pass, &self.kernel, &params, &buffers, grid)
    }

    /// [`RopeWideKernel::encode`] into the [`Gpu`]'s own pass.
    ///
    /// # Errors
    ///
    /// As [`RopeWideKernel::encode`].
    pub fn run(&self, args: RopeWideArgs<'_>) -> Result<()> {
        self.gpu.record(|pass| self.encode(pass, args))
    }
}
