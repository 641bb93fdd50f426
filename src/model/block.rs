//! One block of the decoder: attention and SwiGLU, each behind a norm and added to the residual stream.

use super::attention::{Attention, AttentionScratch, AttentionStep};
use super::config::Config;
use super::weights::{Matrix, Source};
use crate::error::Result;
use crate::gpu::{DType, Gpu, Tensor};
use crate::nn::{Linear, NormShape, RmsNorm, Span, SwiGlu};

pub(super) struct Block {
    input_norm: RmsNorm,
    attention: Attention,
    post_norm: RmsNorm,
    gate_up: Linear,
    swiglu: SwiGlu,
    down: Linear,
}

/// The tensors of a step, F32, one row per token.
pub(super) struct Scratch {
    /// Residual stream: (rows, hidden)
    pub(super) x: Tensor,
    /// (rows, hidden)
    pub(super) normed: Tensor,
    attention: AttentionScratch,
    /// (rows, 2 * intermediate)
    gate_up: Tensor,
    /// (rows, intermediate)
    ffn: Tensor,
}

impl Block {
    pub(super) fn load(gpu: &Gpu, source: &Source<'_>, config: &Config, layer: usize) -> Result<Self> {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
        let plain = NormShape { groups: 1, dim: hidden, tail: 0, eps: config.rms_norm_eps };
        let gate = source.matrix(&name("mlp.gate_proj"), ffn, hidden)?;
        let up = source.matrix(&name("mlp.up_proj"), ffn, hidden)?;
        Ok(Block {
            input_norm: source.norm(&name("input_layernorm"), plain)?,
            attention: Attention::from_source(source, config, &name("self_attn."))?,
            post_norm: source.norm(&name("post_attention_layernorm"), plain)?,
            gate_up: source.linear(&Matrix::stack(&[gate, up]))?,
            swiglu: SwiGlu::new(gpu)?,
            down: source.linear(&source.matrix(&name("mlp.down_proj"), hidden, ffn)?)?,
        })
    }

    /// Records the block for the step's rows: `x` in, `x` out.
    pub(super) fn run(&self, layer: usize, s: &Scratch, step: &mut AttentionStep<'_>) -> Result<()> {
        let (rows, x, normed) = (step.rows, Span::of(&s.x), Span::of(&s.normed));
        self.input_norm.run(rows, x, normed)?;
        self.attention.run(layer, &s.attention, step, normed, x)?;
        self.post_norm.run(rows, x, normed)?;
        self.gate_up.run(rows, normed, Span::of(&s.gate_up), false)?;
        self.swiglu.run(&s.gate_up, &s.ffn)?;
        self.down.run(rows, Span::of(&s.ffn), x, true)
    }
}

impl Scratch {
    /// Tensors of `rows` rows.
    pub(super) fn new(gpu: &Gpu, config: &Config, rows: usize) -> Result<Self> {
        let f32s = |dim: usize| Tensor::zeros(gpu, &[rows, dim], DType::F32);
        Ok(Scratch {
            x: f32s(config.hidden_size)?,
            normed: f32s(config.hidden_size)?,
            attention: AttentionScratch::new(gpu, config, rows)?,
            gate_up: f32s(2 * config.intermediate_size)?,
            ffn: f32s(config.intermediate_size)?,
        })
    }

    /// The same memory for the first `rows` rows.
    pub(super) fn first(&self, rows: usize) -> Result<Self> {
        let cut = |t: &Tensor| t.view(&[&[rows], &t.shape()[1..]].concat());
        Ok(Scratch {
            x: cut(&self.x)?,
            normed: cut(&self.normed)?,
            attention: self.attention.first(rows)?,
            gate_up: cut(&self.gate_up)?,
            ffn: cut(&self.ffn)?,
        })
    }
}
