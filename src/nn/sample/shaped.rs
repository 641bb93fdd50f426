//! The next token of rows with more than temperature and nucleus: penalties, biases, masks, and other cuts.

use super::sampling::check_u;
use super::{params_of, Sample, Sampling};
use crate::error::{ErrorKind, Result};
use crate::gpu::{check_apart, Extent};
use crate::gpu::{number, part, Access, Buffer, DType, Gpu, Kernel, KernelSpec, Tensor};
use crate::nn::{word, Span};
use std::sync::{Arc, Mutex, PoisonError};

const LANES: usize = 256;
/// Lanes of the kernels that go through parts, one for each bucket.
const PART_LANES: usize = 64;
const BUCKETS: usize = 64;
/// Words of a row before the lists, and what stands for nothing there. Mirrored in shaders/nn/sampled_rows.wgsl.
const HEAD: usize = 16;
const NONE: u32 = u32::MAX;

/// Logits of a part: as many parts as one workgroup has lanes, as far as a part's memory allows.
fn part_of(vocab: usize) -> usize {
    (vocab / LANES).next_power_of_two().clamp(16, 1024)
}

/// The three kernels, in the order in which they run.
pub(in crate::nn) fn specs(vocab: usize) -> [KernelSpec; 3] {
    let part = part_of(vocab);
    let consts = |lanes| vec![("LANES", number(lanes)), ("PART", number(part))];
    let (top, rows) = (part!("nn/top.wgsl"), part!("nn/sampled_rows.wgsl"));
    let (parts, places) = (part!("nn/row_top/parts.wgsl"), part!("nn/sampled_places.wgsl"));
    use Access::{Read, Write};
    let shape = KernelSpec {
        name: "sampled_shape",
        consts: consts(PART_LANES),
        parts: vec![top, rows, part!("nn/sampled_shape.wgsl")],
        bindings: vec![Read, Read, Read, Write, Write],
        workgroup_bytes: 8 * PART_LANES + 4 * part + 4,
    };
    let buckets = KernelSpec {
        name: "sampled_buckets",
        consts: consts(PART_LANES),
        parts: vec![top, parts, rows, places, part!("nn/sampled_buckets.wgsl")],
        bindings: vec![Read, Read, Write, Read, Write],
        workgroup_bytes: 8 * PART_LANES + 8 * part + 4 * BUCKETS,
    };
    let draw = KernelSpec {
        name: "sampled_draw",
        consts: consts(LANES),
        parts: vec![top, parts, rows, places, part!("nn/sampled_sums.wgsl"), part!("nn/sampled_draw.wgsl")],
        bindings: vec![Read, Read, Read, Read, Read, Write],
        workgroup_bytes: 8 * LANES + 8 * 16 + 16 * BUCKETS + 8 + 8,
    };
    [shape, buckets, draw]
}

/// What is known of one token of a row before it is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ListedToken {
    /// Which.
    pub token: u32,
    /// How often it is in the window of the penalties, prompt included.
    pub seen: u32,
    /// How often it was drawn there.
    pub drawn: u32,
    /// Added to its logit, in -1000..=1000; 0 changes nothing.
    pub bias: f32,
}

/// One row of a [`ShapedSample`].
#[derive(Debug, Clone, Copy)]
pub struct ShapedRow<'a> {
    /// Of the logits, and of the tokens that are written.
    pub row: usize,
    /// How it is drawn. The window of its penalties is for whoever makes the list.
    pub sampling: Sampling,
    /// In [0, 1).
    pub u: f32,
    /// Tokens with a bias or in the window, each once, ascending.
    pub listed: &'a [ListedToken],
    /// A bit for each token, from the lowest bit of the first word on, where a 0 forbids it: (vocab / 32, rounded up). None
    /// allows all.
    pub mask: Option<&'a [u32]>,
    /// Which of the tokens of the step before belongs to the window, too, as one that was drawn: the host does not know it.
    pub drawn: Option<usize>,
}

impl<'a> ShapedRow<'a> {
    /// One without lists or mask.
    pub fn new(row: usize, sampling: Sampling, u: f32) -> Self {
        ShapedRow { row, sampling, u, listed: &[], mask: None, drawn: None }
    }
}

/// Draws one token per row of logits with all that [`Sampling`] has, biases and masks; defined in
/// [`reference::sample_shaped`](crate::reference::sample_shaped). Rows that are not named are left alone.
///
/// Three dispatches: one shapes the logits and finds the tops of their parts, one sorts each part by how far its logits are below
/// the top, and one cuts and draws. A row has 8 bytes of scratch memory for each token of the vocabulary and 1 KiB for each part,
/// of which there are at most 256, or one for each 1,024 tokens.
#[derive(Debug, Clone)]
pub struct ShapedSample {
    gpu: Gpu,
    vocab: usize,
    part: usize,
    kernels: [Kernel; 3],
    scratch: Arc<Mutex<Option<ShapedScratch>>>,
}

/// What the kernels leave to each other, for some rows.
#[derive(Debug, Clone)]
struct ShapedScratch {
    rows: usize,
    tops: Buffer,
    shaped: Buffer,
    buckets: Buffer,
    sorted: Buffer,
}

impl ShapedSample {
    /// Compiles the kernels for rows of `vocab` logits.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for 0.
    pub fn new(gpu: &Gpu, vocab: usize) -> Result<Self> {
        if vocab == 0 {
            return Err(ErrorKind::argument("vocab", "0 logits"));
        }
        let [shape, buckets, draw] = specs(vocab);
        let kernels = [gpu.kernel(shape)?, gpu.kernel(buckets)?, gpu.kernel(draw)?];
        Ok(ShapedSample { gpu: gpu.clone(), vocab, part: part_of(vocab), kernels, scratch: Arc::default() })
    }

    /// Rows as the kernels read them: (words) U32, for a tensor of the caller's.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for no rows, those of [`Sampling::check`], a `u` outside [0, 1), a list that is not ascending or
    /// names a token that is not in the vocabulary, a bias outside -1000..=1000, a mask that allows no token of the vocabulary;
    /// [`ErrorKind::Shape`] for a mask of another length.
    pub fn words(&self, rows: &[ShapedRow<'_>]) -> Result<Vec<u32>> {
        if rows.is_empty() {
            return Err(ErrorKind::argument("rows", "none"));
        }
        let mut words = vec![0; rows.len() * HEAD];
        for (i, row) in rows.iter().enumerate() {
            row.check(self.vocab)?;
            let list = words.len();
            words.extend(row.listed.iter().flat_map(|t| [t.token, t.seen, t.drawn, t.bias.to_bits()]));
            let mask = row.mask.map_or(NONE, |_| word(words.len()));
            words.extend_from_slice(row.mask.unwrap_or_default());
            let Sampling { min_p, top_k, typical_p, top_p, penalties, .. } = row.sampling;
            let below = if min_p > 0.0 { -f64::from(min_p).ln() as f32 } else { f32::MAX };
            let off = penalties.are_off();
            let head = [
                word(row.row),
                row.sampling.divisor().to_bits(),
                top_p.to_bits(),
                row.u.to_bits(),
                top_k,
                below.to_bits(),
                typical_p.to_bits(),
                if off { 1.0 } else { penalties.repetition }.to_bits(),
                if off { 0.0 } else { penalties.presence }.to_bits(),
                if off { 0.0 } else { penalties.frequency }.to_bits(),
                word(list),
                word(row.listed.len()),
                mask,
                row.drawn.map_or(NONE, word),
            ];
            if let Some(place) = words.get_mut(i * HEAD..i * HEAD + head.len()) {
                place.copy_from_slice(&head);
            }
        }
        Ok(words)
    }

    /// Records. `logits` is (.., vocab) F32 at offset 0; `rows` (words) U32, those of [`ShapedSample::words`] of `count` rows;
    /// `before` (..) U32, the tokens of the step before, which may be `tokens`; `tokens` (..) U32, in another buffer than the
    /// rest: of each row that is named, what is drawn, or [`Sample::NO_TOKEN`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Shape`], [`ErrorKind::DType`], [`ErrorKind::Argument`].
    pub fn encode(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        logits: Span<'_>,
        (rows, count): (&Tensor, usize),
        before: &Tensor,
        tokens: &Tensor,
    ) -> Result<()> {
        for (name, tensor) in [("rows", rows), ("before", before), ("tokens", tokens)] {
            tensor.expect(name, &[0], DType::U32)?;
        }
        if count == 0 || count > rows.len() / HEAD {
            return Err(ErrorKind::argument("rows", format!("{} words for {count} rows", rows.len())));
        }
        logits.check("logits", Extent { rows: tokens.len(), heads: 1, dim: self.vocab })?;
        if logits.offset != 0 {
            return Err(ErrorKind::argument("logits", format!("offset {}, wanted 0", logits.offset)));
        }
        check_apart("tokens", tokens, &[logits.tensor, rows])?;
        self.encode_shape(pass, logits, (rows, count), before)?;
        self.encode_draw(pass, logits, (rows, count), tokens)
    }

    /// The part of [`ShapedSample::encode`] that reads `before`.
    fn encode_shape(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        logits: Span<'_>,
        (rows, count): (&Tensor, usize),
        before: &Tensor,
    ) -> Result<()> {
        let (scratch, params) = (self.scratch(count)?, params_of(self.vocab, &logits));
        let buffers = [&rows.buffer, &logits.tensor.buffer, &before.buffer, &scratch.tops, &scratch.shaped];
        self.gpu.dispatch(pass, &self.kernels[0], &params, &buffers, self.grid(count))
    }

    /// The rest of it.
    fn encode_draw(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        logits: Span<'_>,
        (rows, count): (&Tensor, usize),
        tokens: &Tensor,
    ) -> Result<()> {
        let (scratch, params) = (self.scratch(count)?, params_of(self.vocab, &logits));
        let ShapedScratch { tops, shaped, sorted, buckets, rows: _ } = &scratch;
        let rows = &rows.buffer;
        self.gpu.dispatch(pass, &self.kernels[1], &params, &[rows, shaped, buckets, tops, sorted], self.grid(count))?;
        let buffers = [rows, shaped, buckets, tops, sorted, &tokens.buffer];
        self.gpu.dispatch(pass, &self.kernels[2], &params, &buffers, (word(count), 1, 1))
    }

    fn grid(&self, rows: usize) -> (u32, u32, u32) {
        (word(self.vocab.div_ceil(self.part)), word(rows), 1)
    }

    /// Records the first dispatch, for whoever has others write the tokens before the last one does ([`ShapedSample::draw`]).
    /// Both with what [`ShapedSample::encode`] would take.
    #[cfg(feature = "model")]
    pub(crate) fn shape(&self, logits: Span<'_>, rows: (&Tensor, usize), before: &Tensor) -> Result<()> {
        self.gpu.record(|pass| self.encode_shape(pass, logits, rows, before))
    }

    /// Records the others.
    #[cfg(feature = "model")]
    pub(crate) fn draw(&self, logits: Span<'_>, rows: (&Tensor, usize), tokens: &Tensor) -> Result<()> {
        self.gpu.record(|pass| self.encode_draw(pass, logits, rows, tokens))
    }

    /// [`ShapedSample::encode`] into the [`Gpu`]'s own pass.
    ///
    /// # Errors
    ///
    /// As [`ShapedSample::encode`].
    pub fn run(&self, logits: Span<'_>, rows: (&Tensor, usize), before: &Tensor, tokens: &Tensor) -> Result<()> {
        self.gpu.record(|pass| self.encode(pass, logits, rows, before, tokens))
    }

    fn scratch(&self, rows: usize) -> Result<ShapedScratch> {
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(scratch) = scratch.as_ref().filter(|scratch| scratch.rows >= rows) {
            return Ok(scratch.clone());
        }
        let (parts, vocab) = (self.vocab.div_ceil(self.part), self.vocab as u64);
        let make = |name, bytes: u64| self.gpu.create_scratch(name, bytes.saturating_mul(rows as u64));
        let new = ShapedScratch {
            rows,
            tops: make("tops of shaped logits", 8 * parts as u64)?,
            shaped: make("shaped logits", 4 * vocab)?,
            buckets: make("buckets of logits", (16 * BUCKETS * parts) as u64)?,
            sorted: make("sorted logits", 4 * vocab)?,
        };
        *scratch = Some(new.clone());
        Ok(new)
    }
}

impl ShapedRow<'_> {
    fn check(&self, vocab: usize) -> Result<()> {
        self.sampling.check()?;
        check_u(self.u)?;
        let mut before = None;
        for &ListedToken { token, bias, .. } in self.listed {
            if token as usize >= vocab {
                return Err(ErrorKind::argument("listed", format!("{token} is not in the vocabulary of {vocab}")));
            }
            if before.is_some_and(|before| before >= token) {
                return Err(ErrorKind::argument("listed", format!("{token} is not above the token before it")));
            }
            check_bias(token, bias)?;
            before = Some(token);
        }
        match self.mask {
            Some(mask) => check_mask(mask, vocab),
            None => Ok(()),
        }
    }
}

/// Refuses a bias out of its range.
fn check_bias(token: u32, bias: f32) -> Result<()> {
    match (-1000.0..=1000.0).contains(&bias) {
        true => Ok(()),
        false => Err(ErrorKind::argument("bias", format!("{bias} for token {token} is not in -1000..=1000"))),
    }
}

/// Refuses a mask of another length, and one that allows nothing.
fn check_mask(mask: &[u32], vocab: usize) -> Result<()> {
    let wanted = vocab.div_ceil(32);
    if mask.len() != wanted {
        return Err(ErrorKind::shape("mask", &[mask.len()], format!("({wanted})")));
    }
    let past = if vocab.is_multiple_of(32) { 0 } else { u32::MAX << (vocab % 32) };
    let allowed = mask.iter().enumerate().any(|(i, bits)| bits & !(if i + 1 == wanted { past } else { 0 }) != 0);
    match allowed {
        true => Ok(()),
        false => Err(ErrorKind::argument("mask", format!("none of {vocab} tokens is allowed"))),
    }
}

const _: () = assert!(PART_LANES == BUCKETS && Sample::NO_TOKEN == NONE);
