//! The next token of each row of logits.

use super::span::{check_apart, Extent};
use super::{params, word, Span};
use crate::error::{ErrorKind, Result};
use crate::gpu::{number, part, Access, DType, Gpu, Kernel, KernelSpec, Tensor};

params!(Params { vocab: u32, row_stride: u32 });
#[cfg(test)]
pub(super) const PARAM_FIELDS: &[(&str, usize)] = Params::FIELDS;

pub(super) fn spec(vocab: usize) -> KernelSpec {
    // Every reduction costs a read per lane, so a small vocabulary gets few lanes.
    let lanes = if vocab <= 4096 { 64 } else { 256 };
    KernelSpec {
        name: "sample",
        consts: vec![("LANES", number(lanes))],
        parts: vec![part!("nn/sample.wgsl")],
        bindings: vec![Access::Read, Access::Read, Access::Write],
        workgroup_bytes: 8 * lanes,
    }
}

/// How a token is drawn from logits.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
pub struct Sampling {
    /// Divides the logits; 0 takes the largest one, the lowest index among equals.
    pub temperature: f32,
    /// Keep the most likely tokens that together hold this share of the mass; 1 keeps all. Tokens of one probability
    /// are kept or dropped together.
    pub top_p: f32,
}

impl Default for Sampling {
    /// Greedy.
    fn default() -> Self {
        Sampling { temperature: 0.0, top_p: 1.0 }
    }
}

impl Sampling {
    /// One row of a [`Sample`]'s `samplers`, drawing with `u` in [0, 1).
    ///
    /// Errors: [`ErrorKind::Argument`] for a negative or non-finite temperature, a `top_p` outside (0, 1], or a `u`
    /// outside [0, 1).
    pub fn row(&self, u: f32) -> Result<[f32; 4]> {
        let Sampling { temperature, top_p } = *self;
        if !(temperature >= 0.0 && temperature.is_finite()) {
            return Err(ErrorKind::argument("temperature", format!("{temperature} is not a number of at least 0")));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(ErrorKind::argument("top_p", format!("{top_p} is not in (0, 1]")));
        }
        if !(0.0..1.0).contains(&u) {
            return Err(ErrorKind::argument("u", format!("{u} is not in [0, 1)")));
        }
        // Below this the division by it could overflow; the result is the same as at 0 long before.
        let temperature = if temperature < 1e-6 { 0.0 } else { temperature };
        Ok([temperature, top_p, u, 0.0])
    }
}

/// Draws one token per row of logits, with temperature and nucleus (Holtzman et al., arXiv 1904.09751); defined in
/// [`reference::sample`](crate::reference::sample()). A row for which that is an error, as it gives no probabilities (a
/// NaN or +infinity in it, or no finite logit), gives [`Sample::NO_TOKEN`]; -infinity forbids a token.
#[derive(Clone)]
pub struct Sample {
    gpu: Gpu,
    vocab: usize,
    kernel: Kernel,
}

impl Sample {
    /// What is drawn from a row that gives no probabilities: no token of any vocabulary.
    pub const NO_TOKEN: u32 = u32::MAX;

    /// Compiles the kernel for rows of `vocab` logits. Errors: [`ErrorKind::Argument`] for 0.
    pub fn new(gpu: &Gpu, vocab: usize) -> Result<Self> {
        if vocab == 0 {
            return Err(ErrorKind::argument("vocab", "0 logits"));
        }
        Ok(Sample { gpu: gpu.clone(), vocab, kernel: gpu.kernel(spec(vocab))? })
    }

    /// Records. `logits` is (rows, vocab) F32 at offset 0; `samplers` (rows, 4) F32, rows of [`Sampling::row`];
    /// `tokens` (rows) U32, in another buffer: what is drawn, or [`Sample::NO_TOKEN`].
    ///
    /// Errors: [`ErrorKind::Shape`], [`ErrorKind::DType`], [`ErrorKind::Argument`].
    pub fn encode(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        logits: Span<'_>,
        samplers: &Tensor,
        tokens: &Tensor,
    ) -> Result<()> {
        tokens.expect("tokens", &[0], DType::U32)?;
        let rows = tokens.shape()[0];
        samplers.expect("samplers", &[rows, 4], DType::F32)?;
        logits.check("logits", Extent { rows, heads: 1, dim: self.vocab })?;
        if logits.offset != 0 {
            return Err(ErrorKind::argument("logits", format!("offset {}, wanted 0", logits.offset)));
        }
        check_apart("tokens", tokens, &[logits.tensor, samplers])?;
        let params = Params { vocab: word(self.vocab), row_stride: word(logits.row_stride) };
        let buffers = [&logits.tensor.buffer, &samplers.buffer, &tokens.buffer];
        self.gpu.dispatch_over(pass, &self.kernel, &params, &buffers, (word(rows), 1, 1), tokens.whole().as_slice())
    }

    /// [`Sample::encode`] into the [`Gpu`]'s own pass.
    pub fn run(&self, logits: Span<'_>, samplers: &Tensor, tokens: &Tensor) -> Result<()> {
        self.gpu.record(|pass| self.encode(pass, logits, samplers, tokens))
    }
}
