//! The ceilings of a device, measured: streaming read, f32 multiply-add, and, where it has matrix units, their product.

use crate::common::matmul;
use crate::common::timing::{median_us, Block};
use latten::{wgpu, Gpu, Result};
use serde::{Deserialize, Serialize};

/// Gigabytes per second, and TFLOP per second.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Ceilings {
    pub read_gbps: f64,
    pub fma_tflops: f64,
    /// None without cooperative matrices.
    #[serde(default)]
    pub matmul_tflops: Option<f64>,
}

pub async fn measure(gpu: &Gpu, block: &Block) -> Result<Ceilings> {
    let software = gpu.capabilities().is_software();
    let bytes: u64 = if software { 64 << 20 } else { 1 << 30 };
    let bytes = bytes.min(gpu.capabilities().max_binding_bytes);
    let source = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some("stream"),
        size: bytes,
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    block.fill(gpu, &source)?;
    let sink = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some("sink"),
        size: 16,
        usage: wgpu::BufferUsages::STORAGE,
        mapped_at_creation: false,
    });
    let read = Bench::new(gpu.device(), include_str!("../../../benches/shaders/stream.wgsl"), &[&source, &sink]);
    let fma = Bench::new(gpu.device(), include_str!("../../../benches/shaders/fma.wgsl"), &[&source, &sink]);
    // The best of a few grids: the number of workgroups that fills a device differs.
    let (mut read_gbps, mut fma_tflops) = (0.0f64, 0.0f64);
    for groups in if software { [2, 4, 8] } else { [1024, 2048, 8192] } {
        let us = median_us(gpu, |pass| read.dispatch(pass, groups)).await?;
        read_gbps = read_gbps.max(bytes as f64 / us / 1e3);
        let us = median_us(gpu, |pass| fma.dispatch(pass, groups)).await?;
        fma_tflops = fma_tflops.max(f64::from(groups) * 256.0 * 1024.0 * 64.0 * 2.0 / us / 1e6);
    }
    let matmul_tflops = match matmul::measure(gpu).await {
        Ok(tflops) => Some(tflops),
        Err(why) => {
            println!("matmul ceiling: not measured, {why}");
            None
        }
    };
    Ok(Ceilings { read_gbps, fma_tflops, matmul_tflops })
}

/// A pipeline with its storage bindings, from 0 on.
pub struct Bench {
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
}

impl Bench {
    pub fn new(device: &wgpu::Device, wgsl: &str, buffers: &[&wgpu::Buffer]) -> Self {
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: None,
            source: wgpu::ShaderSource::Wgsl(wgsl.into()),
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: None,
            module: &module,
            entry_point: Some("main"),
            compilation_options: Default::default(),
            cache: None,
        });
        let entries: Vec<_> = (0..)
            .zip(buffers)
            .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
            .collect();
        let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        Bench { pipeline, group }
    }

    pub fn dispatch(&self, pass: &mut wgpu::ComputePass<'_>, groups: u32) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.group, &[]);
        pass.dispatch_workgroups(groups, 1, 1);
    }
}
