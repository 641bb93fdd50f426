//! What a session's steps read and write on the device, made once.

use super::draws::ShapedBuffers;
use super::SessionOptions;
use crate::cache::PagedKvCache;
use crate::error::Result;
use crate::gpu::{DType, Gpu, Tensor};
use crate::model::decoder::Decoder;
use crate::model::layers::attention::ScratchForms;
use crate::model::layers::block::{Block, Scratch};
use crate::nn::{Embedding, Linear, RopeWideKernel, Sampling, Weight};

/// The tensors of a session's steps.
pub(crate) struct Buffers {
    pub(crate) scratch: Scratch,
    /// Each layer's product that appends; none where a layer has none.
    pub(crate) appending: Option<Vec<Linear>>,
    /// Of a cache with wide channels.
    pub(crate) rotate_wide: Option<RopeWideKernel>,
    /// (capacity) U32
    pub(crate) ids: Tensor,
    /// Row of the last token of each sequence that ends in a step: (max_batch) U32
    pub(crate) last_rows: Tensor,
    /// Gathers those rows of the residual stream.
    pub(crate) gather: Embedding,
    /// (max_batch, hidden)
    pub(crate) last: Tensor,
    /// (max_batch, vocab_size); (capacity, vocab_size) once all logits have been asked for
    pub(crate) logits: Tensor,
    /// (max_batch, 4)
    pub(crate) samplers: Tensor,
    /// The rows that were last written there.
    pub(crate) samplers_there: Vec<[f32; 4]>,
    /// (max_batch) U32
    pub(crate) tokens: Tensor,
    /// What draws need beyond temperature and nucleus.
    pub(crate) shaped: ShapedBuffers,
    /// Once the most likely tokens have been asked for.
    pub(crate) most_likely: Option<MostLikely>,
    /// Of a drafter, once it guessed: (guesses) U32
    pub(crate) guesses: Option<Tensor>,
}

/// The most likely token after each token of a step, and the rows that ask for it.
pub(crate) struct MostLikely {
    /// (rows, 4): all the same
    pub(crate) samplers: Tensor,
    /// (rows) U32
    pub(crate) tokens: Tensor,
}

impl Buffers {
    /// For steps with a cache like this one.
    pub(crate) fn new(
        decoder: &Decoder,
        options: &SessionOptions,
        cache: &PagedKvCache,
        explicit: bool,
    ) -> Result<Self> {
        let layout = cache.heads();
        let (gpu, config) = (decoder.gpu(), decoder.config());
        let (batch, capacity) = (options.max_batch, options.chunk.max(options.max_batch));
        let forms = ScratchForms { explicit, by_context: decoder.shard().is_by_context() };
        let scratch = Scratch::new(gpu, (decoder.own_config(), layout), capacity, forms).map_err(|e| {
            e.of(&format!("a tensor of a step of {capacity} tokens (SessionOptions::chunk or max_batch)"))
        })?;
        let gather = Embedding::new(gpu, &Weight::from_rows(&scratch.x)?)?;
        // Written anew by every step, which looks whether commands were lost while it was under way.
        let tensor = |shape: &[usize], dtype| Tensor::scratch(gpu, shape, dtype);
        let rotation = config.rope()?.pairs;
        let blocks = decoder.inner.blocks.iter().enumerate();
        let appending = |(layer, block): (usize, &Block)| block.attention().appending(&cache.layer(layer)?, rotation);
        let appending = blocks.map(appending).collect::<Result<_>>()?;
        let rotate_wide = || RopeWideKernel::new(gpu, *layout, rotation);
        Ok(Buffers {
            scratch,
            appending,
            rotate_wide: (layout.wide_dim() > 0).then(rotate_wide).transpose()?,
            ids: tensor(&[capacity], DType::U32)?,
            last_rows: tensor(&[batch], DType::U32)?,
            gather,
            last: tensor(&[batch, config.hidden_size], DType::F32)?,
            logits: logits(decoder, batch)?,
            samplers: tensor(&[batch, 4], DType::F32)?,
            samplers_there: Vec::new(),
            tokens: tensor(&[batch], DType::U32)?,
            shaped: ShapedBuffers::default(),
            most_likely: None,
            guesses: None,
        })
    }

    /// Makes room for the logits of `rows` rows.
    pub(crate) fn grow_logits(&mut self, decoder: &Decoder, rows: usize) -> Result<()> {
        if rows > self.logits.shape()[0] {
            self.logits = logits(decoder, rows)?;
        }
        Ok(())
    }

    /// Makes room for the most likely tokens after `rows` tokens.
    pub(crate) fn grow_most_likely(&mut self, gpu: &Gpu, rows: usize) -> Result<()> {
        if self.most_likely.as_ref().is_some_and(|there| rows <= there.tokens.shape()[0]) {
            return Ok(());
        }
        let greedy = vec![Sampling::default().row(0.0)?; rows];
        let samplers = Tensor::from_slice(gpu, &[rows, 4], greedy.as_flattened(), DType::F32)?;
        self.most_likely = Some(MostLikely { samplers, tokens: Tensor::scratch(gpu, &[rows], DType::U32)? });
        Ok(())
    }
}

fn logits(decoder: &Decoder, rows: usize) -> Result<Tensor> {
    let vocab = decoder.config().vocab_size;
    let logits = Tensor::scratch(decoder.gpu(), &[rows, vocab], DType::F32);
    logits.map_err(|e| e.of(&format!("the logits of {rows} tokens over a vocabulary of {vocab}")))
}
