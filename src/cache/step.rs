//! What a step writes into the cache: new rows, at the slots and under the angles of the reserved tokens.

use super::{PagedKvCache, SeqId};
use crate::error::{ErrorKind, Result};
use crate::gpu::{DType, Gpu, Span, Tensor};
#[cfg(doc)]
use crate::kv::append::Append;
use crate::kv::append::AppendArgs;
use crate::kv::{KvSource, KvView};
use crate::rope::cos_sin_table;

/// What the appends of one step share: made at the first, used by all layers.
pub(super) struct Step {
    generation: u64,
    sequences: Vec<SeqId>,
    tokens: usize,
}

pub(super) struct StepBuffers {
    slots: Tensor,
    /// Of layers that have pools of their own.
    window_slots: Tensor,
    /// Of the cache's rotation, then of those that some layers have instead.
    cos_sin: Vec<Tensor>,
}

impl StepBuffers {
    /// For so many elements that rotate, and so many rotations.
    pub(super) fn new(gpu: &Gpu, tokens: usize, (rotated_dim, ropes): (usize, usize)) -> Result<Self> {
        let slots = Tensor::zeros(gpu, &[tokens], DType::U32)?;
        let window_slots = Tensor::zeros(gpu, &[tokens], DType::U32)?;
        let angles = |_| Tensor::zeros(gpu, &[tokens, rotated_dim / 2, 2], DType::F32);
        Ok(Self { slots, window_slots, cos_sin: (0..ropes).map(angles).collect::<Result<_>>()? })
    }
}

impl PagedKvCache {
    /// Writes the reserved tokens of these sequences into one layer.
    ///
    /// `kv`: `(tokens, groups * state_dim + rope_dim)` f32, the sequences' reserved tokens one after the other: states,
    /// then the rope key, not rotated if the cache has a rotation. Call it once per layer and step.
    ///
    /// The step's first call of this or [`PagedKvCache::cos_sin`] uploads slots and angles, and so submits what is
    /// recorded: call `cos_sin` first where a step is to be one submit. For a pass of your own there is
    /// [`Append::encode`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for a layer that is not there or no reserved token, and for wide channels that nobody
    /// has named ([`PagedKvCache::with_wide_channels`]); [`ErrorKind::Shape`], [`ErrorKind::DType`], [`ErrorKind::UnknownSequence`], [`ErrorKind::RepeatedSequence`].
    pub fn append(&mut self, layer: usize, ids: &[SeqId], kv: &Tensor) -> Result<()> {
        let view = self.layer(layer)?;
        let tokens = self.prepare_step(ids)?;
        kv.expect("kv", &[tokens, self.heads.kv_dim()], DType::F32)?;
        self.record_append((layer, &view), tokens, Span::of(kv))
    }

    /// [`PagedKvCache::append`] of rows inside a tensor.
    pub(crate) fn append_span(&mut self, layer: usize, ids: &[SeqId], kv: Span<'_>) -> Result<()> {
        let view = self.layer(layer)?;
        let tokens = self.prepare_step(ids)?;
        self.record_append((layer, &view), tokens, kv)
    }

    fn record_append(&self, (layer, view): (usize, &KvView), tokens: usize, kv: Span<'_>) -> Result<()> {
        let args = AppendArgs { kv, slots: self.step_slots(layer), cos_sin: self.step_angles(layer)?, tokens };
        self.gpu.record(|pass| self.append.encode(&self.gpu, pass, view, args))
    }

    fn step_slots(&self, layer: usize) -> &Tensor {
        match self.is_window_layer(layer) {
            true => &self.step_buffers.window_slots,
            false => &self.step_buffers.slots,
        }
    }

    /// [`PagedKvCache::slots`] of one layer, for the step that was prepared last.
    #[cfg(feature = "model")]
    pub(crate) fn slots_of(&self, layer: usize) -> Tensor {
        self.step_slots(layer).clone()
    }

    fn step_angles(&self, layer: usize) -> Result<&Tensor> {
        let angles = self.step_buffers.cos_sin.get(self.layer_ropes.of(layer));
        angles.ok_or_else(|| ErrorKind::argument("layer", format!("{layer} has no rotation")))
    }

    /// [`PagedKvCache::cos_sin`] of one layer, for the step that was prepared last.
    #[cfg(feature = "model")]
    pub(crate) fn angles(&self, layer: usize) -> Result<Tensor> {
        self.step_angles(layer).cloned()
    }

    /// Where the reserved tokens of these sequences go: at least (tokens) u32, for a product that appends, which the next step
    /// overwrites.
    pub(crate) fn slots(&mut self, ids: &[SeqId]) -> Result<Tensor> {
        self.prepare_step(ids)?;
        Ok(self.step_buffers.slots.clone())
    }

    /// Cosines and sines at the positions of the reserved tokens of these sequences, for rotating their queries:
    /// a tensor of at least `(tokens, rotated / 2, 2)` f32, which the next step overwrites. Without a rotation its values
    /// mean nothing. It is that of layers which rotate as the cache does.
    ///
    /// # Errors
    ///
    /// As [`PagedKvCache::append`].
    pub fn cos_sin(&mut self, ids: &[SeqId]) -> Result<Tensor> {
        self.prepare_step(ids)?;
        Ok(self.step_buffers.cos_sin[0].clone())
    }

    /// Makes room for steps of so many tokens.
    pub(super) fn make_step_buffers(&mut self, tokens: usize) -> Result<()> {
        let sizes = (self.append.rotated_dim().max(2), 1 + self.layer_ropes.others().len());
        self.step_buffers = StepBuffers::new(&self.gpu, tokens, sizes)?;
        self.step = None;
        Ok(())
    }

    /// Uploads slots and rotations of a step, unless they are there.
    fn prepare_step(&mut self, ids: &[SeqId]) -> Result<usize> {
        let generation = self.table.generation();
        if let Some(step) = self.step.as_ref().filter(|s| s.generation == generation && s.sequences == ids) {
            return Ok(step.tokens);
        }
        let batch = self.table.new_tokens(ids)?;
        let tokens = batch.tokens();
        if tokens == 0 {
            return Err(ErrorKind::argument("ids", "no token is reserved"));
        }
        if self.step_buffers.slots.len() < tokens {
            self.make_step_buffers(tokens.next_power_of_two())?;
        }
        if let Some(windows) = &self.windows {
            // Each new token's page has a place since it was reserved.
            let page_size = self.pages.size as u32; // no truncation: up to MAX_PAGE_SIZE
            let place = |slot: &u32| Some(windows.pages.place(slot / page_size)? * page_size + slot % page_size);
            let slots: Vec<u32> = batch.slots.iter().map(|slot| place(slot).unwrap_or(u32::MAX)).collect();
            self.gpu.write(&self.step_buffers.window_slots.buffer, 0, bytemuck::cast_slice(&slots))?;
        }
        let mut slots = batch.slots;
        if let Some(share) = self.share {
            slots.iter_mut().for_each(|slot| *slot = share.slot(*slot)); // the rows of others are written nowhere
        }
        self.gpu.write(&self.step_buffers.slots.buffer, 0, bytemuck::cast_slice(&slots))?;
        let ropes = std::iter::once(&self.inv_freq).chain(self.layer_ropes.others());
        for (inv_freq, angles) in ropes.zip(&self.step_buffers.cos_sin) {
            let table = cos_sin_table(inv_freq, &batch.positions);
            self.gpu.write(&angles.buffer, 0, bytemuck::cast_slice(&table))?;
        }
        self.step = Some(Step { generation, sequences: ids.to_vec(), tokens });
        Ok(tokens)
    }
}
