//! One block of the decoder: attention and SwiGLU, each behind a norm and added to the residual stream.

use super::config::{AttentionConfig, Config};
use super::weights::{Matrix, Source};
use crate::attention::{Decode, Plan};
use crate::cache::{PagedKvCache, SeqId};
use crate::error::Result;
use crate::gpu::{DType, Gpu, Tensor};
use crate::nn::{Linear, NormShape, RmsNorm, Rotate, RotateShape, Span, SwiGlu};

pub(super) struct Block {
    input_norm: RmsNorm,
    attention: Projections,
    o: Linear,
    post_norm: RmsNorm,
    gate_up: Linear,
    swiglu: SwiGlu,
    down: Linear,
}

/// From the normed stream to queries and cache rows.
enum Projections {
    /// GQA, GTA: head = [copied | rotated].
    Direct(Box<Direct>),
    /// GLA, MLA: through latents, with the key's matrix absorbed into the query and the value's applied afterwards.
    Latent(Box<Latent>),
}

struct Direct {
    q: Linear,
    /// All that is cached of a token, in the order of a cached row.
    kv: Linear,
    rotate: Rotate,
}

struct Latent {
    /// [query latent | latents | rope key] of the normed stream: matrices of one input are one matrix.
    down: Linear,
    q_norm: RmsNorm,
    /// Per head [nope | rope].
    q_up: Linear,
    /// W_UK^T per head.
    absorb: Linear,
    rotate: Rotate,
    kv_norm: RmsNorm,
    /// W_UV per head, with the value's bias. The key's bias drops out of the softmax.
    unabsorb: Linear,
}

/// The tensors of a step, F32, one row per token.
pub(super) struct Scratch {
    /// Residual stream: (rows, hidden)
    pub(super) x: Tensor,
    /// (rows, hidden)
    pub(super) normed: Tensor,
    /// GLA, MLA: (rows, q_latent_dim + kv_dim)
    down: Tensor,
    /// GLA, MLA: (rows, q_latent_dim)
    q_latent: Tensor,
    /// Before rotation and absorption: (rows, q_heads, head_dim [+ rope_dim])
    q_raw: Tensor,
    /// (rows, q_heads, q_dim)
    q: Tensor,
    /// (rows, kv_dim)
    kv: Tensor,
    /// GLA, MLA, out of the latent space: (rows, q_heads, head_dim)
    values: Tensor,
    /// (rows, 2 * intermediate)
    gate_up: Tensor,
    /// (rows, intermediate)
    ffn: Tensor,
}

/// What every block of a step needs beside its own weights.
pub(super) struct Step<'a> {
    pub(super) rows: usize,
    pub(super) scratch: &'a Scratch,
    pub(super) cache: &'a mut PagedKvCache,
    pub(super) decode: &'a Decode,
    pub(super) plan: &'a Plan,
    pub(super) sequences: &'a [SeqId],
    pub(super) cos_sin: &'a Tensor,
    pub(super) softmax_scale: f32,
}

impl Block {
    pub(super) fn load(gpu: &Gpu, source: &Source<'_>, config: &Config, layer: usize) -> Result<Self> {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
        let plain = NormShape { groups: 1, dim: hidden, tail: 0, eps: config.rms_norm_eps };
        let gate = source.matrix(&name("mlp.gate_proj"), ffn, hidden)?;
        let up = source.matrix(&name("mlp.up_proj"), ffn, hidden)?;
        let o = source.matrix(&name("self_attn.o_proj"), hidden, config.q_heads * config.head_dim)?;
        Ok(Block {
            input_norm: source.norm(&name("input_layernorm"), plain)?,
            attention: Projections::load(gpu, source, config, &name("self_attn"))?,
            o: source.linear(&o)?,
            post_norm: source.norm(&name("post_attention_layernorm"), plain)?,
            gate_up: source.linear(&Matrix::stack(&[gate, up]))?,
            swiglu: SwiGlu::new(gpu)?,
            down: source.linear(&source.matrix(&name("mlp.down_proj"), hidden, ffn)?)?,
        })
    }

    /// Records the block for the step's rows: `x` in, `x` out.
    pub(super) fn run(&self, layer: usize, step: &mut Step<'_>) -> Result<()> {
        let (rows, s) = (step.rows, step.scratch);
        let (x, normed) = (Span::of(&s.x), Span::of(&s.normed));
        self.input_norm.run(rows, x, normed)?;
        self.attention.project(s, rows, step.cos_sin)?;
        step.cache.append(layer, step.sequences, &s.kv)?;
        let attended = step.decode.run(step.plan, &step.cache.layer(layer)?, &s.q, step.softmax_scale)?;
        let heads = match &self.attention {
            Projections::Direct(_) => &attended.out,
            Projections::Latent(latent) => {
                latent.unabsorb.run(rows, Span::of(&attended.out), Span::of(&s.values), false)?;
                &s.values
            }
        };
        self.o.run(rows, Span::of(heads), x, true)?;
        self.post_norm.run(rows, x, normed)?;
        self.gate_up.run(rows, normed, Span::of(&s.gate_up), false)?;
        self.swiglu.run(&s.gate_up, &s.ffn)?;
        self.down.run(rows, Span::of(&s.ffn), x, true)
    }
}

impl Projections {
    fn load(gpu: &Gpu, source: &Source<'_>, config: &Config, name: &str) -> Result<Self> {
        let Config { hidden_size: hidden, q_heads: heads, head_dim, .. } = *config;
        let matrix = |part: &str, rows, in_dim| source.matrix(&format!("{name}.{part}"), rows, in_dim);
        let rope_dim = config.rope_dim();
        let rotate =
            |copy_dim| Rotate::new(gpu, RotateShape { heads, copy_dim, rope_dim, rotation: config.rope().rotation });
        match config.attention {
            AttentionConfig::Gqa { kv_heads } => {
                let k = matrix("k_proj", kv_heads * head_dim, hidden)?;
                let v = matrix("v_proj", kv_heads * head_dim, hidden)?;
                // Rows in the order of a cached row: the key and the value of each group in turn.
                let group = |g: usize| g * head_dim..(g + 1) * head_dim;
                let kv: Vec<Matrix> = (0..kv_heads).flat_map(|g| [k.cut(group(g)), v.cut(group(g))]).collect();
                Ok(Projections::Direct(Box::new(Direct {
                    q: source.linear(&matrix("q_proj", heads * head_dim, hidden)?)?,
                    kv: source.linear(&Matrix::stack(&kv))?,
                    rotate: rotate(0)?,
                })))
            }
            AttentionConfig::Gta { kv_heads, .. } => {
                let kv = matrix("kv_proj", kv_heads * head_dim, hidden)?;
                let rope_key = matrix("k_rope_proj", rope_dim, hidden)?;
                Ok(Projections::Direct(Box::new(Direct {
                    q: source.linear(&matrix("q_proj", heads * head_dim, hidden)?)?,
                    kv: source.linear(&Matrix::stack(&[kv, rope_key]))?,
                    rotate: rotate(head_dim - rope_dim)?,
                })))
            }
            AttentionConfig::Latent { latent_heads, latent_dim, q_latent_dim, .. } => {
                let q_down = matrix("q_a_proj", q_latent_dim, hidden)?;
                let kv_down = matrix("kv_a_proj_with_mqa", latent_heads * latent_dim + rope_dim, hidden)?;
                let kv_up = matrix("kv_b_proj", heads * 2 * head_dim, latent_dim)?;
                let cut = |h: usize, half: usize| {
                    let first = (2 * h + half) * head_dim;
                    kv_up.cut(first..first + head_dim)
                };
                let keys: Vec<Matrix> = (0..heads).map(|h| cut(h, 0).transposed()).collect();
                let values: Vec<Matrix> = (0..heads).map(|h| cut(h, 1)).collect();
                let eps = config.rms_norm_eps;
                let q_norm = NormShape { groups: 1, dim: q_latent_dim, tail: 0, eps };
                let kv_norm = NormShape { groups: latent_heads, dim: latent_dim, tail: rope_dim, eps };
                Ok(Projections::Latent(Box::new(Latent {
                    down: source.linear(&Matrix::stack(&[q_down, kv_down]))?,
                    q_norm: source.norm(&format!("{name}.q_a_layernorm"), q_norm)?,
                    q_up: source.linear(&matrix("q_b_proj", heads * (head_dim + rope_dim), q_latent_dim)?)?,
                    absorb: source.linear_heads(&keys)?,
                    rotate: rotate(0)?,
                    kv_norm: source.norm(&format!("{name}.kv_a_layernorm"), kv_norm)?,
                    unabsorb: source.linear_heads(&values)?,
                })))
            }
        }
    }

    /// From `normed` to `q` and `kv`.
    fn project(&self, s: &Scratch, rows: usize, cos_sin: &Tensor) -> Result<()> {
        let (normed, q_raw, q) = (Span::of(&s.normed), Span::of(&s.q_raw), Span::of(&s.q));
        match self {
            Projections::Direct(direct) => {
                direct.q.run(rows, normed, q_raw, false)?;
                direct.rotate.run(rows, cos_sin, q_raw, q)?;
                direct.kv.run(rows, normed, Span::of(&s.kv), false)
            }
            Projections::Latent(latent) => {
                let (down, q_latent) = (Span::of(&s.down), Span::of(&s.q_latent));
                latent.down.run(rows, normed, down, false)?;
                latent.q_norm.run(rows, down, q_latent)?;
                latent.q_up.run(rows, q_latent, q_raw, false)?;
                // [nope | rope] -> [absorbed | rotated]
                let nope_dim = latent.absorb.weight().in_dim();
                let latent_dim = latent.absorb.weight().out_dim();
                latent.absorb.run(rows, q_raw, q, false)?;
                latent.rotate.run(rows, cos_sin, q_raw.offset(nope_dim), q.offset(latent_dim))?;
                latent.kv_norm.run(rows, down.offset(s.q_latent.shape()[1]), Span::of(&s.kv))
            }
        }
    }
}

impl Scratch {
    /// Tensors of `rows` rows.
    pub(super) fn new(gpu: &Gpu, config: &Config, rows: usize) -> Result<Self> {
        let layout = config.layout()?;
        let (hidden, heads) = (config.hidden_size, config.q_heads);
        let f32s = |dims: &[usize]| Tensor::zeros(gpu, &[&[rows], dims].concat(), DType::F32);
        let (q_latent_dim, raw_dim) = match config.attention {
            AttentionConfig::Latent { q_latent_dim, rope_dim, .. } => (q_latent_dim, config.head_dim + rope_dim),
            _ => (0, config.head_dim),
        };
        // What only the latent variants use is tiny for the others.
        let latent = |dims: &[usize]| if q_latent_dim > 0 { f32s(dims) } else { f32s(&vec![1; dims.len()]) };
        Ok(Scratch {
            x: f32s(&[hidden])?,
            normed: f32s(&[hidden])?,
            down: latent(&[q_latent_dim + layout.kv_dim()])?,
            q_latent: latent(&[q_latent_dim])?,
            q_raw: f32s(&[heads, raw_dim])?,
            q: f32s(&[heads, layout.q_dim()])?,
            kv: f32s(&[layout.kv_dim()])?,
            values: latent(&[heads, config.head_dim])?,
            gate_up: f32s(&[2 * config.intermediate_size])?,
            ffn: f32s(&[config.intermediate_size])?,
        })
    }

    /// The same memory for the first `rows` rows.
    pub(super) fn first(&self, rows: usize) -> Result<Self> {
        let cut = |t: &Tensor| t.view(&[&[rows], &t.shape()[1..]].concat());
        Ok(Scratch {
            x: cut(&self.x)?,
            normed: cut(&self.normed)?,
            down: cut(&self.down)?,
            q_latent: cut(&self.q_latent)?,
            q_raw: cut(&self.q_raw)?,
            q: cut(&self.q)?,
            kv: cut(&self.kv)?,
            values: cut(&self.values)?,
            gate_up: cut(&self.gate_up)?,
            ffn: cut(&self.ffn)?,
        })
    }
}
