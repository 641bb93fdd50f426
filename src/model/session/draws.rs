//! What a step draws: rows on the device, and the kernels that take them.
//!
//! Rows with temperature and nucleus alone go as they always did. For others, and for log-probabilities, there are kernels and
//! memory that the first step makes which wants them. Where a row is constrained, its mask is made on another thread while the
//! device computes the logits, and the draws of that step go to the device in a second submit.

use super::buffers::Buffers;
use super::Session;
use crate::error::{ErrorKind, Result};
use crate::gpu::{DType, Gpu, Tensor};
use crate::model::decoder::DecoderInner;
use crate::model::sampler::{ConstraintCell, DrawRow, TokenMask};
use crate::nn::{Logprobs, ShapedRow, ShapedSample, Span};
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::sync::Arc;

/// Kernels and memory of rows with more than temperature and nucleus.
#[derive(Default)]
pub(crate) struct ShapedBuffers {
    shaped: Option<(ShapedSample, Tensor)>,
    /// (max_batch, 1 + most, 2) U32
    logprobs: Option<(Logprobs, Tensor)>,
}

/// What the draws of a step are, as far as its commands hang on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DrawKinds {
    /// Whether any has temperature and nucleus alone.
    plain: bool,
    /// How many others there are.
    shaped: usize,
    /// The most of the most likely tokens that any wants, where one wants log-probabilities.
    logprobs: Option<usize>,
}

/// The draws of a step, one for each sequence that ends in it.
pub(super) struct StepDraws<'a> {
    /// Of each, its sequence and how it is drawn.
    rows: Vec<(usize, &'a DrawRow)>,
    /// Which of the tokens of the step before belongs to its window and is not known.
    before: Vec<Option<usize>>,
    /// What is allowed, where not all is.
    masks: Vec<Option<TokenMask>>,
    /// Why rows get no token.
    faults: Vec<Option<ErrorKind>>,
}

impl<'a> StepDraws<'a> {
    pub(super) fn new(rows: Vec<(usize, &'a DrawRow)>, before: impl Fn(usize) -> Option<usize>) -> Self {
        let penalised = |(sequence, row): &(usize, &DrawRow)| {
            let on = row.knows_tokens && !row.sampling.penalties.are_off();
            before(*sequence).filter(|_| on)
        };
        let (masks, faults) = (vec![None; rows.len()], vec![None; rows.len()]);
        StepDraws { before: rows.iter().map(penalised).collect(), rows, masks, faults }
    }

    pub(super) fn is_constrained(&self) -> bool {
        self.rows.iter().any(|(_, row)| row.constraint.is_some())
    }

    /// None where nothing is drawn.
    pub(super) fn kinds(&self) -> Option<DrawKinds> {
        if self.rows.is_empty() {
            return None;
        }
        let shaped = (0..self.rows.len()).filter(|place| self.is_shaped(*place)).count();
        let logprobs = self.rows.iter().filter_map(|(_, row)| row.logprobs).max();
        Some(DrawKinds { plain: shaped < self.rows.len(), shaped, logprobs })
    }

    /// Whether a row needs more than temperature and nucleus; one that gets no token does not.
    fn is_shaped(&self, place: usize) -> bool {
        let plain = self.rows[place].1.is_plain() && self.before[place].is_none();
        !plain && self.faults[place].is_none()
    }

    /// Rows of the kernel that draws by temperature and nucleus; others are greedy there, and drawn anew.
    pub(super) fn samplers(&self) -> Result<Vec<[f32; 4]>> {
        let row = |(place, (_, row)): (usize, &(usize, &DrawRow))| match row.is_plain() && !self.is_shaped(place) {
            true => row.sampling.row(row.u),
            false => Ok([0.0, 1.0, 0.0, 0.0]),
        };
        self.rows.iter().enumerate().map(row).collect()
    }

    /// The rows of the others.
    fn shaped(&self) -> Vec<ShapedRow<'_>> {
        let row = |place: usize| {
            let row = self.rows[place].1;
            ShapedRow {
                listed: &row.listed,
                mask: self.masks[place].as_ref().map(TokenMask::words),
                drawn: self.before[place],
                ..ShapedRow::new(place, row.sampling, row.u)
            }
        };
        (0..self.rows.len()).filter(|place| self.is_shaped(*place)).map(row).collect()
    }

    /// Does `work` while masks are made, and returns what it gives. What fails of the masks is the fault of its row.
    pub(super) fn with_masks<T>(&mut self, vocab: usize, work: impl FnOnce() -> T) -> T {
        let rows: Vec<_> = self.rows.iter().map(|(_, row)| row.constraint.clone()).collect();
        let make = move || {
            let mask = |constraint: Option<_>| constraint.map(|cell: Arc<ConstraintCell>| mask_of(&cell, vocab));
            rows.into_iter().map(mask).collect::<Vec<_>>()
        };
        let (done, masks) = beside(make, work);
        for (place, mask) in masks.into_iter().enumerate() {
            match mask {
                Some(Ok(mask)) => self.masks[place] = Some(mask),
                Some(Err(fault)) => self.faults[place] = Some(fault),
                None => {}
            }
        }
        done
    }

    /// The sequences that get no token, and why.
    pub(super) fn into_faults(self) -> Vec<(usize, ErrorKind)> {
        let faults = self.rows.into_iter().zip(self.faults);
        faults.filter_map(|((sequence, _), fault)| Some((sequence, fault?))).collect()
    }
}

fn mask_of(cell: &ConstraintCell, vocab: usize) -> Result<TokenMask, ErrorKind> {
    let asked = catch_unwind(AssertUnwindSafe(|| cell.mask(vocab)));
    let panicked = |_| Err(ErrorKind::Grammar { why: "the constraint panicked".into() }.into());
    asked.unwrap_or_else(panicked).map_err(|error| error.kind().clone())
}

/// Does both, the first on a thread of its own where there are threads.
fn beside<A: Send, B>(first: impl FnOnce() -> A + Send, second: impl FnOnce() -> B) -> (B, A) {
    if cfg!(target_arch = "wasm32") {
        let done = second();
        return (done, first());
    }
    std::thread::scope(|scope| {
        let first = scope.spawn(first);
        let done = second();
        match first.join() {
            Ok(made) => (done, made),
            Err(panic) => resume_unwind(panic), // it catches those of constraints
        }
    })
}

impl Session {
    /// Writes the rows of a step's draws, and makes room for what they give. All writes come before all commands.
    pub(super) fn write_draws(&mut self, draws: &StepDraws<'_>) -> Result<()> {
        let Some(kinds) = draws.kinds() else { return Ok(()) };
        let (gpu, vocab) = (self.decoder.gpu().clone(), self.decoder.config().vocab_size);
        let batch = self.options.max_batch;
        let b = &mut self.buffers;
        if kinds.plain {
            let samplers = draws.samplers()?;
            // Greedy draws are the same in each step.
            if b.samplers_there != samplers {
                b.samplers_there.clear();
                gpu.upload(&b.samplers.view(&[samplers.len(), 4])?, samplers.as_flattened())?;
                b.samplers_there.extend_from_slice(&samplers);
            }
        }
        if kinds.logprobs.is_some() && b.shaped.logprobs.is_none() {
            let out = Tensor::scratch(&gpu, &[batch, 1 + Logprobs::MOST, 2], DType::U32)?;
            b.shaped.logprobs = Some((gpu.lazily(|| Logprobs::new(&gpu, vocab))?, out));
        }
        if kinds.shaped > 0 {
            b.shaped.write(&gpu, vocab, &draws.shaped())?;
        }
        Ok(())
    }
}

impl ShapedBuffers {
    fn write(&mut self, gpu: &Gpu, vocab: usize, rows: &[ShapedRow<'_>]) -> Result<()> {
        let words_of = |len: usize| Tensor::scratch(gpu, &[len.next_power_of_two().max(1024)], DType::U32);
        let (sample, there) = match &mut self.shaped {
            Some(shaped) => shaped,
            None => {
                let sample = gpu.lazily(|| ShapedSample::new(gpu, vocab))?;
                self.shaped.insert((sample, words_of(1)?))
            }
        };
        let words = sample.words(rows)?;
        if words.len() > there.len() {
            *there = words_of(words.len())?;
        }
        gpu.upload(&there.view(&[words.len()])?, &words)
    }

    /// What the commands of such draws hang on besides, for the key of a tape.
    pub(super) fn extend_key(&self, kinds: Option<DrawKinds>, key: &mut Vec<u64>) {
        let Some(DrawKinds { plain, shaped, logprobs }) = kinds else { return key.push(0) };
        key.extend([1 + u64::from(plain), shaped as u64, logprobs.map_or(0, |count| 1 + count as u64)]);
        if let (Some((_, words)), true) = (&self.shaped, shaped > 0) {
            key.push(words.buffer.id());
        }
    }

    /// The log-probabilities of so many rows.
    pub(super) fn logprobs_of(&self, rows: usize, count: usize) -> Result<Option<Tensor>> {
        self.logprobs.as_ref().map(|(_, out)| out.view(&[rows, 1 + count, 2])).transpose()
    }
}

/// Records the draws of `ending` rows of logits, once their rows are written.
pub(super) fn record_draws(model: &DecoderInner, b: &Buffers, ending: usize, kinds: DrawKinds) -> Result<()> {
    let (logits, tokens) = (Span::of(&b.logits), b.tokens.view(&[ending])?);
    let shaped = b.shaped.shaped.as_ref().filter(|_| kinds.shaped > 0);
    // What looks at the tokens of the step before comes before what overwrites them.
    if let Some((sample, words)) = shaped {
        sample.shape(logits, (words, kinds.shaped), &b.tokens)?;
    }
    if kinds.plain {
        model.sample.run(logits, &b.samplers.view(&[ending, 4])?, &tokens)?;
    }
    if let Some((sample, words)) = shaped {
        sample.draw(logits, (words, kinds.shaped), &tokens)?;
    }
    if let (Some(count), Some((kernel, _))) = (kinds.logprobs, &b.shaped.logprobs) {
        if let Some(out) = b.shaped.logprobs_of(ending, count)? {
            kernel.run(logits, &tokens, &out)?;
        }
    }
    Ok(())
}

impl DrawKinds {
    pub(super) fn logprobs(&self) -> Option<usize> {
        self.logprobs
    }
}
