//! What a session's steps read and write on the device, made once.

use super::block::Scratch;
use super::decoder::Decoder;
use super::session::SessionOptions;
use crate::attention::HeadLayout;
use crate::error::Result;
use crate::gpu::{DType, Tensor};
use crate::nn::{Embedding, RotateWide, Weight};

/// The tensors of a session's steps.
pub(super) struct Buffers {
    pub(super) scratch: Scratch,
    /// Of a cache with wide channels.
    pub(super) rotate_wide: Option<RotateWide>,
    /// (capacity) U32
    pub(super) ids: Tensor,
    /// Row of the last token of each sequence that ends in a step: (max_batch) U32
    pub(super) last_rows: Tensor,
    /// Gathers those rows of the residual stream.
    pub(super) gather: Embedding,
    /// (max_batch, hidden)
    pub(super) last: Tensor,
    /// (max_batch, vocab_size); (capacity, vocab_size) once all logits have been asked for
    pub(super) logits: Tensor,
    /// (max_batch, 4)
    pub(super) samplers: Tensor,
    /// (max_batch) U32
    pub(super) tokens: Tensor,
}

impl Buffers {
    /// For steps with a cache of `layout`.
    pub(super) fn new(
        decoder: &Decoder,
        options: &SessionOptions,
        layout: &HeadLayout,
        explicit: bool,
    ) -> Result<Self> {
        let (gpu, config) = (decoder.gpu(), decoder.config());
        let (batch, capacity) = (options.max_batch, options.chunk.max(options.max_batch));
        let scratch = Scratch::new(gpu, (config, layout), (capacity, explicit))?;
        let gather = Embedding::new(gpu, &Weight::from_rows(&scratch.x)?)?;
        let tensor = |shape: &[usize], dtype| Tensor::zeros(gpu, shape, dtype);
        let rotate_wide = || RotateWide::new(gpu, *layout, config.rope().rotation);
        Ok(Buffers {
            scratch,
            rotate_wide: (layout.wide_dim() > 0).then(rotate_wide).transpose()?,
            ids: tensor(&[capacity], DType::U32)?,
            last_rows: tensor(&[batch], DType::U32)?,
            gather,
            last: tensor(&[batch, config.hidden_size], DType::F32)?,
            logits: tensor(&[batch, config.vocab_size], DType::F32)?,
            samplers: tensor(&[batch, 4], DType::F32)?,
            tokens: tensor(&[batch], DType::U32)?,
        })
    }

    /// Makes room for the logits of `rows` rows.
    pub(super) fn grow_logits(&mut self, decoder: &Decoder, rows: usize) -> Result<()> {
        if rows > self.logits.shape()[0] {
            self.logits = Tensor::zeros(decoder.gpu(), &[rows, decoder.config().vocab_size], DType::F32)?;
        }
        Ok(())
    }
}
