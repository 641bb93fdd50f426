//! The kernels of a [`Decode`](super::Decode), one set for each height of a tile of query rows, and what its planner is told of them.

use super::options::AttentionOptions;
use super::plan::shape::{KernelForm, PlanShape};
use crate::attention::kernels::select::{Device, KernelShape};
use crate::attention::kernels::short::SHORT_TOKENS;
use crate::attention::kernels::spec::{kernel_spec, merge_spec};
use crate::error::Result;
use crate::gpu::{DType, Gpu, Kernel};
use crate::kv::layout::StateLayout;
use crate::kv::pool::PoolKernel;
use crate::kv::HeadLayout;

/// The kernels of one row tile.
pub(super) struct Class {
    pub(super) shape: KernelShape,
    decode: PoolKernel,
    /// For items that are too few to fill the device.
    squads: Option<PoolKernel>,
    /// For few items of few tokens.
    short: Option<PoolKernel>,
    pub(super) merge: Kernel,
}

impl Class {
    /// All of them, for pages in so many slabs: which of the decodes depends on a step's lengths, and whether there is
    /// something to merge.
    pub(super) fn want(&self, gpu: &Gpu, slabs: usize) -> Result<()> {
        let mut decodes = self.squads.iter().chain(&self.short).chain([&self.decode]);
        decodes.try_for_each(|kernel| kernel.of(gpu, slabs).map(drop))?;
        gpu.want(&self.merge)
    }

    /// The one of a form that its [`PlanShape`] has.
    pub(super) fn kernel(&self, form: KernelForm) -> &PoolKernel {
        let other = match form {
            KernelForm::Usual => None,
            KernelForm::Squads => self.squads.as_ref(),
            KernelForm::Short => self.short.as_ref(),
        };
        other.unwrap_or(&self.decode)
    }
}

/// FLOP of a whole tile of a kernel, over all groups, per token that its rows see.
pub(super) fn token_flop(heads: &HeadLayout, shape: &KernelShape) -> u64 {
    2 * (shape.rows() * heads.groups() * (heads.q_dim() + heads.v_dim())) as u64
}

/// One class for each shape, and the planner's view of them.
pub(super) fn classes(
    gpu: &Gpu,
    heads: &HeadLayout,
    dtype: DType,
    options: &AttentionOptions,
    shapes: &[KernelShape],
) -> Result<(Vec<Class>, PlanShape)> {
    let dispatch_flop = gpu.capabilities().dispatch_flop;
    let layout = StateLayout::new(heads, dtype);
    let device = Device::of(gpu.capabilities());
    let kernel = |shape: KernelShape| PoolKernel::new(gpu, kernel_spec(heads, dtype, options, &shape)?);
    let (mut classes, mut squads) = (Vec::new(), Vec::new());
    let (mut short_tokens, mut short_workgroups) = (Vec::new(), Vec::new());
    for &shape in shapes {
        let (of_few, of_short) = shape.for_few(heads, dtype, &device);
        squads.push(of_few.map_or(1, |shape| shape.squads()));
        short_tokens.push(of_short.map_or(0, |_| SHORT_TOKENS));
        short_workgroups.push(heads.groups() * of_short.map_or(1, |shape| shape.row_parts()));
        classes.push(Class {
            shape,
            decode: kernel(shape)?,
            squads: of_few.map(kernel).transpose()?,
            short: of_short.map(kernel).transpose()?,
            merge: gpu.kernel(merge_spec(heads, options, shape.rows()))?,
        });
    }
    let shape = PlanShape {
        heads_per_group: heads.heads_per_group(),
        groups: heads.groups(),
        v_dim: heads.v_dim(),
        bytes_per_token: layout.group_bytes(),
        rope_bytes: layout.rope_words * layout.word_bytes,
        row_tiles: shapes.iter().map(KernelShape::rows).collect(),
        groups_per_workgroup: shapes.iter().map(KernelShape::groups_per_workgroup).collect(),
        room: shapes.iter().map(KernelShape::room).collect(),
        squads,
        short_tokens,
        short_workgroups,
        most_tokens: shapes.iter().map(|shape| (dispatch_flop / token_flop(heads, shape)).max(1)).collect(),
        target_workgroups: gpu.capabilities().target_workgroups,
        token_tile: shapes.iter().map(KernelShape::tokens).max().unwrap_or(1),
        window: options.window_tokens(),
        keep_first: options.first_tokens(),
    };
    Ok((classes, shape))
}
