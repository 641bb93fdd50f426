//! What experts' products have beside their matrices: biases, and another SwiGLU. Pure.

use crate::error::{ErrorKind, Result};
use crate::gpu::{part, Const, ShaderPart, Tensor};

/// A SwiGLU whose gate and up are held within bounds: `g sigmoid(alpha g) (u + 1)`, of the gate's `g = min(gate, limit)` and
/// `u = clamp(up, -limit, limit)` (gpt-oss, arXiv 2508.10925: alpha 1.702, limit 7). Defined by
/// [`reference::clamped_swiglu`](crate::reference::clamped_swiglu).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GateClamp {
    /// What the gate is multiplied by inside the sigmoid.
    pub alpha: f32,
    /// The most that gate and up may be, and the least that up may.
    pub limit: f32,
}

impl GateClamp {
    /// Errors: [`ErrorKind::Argument`] with the number.
    pub(crate) fn check(self) -> Result<()> {
        for (name, value) in [("alpha", self.alpha), ("limit", self.limit)] {
            if !(1e-3..=1e4).contains(&value) {
                return Err(ErrorKind::argument(name, format!("{value} of a clamped SwiGLU is not in 1e-3..=1e4")));
            }
        }
        Ok(())
    }

    pub(crate) fn consts(&self) -> [(&'static str, Const); 2] {
        [("ALPHA", Const::f32(self.alpha)), ("LIMIT", Const::f32(self.limit))]
    }
}

/// What the kernels of a layer are made for, beside its weights' type.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct ExpertForm {
    pub(crate) clamp: Option<GateClamp>,
    pub(crate) biased: bool,
}

/// What is added to the products.
#[derive(Debug, Clone)]
pub(crate) struct ExpertBiases {
    /// (experts, 2 width) F32
    pub(crate) gate_up: Tensor,
    /// (experts, dim) F32
    pub(crate) down: Tensor,
}

pub(crate) fn expert_bias_part(biased: bool) -> ShaderPart {
    match biased {
        true => part!("nn/expert_bias/rows.wgsl"),
        false => part!("nn/expert_bias/none.wgsl"),
    }
}

pub(crate) fn swiglu_part(clamp: Option<GateClamp>) -> ShaderPart {
    match clamp {
        Some(_) => part!("nn/output/clamped.wgsl"),
        None => part!("nn/output/swiglu.wgsl"),
    }
}
