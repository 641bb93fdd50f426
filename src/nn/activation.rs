//! SwiGLU.
#![warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use super::{params, word};
use crate::error::{ErrorKind, Result};
use crate::gpu::check_apart;
use crate::gpu::{part, Access, DType, Gpu, Kernel, KernelSpec, Tensor};

params!(Params { width: u32 });
#[cfg(test)]
pub(super) const PARAM_FIELDS: &[(&str, usize)] = Params::FIELDS;

pub(super) fn spec() -> KernelSpec {
    KernelSpec {
        name: "swiglu",
        consts: vec![],
        parts: vec![part!("nn/swiglu.wgsl")],
        bindings: vec![Access::Read, Access::Write],
        workgroup_bytes: 0,
    }
}

/// `y[r, i] = silu(gate[r, i]) up[r, i]`.
#[derive(Debug, Clone)]
pub struct SwiGlu {
    gpu: Gpu,
    kernel: Kernel,
}

impl SwiGlu {
    /// Compiles the kernel.
    ///
    /// # Errors
    ///
    /// Those of the device.
    pub fn new(gpu: &Gpu) -> Result<Self> {
        Ok(SwiGlu { gpu: gpu.clone(), kernel: gpu.kernel(spec())? })
    }

    /// Records; `x` is (rows, 2 * width) F32, `[gate | up]`, and `y` (rows, width) F32 in another buffer.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Shape`], [`ErrorKind::DType`], [`ErrorKind::Argument`].
    pub fn encode(&self, pass: &mut wgpu::ComputePass<'_>, x: &Tensor, y: &Tensor) -> Result<()> {
        y.expect("y", &[0, 0], DType::F32)?;
        let [rows, width] = *y.shape() else { return Ok(()) }; // checked above
        x.expect("x", &[rows, width.saturating_mul(2)], DType::F32)?;
        check_apart("y", y, &[x])?;
        if x.len() > u32::MAX as usize {
            return Err(ErrorKind::shape("x", x.shape(), "fewer than 2^32 elements"));
        }
        let grid = (word(width.div_ceil(64)), word(rows), 1);
        let (params, buffers) = (Params { width: word(width) }, [&x.buffer, &y.buffer]);
        self.gpu.dispatch_over(pass, &self.kernel, &params, &buffers, grid, y.whole().as_slice())
    }

    /// [`SwiGlu::encode`] into the [`Gpu`]'s own pass.
    ///
    /// # Errors
    ///
    /// As [`SwiGlu::encode`].
    pub fn run(&self, x: &Tensor, y: &Tensor) -> Result<()> {
        self.gpu.record(|pass| self.encode(pass, x, y))
    }
}
