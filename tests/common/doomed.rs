//! Recorded work that will be lost.

use latten::nn::SwiGlu;
use latten::{wgpu, DType, Gpu, Result, Tensor};

/// Records work on an app's buffer, which the app then destroys: whatever is recorded beside it is lost with it. `out` is (1, 2) F32.
pub fn record_doomed(gpu: &Gpu, swiglu: &SwiGlu, out: &Tensor) -> Result<()> {
    let (size, usage) = (16, wgpu::BufferUsages::STORAGE);
    let desc = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
    let buffer = gpu.device().create_buffer(&desc);
    let doomed = Tensor::from_wgpu(gpu, buffer, &[1, 4], DType::F32).unwrap();
    let recorded = swiglu.run(&doomed, out);
    doomed.wgpu_buffer().destroy();
    recorded
}

/// Loses whatever is recorded, by whomever; another thread may have sent it in time.
pub fn lose_a_batch(gpu: &Gpu, swiglu: &SwiGlu, out: &Tensor) {
    let _ = record_doomed(gpu, swiglu, out);
    let _ = gpu.submit();
}
