//! The next token of each row of logits.

pub(super) mod logprobs;
mod sampling;
pub(super) mod shaped;

pub use logprobs::Logprobs;
pub use sampling::{Penalties, Sampling};
pub use shaped::{ListedToken, ShapedRow, ShapedSample};

use super::{params, word, Span};
use crate::error::{Error, ErrorKind, Result};
use crate::gpu::{check_apart, Extent};
use crate::gpu::{number, part, Access, Buffer, DType, Gpu, Kernel, KernelSpec, Tensor};
use std::sync::{Arc, Mutex, PoisonError};

params!(Params { vocab: u32, row_stride: u32 });
#[cfg(test)]
pub(in crate::nn) const PARAM_FIELDS: &[(&str, usize)] = Params::FIELDS;

fn params_of(vocab: usize, logits: &Span<'_>) -> Params {
    Params { vocab: word(vocab), row_stride: word(logits.row_stride) }
}

/// The largest vocabulary that one workgroup goes through by itself.
const MOST_ALONE: usize = 4096;
/// Logits of a part, and lanes that go through them.
const PART: usize = 512;
const PART_LANES: usize = 64;

pub(super) fn spec(vocab: usize) -> KernelSpec {
    let alone = vocab <= MOST_ALONE;
    // Every reduction costs a read per lane, so a small vocabulary gets few lanes.
    let lanes = if alone { 64 } else { 256 };
    let (top, bindings) = match alone {
        true => (part!("nn/row_top/logits.wgsl"), vec![Access::Read, Access::Read, Access::Write]),
        false => (part!("nn/row_top/parts.wgsl"), vec![Access::Read, Access::Read, Access::Write, Access::Read]),
    };
    KernelSpec {
        name: "sample",
        consts: vec![("LANES", number(lanes)), ("PART", number(PART))],
        parts: vec![part!("nn/top.wgsl"), top, part!("nn/sample.wgsl")],
        bindings,
        workgroup_bytes: 8 * lanes,
    }
}

/// The tops of parts of a large vocabulary.
pub(super) fn parts_spec() -> KernelSpec {
    KernelSpec {
        name: "sample_parts",
        consts: vec![("LANES", number(PART_LANES)), ("PART", number(PART))],
        parts: vec![part!("nn/top.wgsl"), part!("nn/sample_parts.wgsl")],
        bindings: vec![Access::Read, Access::Write],
        workgroup_bytes: 8 * PART_LANES,
    }
}

/// Draws one token per row of logits, with temperature and nucleus (Holtzman et al., arXiv 1904.09751); defined in
/// [`reference::sample`](crate::reference::sample()). A row for which that is an error, as it gives no probabilities (a
/// NaN or +infinity in it, or no finite logit), gives [`Sample::NO_TOKEN`]; -infinity forbids a token.
#[derive(Debug, Clone)]
pub struct Sample {
    gpu: Gpu,
    vocab: usize,
    kernel: Kernel,
    /// Of a large vocabulary.
    parts: Option<PartTops>,
}

/// What finds the tops of a vocabulary's parts, and their memory, which grows with the rows.
#[derive(Clone, Debug)]
struct PartTops {
    kernel: Kernel,
    tops: Arc<Mutex<Buffer>>,
}

impl Sample {
    /// What is drawn from a row that gives no probabilities: no token of any vocabulary.
    pub const NO_TOKEN: u32 = u32::MAX;

    /// Compiles the kernels for rows of `vocab` logits.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for 0.
    pub fn new(gpu: &Gpu, vocab: usize) -> Result<Self> {
        if vocab == 0 {
            return Err(ErrorKind::argument("vocab", "0 logits"));
        }
        let parts = || {
            let tops = Arc::new(Mutex::new(gpu.create_scratch("tops", (8 * vocab.div_ceil(PART)) as u64)?));
            Ok::<_, Error>(PartTops { kernel: gpu.kernel(parts_spec())?, tops })
        };
        let parts = (vocab > MOST_ALONE).then(parts).transpose()?;
        Ok(Sample { gpu: gpu.clone(), vocab, kernel: gpu.kernel(spec(vocab))?, parts })
    }

    /// Records. `logits` is (rows, vocab) F32 at offset 0; `samplers` (rows, 4) F32, rows of [`Sampling::row`];
    /// `tokens` (rows) U32, in another buffer: what is drawn, or [`Sample::NO_TOKEN`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Shape`], [`ErrorKind::DType`], [`ErrorKind::Argument`].
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
        let params = params_of(self.vocab, &logits);
        let mut buffers = vec![&logits.tensor.buffer, &samplers.buffer, &tokens.buffer];
        let tops = self.parts.as_ref().map(|parts| parts.tops_of(&self.gpu, self.vocab, rows)).transpose()?;
        if let Some((parts, tops)) = self.parts.as_ref().zip(tops.as_ref()) {
            let grid = (word(self.vocab.div_ceil(PART)), word(rows), 1);
            self.gpu.dispatch(pass, &parts.kernel, &params, &[&logits.tensor.buffer, tops], grid)?;
            buffers.push(tops);
        }
        self.gpu.dispatch_over(pass, &self.kernel, &params, &buffers, (word(rows), 1, 1), tokens.whole().as_slice())
    }

    /// [`Sample::encode`] into the [`Gpu`]'s own pass.
    ///
    /// # Errors
    ///
    /// As [`Sample::encode`].
    pub fn run(&self, logits: Span<'_>, samplers: &Tensor, tokens: &Tensor) -> Result<()> {
        self.gpu.record(|pass| self.encode(pass, logits, samplers, tokens))
    }
}

impl PartTops {
    /// Memory for the tops of so many rows.
    fn tops_of(&self, gpu: &Gpu, vocab: usize, rows: usize) -> Result<Buffer> {
        let mut tops = self.tops.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = (8 * vocab.div_ceil(PART)) as u64 * rows as u64;
        if bytes > tops.size_bytes() {
            *tops = gpu.create_scratch("tops", bytes)?;
        }
        Ok(tops.clone())
    }
}
