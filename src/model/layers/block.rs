//! One block of the decoder: attention and a feed-forward part, each behind a norm and added to the residual stream.

use super::attention::{Attention, AttentionScratch, AttentionStep, ScratchForms};
use super::feed_forward::{FeedForward, MixtureScratch};
use crate::error::Result;
use crate::gpu::{DType, Gpu, Tensor};
use crate::kv::HeadLayout;
use crate::model::config::share::ModelShare;
use crate::model::config::Config;
use crate::model::weights::reader::WeightReader;
use crate::nn::{NormShape, RmsNorm, Span};

/// What ranks do twice in each block: makes of a step's stream, the rows of all ranks, their sum; where they divide sequences by context,
/// the first time of what each has attended the attention over all. Where there is one rank, nothing.
pub(crate) type Exchange<'a> = &'a mut dyn FnMut() -> Result<()>;

pub(crate) struct Block {
    /// With the norm before it.
    attention: Attention,
    feed_forward: FeedForward,
    /// Norms behind attention and feed-forward part, if there are any: what they make is added to the stream.
    behind: Option<[RmsNorm; 2]>,
}

/// The tensors of a step, F32, one row per token.
pub(crate) struct Scratch {
    /// Residual stream: (rows, hidden)
    pub(crate) x: Tensor,
    attention: AttentionScratch,
    /// (rows, the widest SwiGLU that every token goes through)
    pub(crate) ffn: Tensor,
    /// What a part of a block makes before its norm, of blocks with norms behind: (rows, hidden)
    pub(crate) branch: Tensor,
    pub(crate) mixture: MixtureScratch,
}

impl Block {
    /// A rank's share of the block of a model.
    pub(crate) fn load(source: &WeightReader<'_>, config: &Config, share: &ModelShare, layer: usize) -> Result<Self> {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let (config, share) = (&config.of_layer(layer), &share.of_layer(layer));
        let norm = config.norms.before().then(|| name("input_layernorm"));
        let shape = NormShape { groups: 1, dim: config.hidden_size, tail: 0, eps: config.rms_norm_eps };
        let behind = |part| source.norm(&name(config.files.names.of(part)), shape).map(RmsNorm::adding);
        let norms = || -> Result<_> { Ok([behind("post_self_attn_layernorm")?, behind("post_mlp_layernorm")?]) };
        Ok(Block {
            attention: Attention::from_source(source, (config, share), &name("self_attn."), norm.as_deref())?,
            feed_forward: FeedForward::load(source, config, share, layer)?,
            behind: config.norms.after().then(norms).transpose()?,
        })
    }

    pub(crate) fn keeps_explicit(&self) -> bool {
        self.attention.keeps_explicit()
    }

    /// The attention, with the norm before it.
    pub(crate) fn attention(&self) -> &Attention {
        &self.attention
    }

    /// Records the block for the step's rows: `x` in, `x` out. Of a rank's share `x` is, after each of the two parts, what the rank
    /// adds to the stream, the first rank's with the stream itself; `exchange` makes it the sum of all. Where ranks divide sequences by
    /// context, the attention's part is the same on all of them.
    pub(crate) fn run(
        &self,
        layer: usize,
        s: &Scratch,
        step: &mut AttentionStep<'_>,
        exchange: Exchange<'_>,
    ) -> Result<()> {
        let (rows, x) = (step.rows, Span::of(&s.x));
        // One rank has it all where there are norms behind, so there is nothing to exchange.
        if let Some([of_attention, of_feed_forward]) = &self.behind {
            let branch = Span::of(&s.branch);
            self.attention.run(layer, &s.attention, step, (x, branch), exchange)?;
            of_attention.run(rows, branch, x)?;
            self.feed_forward.run(rows, s, branch)?;
            return of_feed_forward.run(rows, branch, x);
        }
        self.attention.run(layer, &s.attention, step, (x, x), exchange)?;
        if !self.attention.is_by_context() {
            exchange()?;
        }
        self.feed_forward.run(rows, s, x)?;
        exchange()
    }
}

impl Scratch {
    /// Tensors of `rows` rows for a cache of `layout`, with those that forms need.
    pub(crate) fn new(
        gpu: &Gpu,
        (config, layout): (&Config, &HeadLayout),
        rows: usize,
        forms: ScratchForms,
    ) -> Result<Self> {
        let f32s = |dim: usize| Tensor::scratch(gpu, &[rows, dim], DType::F32);
        Ok(Scratch {
            x: f32s(config.hidden_size)?,
            attention: AttentionScratch::new(gpu, (config, layout), rows, forms)?,
            ffn: f32s(config.experts.map_or(0, |e| e.shared_width).max(config.intermediate_size))?,
            branch: f32s(if config.norms.after() { config.hidden_size } else { 1 })?,
            mixture: MixtureScratch::new(gpu, config, rows)?,
        })
    }

    /// [`AttentionScratch::found`] of the first `rows` rows.
    pub(crate) fn found(&self, config: &Config, rows: usize) -> Result<[Tensor; 2]> {
        let [values, lse] = self.attention.found(config);
        let cut = |t: &Tensor| t.view(&[&[rows], &t.shape()[1..]].concat());
        Ok([cut(values)?, cut(lse)?])
    }

    /// The same memory for the first `rows` rows.
    pub(crate) fn first(&self, rows: usize) -> Result<Self> {
        let cut = |t: &Tensor| t.view(&[&[rows], &t.shape()[1..]].concat());
        let (attention, mixture) = (self.attention.first(rows)?, self.mixture.first(rows)?);
        Ok(Scratch { x: cut(&self.x)?, attention, ffn: cut(&self.ffn)?, branch: cut(&self.branch)?, mixture })
    }
}
