//! One block of the decoder: attention and SwiGLU, each behind a norm and added to the residual stream.

use super::attention::{Attention, AttentionScratch, AttentionStep};
use super::config::Config;
use super::weights::{Matrix, Source};
use crate::error::Result;
use crate::gpu::{DType, Gpu, Tensor};
use crate::nn::{Linear, Span};

pub(super) struct Block {
    /// With the norm before it.
    attention: Attention,
    /// [gate | up], with the norm before and the SwiGLU behind it.
    gate_up: Linear,
    down: Linear,
}

/// The tensors of a step, F32, one row per token.
pub(super) struct Scratch {
    /// Residual stream: (rows, hidden)
    pub(super) x: Tensor,
    attention: AttentionScratch,
    /// (rows, intermediate)
    ffn: Tensor,
}

impl Block {
    pub(super) fn load(source: &Source<'_>, config: &Config, layer: usize) -> Result<Self> {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
        let gate = source.matrix(&name("mlp.gate_proj"), ffn, hidden)?;
        let up = source.matrix(&name("mlp.up_proj"), ffn, hidden)?;
        let gate_up = source.linear(&Matrix::stack(&[gate, up]))?;
        let gate_up = source.normed(gate_up, &name("post_attention_layernorm"), config.rms_norm_eps)?;
        let norm = name("input_layernorm");
        Ok(Block {
            attention: Attention::from_source(source, config, &name("self_attn."), Some(&norm))?,
            gate_up: gate_up.with_swiglu()?,
            down: source.linear(&source.matrix(&name("mlp.down_proj"), hidden, ffn)?)?,
        })
    }

    /// Records the block for the step's rows: `x` in, `x` out.
    pub(super) fn run(&self, layer: usize, s: &Scratch, step: &mut AttentionStep<'_>) -> Result<()> {
        let (rows, x, ffn) = (step.rows, Span::of(&s.x), Span::of(&s.ffn));
        self.attention.run(layer, &s.attention, step, x, x)?;
        self.gate_up.run(rows, x, ffn, false)?;
        self.down.run(rows, ffn, x, true)
    }
}

impl Scratch {
    /// Tensors of `rows` rows.
    pub(super) fn new(gpu: &Gpu, config: &Config, rows: usize) -> Result<Self> {
        let f32s = |dim: usize| Tensor::zeros(gpu, &[rows, dim], DType::F32);
        Ok(Scratch {
            x: f32s(config.hidden_size)?,
            attention: AttentionScratch::new(gpu, config, rows)?,
            ffn: f32s(config.intermediate_size)?,
        })
    }

    /// The same memory for the first `rows` rows.
    pub(super) fn first(&self, rows: usize) -> Result<Self> {
        let cut = |t: &Tensor| t.view(&[&[rows], &t.shape()[1..]].concat());
        Ok(Scratch { x: cut(&self.x)?, attention: self.attention.first(rows)?, ffn: cut(&self.ffn)? })
    }
}
