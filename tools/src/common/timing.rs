//! Random contents, and times of passes; `linear_table` uses them too.

use half::{bf16, f16};
use latten::{wgpu, DType, Gpu, Result};
use std::time::{Duration, Instant};

/// Elements of the block that fills memory: no power of two, so that no two pages are alike.
const BLOCK_ELEMENTS: usize = 12_000_000;

/// Work that brings the clocks up.
pub const WARM: Duration = Duration::from_millis(500);

/// A block of random elements, on the host in f64's reach and on the device, made once for all rows. Of I8 and I4 its values
/// are what pages are made of (`kernel_table/contents.rs`).
pub struct Block {
    values: Vec<f32>,
    dtype: DType,
    buffer: wgpu::Buffer,
}

impl Block {
    pub fn new(gpu: &Gpu, dtype: DType) -> Self {
        let mut values = random(BLOCK_ELEMENTS, 7);
        let buffer = match dtype {
            DType::F16 => rounded(gpu, &mut values, f16::from_f32, f16::to_f32),
            DType::BF16 => rounded(gpu, &mut values, bf16::from_f32, bf16::to_f32),
            _ => upload(gpu, bytemuck::cast_slice(&values)),
        };
        Block { values, dtype, buffer }
    }

    /// Repeats the block over a whole buffer.
    pub fn fill(&self, gpu: &Gpu, target: &wgpu::Buffer) -> Result<()> {
        repeat(gpu, &self.buffer, target)
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn values(&self) -> &[f32] {
        &self.values
    }

    pub fn value(&self, element: usize) -> f64 {
        self.values[element % self.values.len()].into()
    }
}

/// Values as their rounded form holds them, and that form on the device.
fn rounded<T: bytemuck::Pod>(gpu: &Gpu, values: &mut [f32], narrow: fn(f32) -> T, wide: fn(T) -> f32) -> wgpu::Buffer {
    let halves: Vec<T> = values.iter().map(|value| narrow(*value)).collect();
    values.iter_mut().zip(&halves).for_each(|(value, half)| *value = wide(*half));
    upload(gpu, bytemuck::cast_slice(&halves))
}

/// A buffer to copy from; `bytes` must be a multiple of 4 long.
pub fn upload(gpu: &Gpu, bytes: &[u8]) -> wgpu::Buffer {
    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some("block"),
        size: bytes.len() as u64,
        usage: wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    gpu.queue().write_buffer(&buffer, 0, bytes);
    buffer
}

/// Copies a buffer over a whole larger one, again and again.
pub fn repeat(gpu: &Gpu, source: &wgpu::Buffer, target: &wgpu::Buffer) -> Result<()> {
    gpu.submit()?;
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    let mut at = 0;
    while at < target.size() {
        let bytes = (target.size() - at).min(source.size());
        encoder.copy_buffer_to_buffer(source, 0, target, at, bytes);
        at += bytes;
    }
    gpu.queue().submit([encoder.finish()]);
    Ok(())
}

/// About normal values.
pub fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..n).map(|_| random.f32() + random.f32() + random.f32() + random.f32() - 2.0).collect()
}

pub async fn median_us(gpu: &Gpu, mut work: impl FnMut(&mut wgpu::ComputePass<'_>)) -> Result<f64> {
    let times = times_us(gpu, WARM, |pass, _| {
        work(pass);
        Ok(())
    });
    let times = times.await?;
    Ok(times[times.len() / 2])
}

/// Sorted microseconds of passes that each do `work`, after `warm` of it (on a GPU).
pub async fn times_us(
    gpu: &Gpu,
    warm: Duration,
    mut work: impl FnMut(&mut wgpu::ComputePass<'_>, usize) -> Result<()>,
) -> Result<Vec<f64>> {
    let software = gpu.capabilities().is_software();
    let (passes, warm) = if software { (3, Duration::ZERO) } else { (20, warm) };
    let start = Instant::now();
    while start.elapsed() < warm {
        gpu.time_passes(passes, &mut work).await?;
    }
    let mut times = gpu.time_passes(passes, &mut work).await?;
    times.sort_by(f64::total_cmp);
    Ok(times)
}
