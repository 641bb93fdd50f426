//! What the host's slices hold that go to tensors and come from them.

use super::tensor::not_floats;
use super::{DType, Gpu, Tensor};
use crate::error::Result;

/// An element of a host slice: [`f32`], for tensors of F32, F16 and BF16, or [`u32`], for those of U32.
///
/// Sealed: no other type can be one.
pub trait Element: sealed::Sealed {}

impl Element for f32 {}
impl Element for u32 {}

pub(super) mod sealed {
    use super::{DType, Gpu, Result, Tensor};

    pub trait Sealed: Copy + Send + Sync + 'static {
        /// Fails where a tensor of this dtype neither takes nor gives such elements; `name` is whose dtype the error speaks of.
        fn check(name: &'static str, dtype: DType) -> Result<()>;

        /// Writes all of a tensor, of a dtype that was checked.
        fn write(gpu: &Gpu, tensor: &Tensor, values: &[Self]) -> Result<()>;

        /// A tensor's bytes, of a dtype that was checked, as elements.
        fn read(dtype: DType, bytes: &[u8]) -> Vec<Self>;
    }
}

impl sealed::Sealed for f32 {
    fn check(name: &'static str, dtype: DType) -> Result<()> {
        match dtype {
            DType::F32 | DType::F16 | DType::BF16 => Ok(()),
            _ => Err(not_floats(name, dtype)),
        }
    }

    fn write(gpu: &Gpu, tensor: &Tensor, values: &[Self]) -> Result<()> {
        let packed = |bits: fn(f32) -> u16| {
            let mut halves: Vec<u16> = values.iter().map(|&v| bits(v)).collect();
            halves.resize(halves.len().next_multiple_of(2), 0);
            halves
        };
        let halves = match tensor.dtype() {
            DType::F16 => packed(|v| half::f16::from_f32(v).to_bits()),
            DType::BF16 => packed(|v| half::bf16::from_f32(v).to_bits()),
            _ => return gpu.write(&tensor.buffer, 0, bytemuck::cast_slice(values)),
        };
        gpu.write(&tensor.buffer, 0, bytemuck::cast_slice(&halves))
    }

    fn read(dtype: DType, bytes: &[u8]) -> Vec<Self> {
        let pairs = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
        match dtype {
            DType::F16 => pairs().map(|b| half::f16::from_le_bytes(b).to_f32()).collect(),
            DType::BF16 => pairs().map(|b| half::bf16::from_le_bytes(b).to_f32()).collect(),
            _ => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        }
    }
}

impl sealed::Sealed for u32 {
    fn check(name: &'static str, dtype: DType) -> Result<()> {
        dtype.expect(name, DType::U32)
    }

    fn write(gpu: &Gpu, tensor: &Tensor, values: &[Self]) -> Result<()> {
        gpu.write(&tensor.buffer, 0, bytemuck::cast_slice(values))
    }

    fn read(_: DType, bytes: &[u8]) -> Vec<Self> {
        bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }
}
