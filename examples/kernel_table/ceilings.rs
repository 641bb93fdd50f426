//! The two ceilings of a device, measured: streaming read and f32 multiply-add.

use latten::{wgpu, Gpu, Result};

/// Bytes per second and f32 FLOP per second.
#[derive(Debug, Clone, Copy)]
pub struct Ceilings {
    pub read_gbps: f64,
    pub fma_tflops: f64,
}

pub async fn measure(gpu: &Gpu, software: bool) -> Result<Ceilings> {
    let bytes: u64 = if software { 64 << 20 } else { 1 << 30 };
    let bytes = bytes.min(gpu.capabilities().max_binding_bytes);
    let source = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some("stream"),
        size: bytes,
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    super::fill(gpu, &source, bytes);
    let sink = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some("sink"),
        size: 16,
        usage: wgpu::BufferUsages::STORAGE,
        mapped_at_creation: false,
    });
    let read = Bench::new(gpu, include_str!("../../benches/shaders/stream.wgsl"), &source, &sink);
    let fma = Bench::new(gpu, include_str!("../../benches/shaders/fma.wgsl"), &source, &sink);
    // The best of a few grids: the number of workgroups that fills a device differs.
    let (mut read_gbps, mut fma_tflops) = (0.0f64, 0.0f64);
    for groups in if software { [2, 4, 8] } else { [1024, 2048, 8192] } {
        let us = read.median_us(gpu, groups, software).await?;
        read_gbps = read_gbps.max(bytes as f64 / us / 1e3);
        let us = fma.median_us(gpu, groups, software).await?;
        fma_tflops = fma_tflops.max(f64::from(groups) * 256.0 * 1024.0 * 64.0 * 2.0 / us / 1e6);
    }
    Ok(Ceilings { read_gbps, fma_tflops })
}

struct Bench {
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
}

impl Bench {
    fn new(gpu: &Gpu, wgsl: &str, source: &wgpu::Buffer, sink: &wgpu::Buffer) -> Self {
        let device = gpu.device();
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
        let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &[
                wgpu::BindGroupEntry { binding: 0, resource: source.as_entire_binding() },
                wgpu::BindGroupEntry { binding: 1, resource: sink.as_entire_binding() },
            ],
        });
        Bench { pipeline, group }
    }

    async fn median_us(&self, gpu: &Gpu, groups: u32, software: bool) -> Result<f64> {
        super::median_us(gpu, software, |pass| {
            pass.set_pipeline(&self.pipeline);
            pass.set_bind_group(0, &self.group, &[]);
            pass.dispatch_workgroups(groups, 1, 1);
            Ok(())
        })
        .await
    }
}
