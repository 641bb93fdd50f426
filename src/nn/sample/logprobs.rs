//! Log-probabilities of tokens, and the most likely ones.

use crate::error::{ErrorKind, Result};
use crate::gpu::{check_apart, Extent};
use crate::gpu::{number, part, Access, Buffer, DType, Gpu, Kernel, KernelSpec, Tensor};
use crate::nn::{params, word, Span};
use std::sync::{Arc, Mutex, PoisonError};

params!(LogprobParams { vocab: u32, row_stride: u32, count: u32 });
#[cfg(test)]
pub(in crate::nn) const PARAM_FIELDS: &[(&str, usize)] = LogprobParams::FIELDS;

const LANES: usize = 256;
const PART_LANES: usize = 64;

/// Logits of a part: there are at most as many parts as lanes.
fn part_of(vocab: usize) -> usize {
    vocab.div_ceil(LANES).next_power_of_two().max(PART_LANES)
}

pub(in crate::nn) fn specs(vocab: usize) -> [KernelSpec; 2] {
    let consts = |lanes| vec![("LANES", number(lanes)), ("PART", number(part_of(vocab)))];
    let parts = KernelSpec {
        name: "logprob_parts",
        consts: consts(PART_LANES),
        parts: vec![part!("nn/top.wgsl"), part!("nn/logprob_parts.wgsl")],
        bindings: vec![Access::Read, Access::Write],
        workgroup_bytes: 8 * PART_LANES,
    };
    let rows = KernelSpec {
        name: "logprobs",
        consts: consts(LANES),
        parts: vec![part!("nn/top.wgsl"), part!("nn/sampled_sums.wgsl"), part!("nn/logprobs.wgsl")],
        bindings: vec![Access::Read, Access::Read, Access::Read, Access::Write],
        workgroup_bytes: 8 * LANES + 8 * 16,
    };
    [parts, rows]
}

/// The log-probability of a token of each row of logits, and the most likely tokens with theirs; defined in
/// [`reference::log_probabilities`](crate::reference::log_probabilities). It is that of the logits as they are, whatever the token
/// was drawn with.
#[derive(Debug, Clone)]
pub struct Logprobs {
    gpu: Gpu,
    vocab: usize,
    kernels: [Kernel; 2],
    parts: Arc<Mutex<Buffer>>,
}

impl Logprobs {
    /// The most tokens of a row beside its own.
    pub const MOST: usize = 20;

    /// Compiles the kernels for rows of `vocab` logits.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for 0.
    pub fn new(gpu: &Gpu, vocab: usize) -> Result<Self> {
        if vocab == 0 {
            return Err(ErrorKind::argument("vocab", "0 logits"));
        }
        let [parts, rows] = specs(vocab);
        let kernels = [gpu.kernel(parts)?, gpu.kernel(rows)?];
        let parts = Arc::new(Mutex::new(gpu.create_scratch("parts of log-probabilities", Self::part_bytes(vocab))?));
        Ok(Logprobs { gpu: gpu.clone(), vocab, kernels, parts })
    }

    fn part_bytes(vocab: usize) -> u64 {
        16 * vocab.div_ceil(part_of(vocab)) as u64
    }

    /// Records. `logits` is (rows, vocab) F32 at offset 0; `tokens` (rows) U32, one of each row; `logprobs` (rows, 1 + n, 2) U32, in
    /// another buffer, n up to [`Logprobs::MOST`]: of the row's token, and of its n most likely ones, the more likely first and
    /// of equal ones the lower, the token and the bits of its log-probability, an f32. `u32::MAX` stands where there is none: the
    /// row gives no probabilities, or no finite logit is left; for its token, where it is not in the vocabulary or its logit is
    /// -infinity.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Shape`], [`ErrorKind::DType`], [`ErrorKind::Argument`].
    pub fn encode(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        logits: Span<'_>,
        tokens: &Tensor,
        logprobs: &Tensor,
    ) -> Result<()> {
        tokens.expect("tokens", &[0], DType::U32)?;
        let rows = tokens.len();
        logprobs.expect("logprobs", &[rows, 0, 2], DType::U32)?;
        let count = logprobs.shape()[1] - 1;
        if count > Self::MOST {
            return Err(ErrorKind::argument("logprobs", format!("{count} tokens, wanted at most {}", Self::MOST)));
        }
        logits.check("logits", Extent { rows, heads: 1, dim: self.vocab })?;
        if logits.offset != 0 {
            return Err(ErrorKind::argument("logits", format!("offset {}, wanted 0", logits.offset)));
        }
        check_apart("logprobs", logprobs, &[logits.tensor, tokens])?;
        let (vocab, row_stride) = (word(self.vocab), word(logits.row_stride));
        let params = LogprobParams { vocab, row_stride, count: word(count) };
        let [of_parts, of_rows] = &self.kernels;
        let (parts, logits) = (self.parts_of(rows)?, &logits.tensor.buffer);
        let grid = (word(self.vocab.div_ceil(part_of(self.vocab))), word(rows), 1);
        self.gpu.dispatch(pass, of_parts, &params, &[logits, &parts], grid)?;
        let buffers = [logits, &parts, &tokens.buffer, &logprobs.buffer];
        let whole = logprobs.whole();
        self.gpu.dispatch_over(pass, of_rows, &params, &buffers, (word(rows), 1, 1), whole.as_slice())
    }

    /// [`Logprobs::encode`] into the [`Gpu`]'s own pass.
    ///
    /// # Errors
    ///
    /// As [`Logprobs::encode`].
    pub fn run(&self, logits: Span<'_>, tokens: &Tensor, logprobs: &Tensor) -> Result<()> {
        self.gpu.record(|pass| self.encode(pass, logits, tokens, logprobs))
    }

    fn parts_of(&self, rows: usize) -> Result<Buffer> {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = Self::part_bytes(self.vocab).saturating_mul(rows as u64);
        if bytes > parts.size_bytes() {
            *parts = self.gpu.create_scratch("parts of log-probabilities", bytes)?;
        }
        Ok(parts.clone())
    }
}
