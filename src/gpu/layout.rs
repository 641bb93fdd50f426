//! Layouts of what kernels bind: one for all kernels with the same bindings, so that these share bind groups.

use super::kernel::{Access, KernelSpec, PARAM_BYTES};
use super::Gpu;
use crate::error::Result;
use std::num::NonZeroU64;

/// The layout of a kernel's bindings, and its number. Kernels with the same bindings have the same, and so the same bind groups.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) id: u64,
    pub(super) layout: wgpu::BindGroupLayout,
    /// Of a pipeline: where it is the same as that of the dispatch before, wgpu has nothing to compare.
    pub(super) pipeline: wgpu::PipelineLayout,
}

impl Gpu {
    /// The layout of a kernel's bindings: one for all kernels with the same.
    pub(super) fn layout(&self, spec: &KernelSpec) -> Result<Layout> {
        if let Some(layout) = self.lock(&self.inner.layouts).get(&spec.bindings) {
            return Ok(layout.clone());
        }
        let entries: Vec<_> = (0..=spec.bindings.len()).map(|i| layout_entry(i, spec)).collect();
        let desc = wgpu::BindGroupLayoutDescriptor { label: Some(spec.name), entries: &entries };
        let device = &self.inner.device;
        let (layout, pipeline) = self.scoped(spec.name, || {
            let layout = device.create_bind_group_layout(&desc);
            let pipeline = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some(spec.name),
                bind_group_layouts: &[Some(&layout)],
                immediate_size: 0,
            });
            (layout, pipeline)
        })?;
        let made = Layout { id: self.next_id(), layout, pipeline };
        // Another thread may have been faster: there is one of a kind.
        Ok(self.lock(&self.inner.layouts).entry(spec.bindings.clone()).or_insert(made).clone())
    }
}

fn layout_entry(index: usize, spec: &KernelSpec) -> wgpu::BindGroupLayoutEntry {
    let ty = match index.checked_sub(1).map(|i| spec.bindings[i]) {
        None => wgpu::BufferBindingType::Uniform,
        Some(Access::Read) => wgpu::BufferBindingType::Storage { read_only: true },
        Some(Access::Write) => wgpu::BufferBindingType::Storage { read_only: false },
    };
    wgpu::BindGroupLayoutEntry {
        binding: index as u32,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty,
            has_dynamic_offset: index == 0,
            min_binding_size: (index == 0).then(|| NonZeroU64::new(PARAM_BYTES as u64)).flatten(),
        },
        count: None,
    }
}
