//! The attention of a block: from the stream through norm, queries, cache and decode back to the stream.

use super::config::{AttentionConfig, Config};
use super::weights::{Matrix, Source};
use crate::attention::{Decode, Plan};
use crate::cache::{PagedKvCache, SeqId};
use crate::error::Result;
use crate::gpu::{DType, Gpu, Tensor};
use crate::nn::{Linear, NormShape, Rotate, RotateShape, Span};

/// One attention layer: the projections around a cache and a [`Decode`], with their weights. What a [`Decoder`] has in
/// each block; by itself it serves apps that have blocks of their own.
///
/// [`Decoder`]: super::Decoder
pub struct Attention {
    gpu: Gpu,
    config: Config,
    projections: Projections,
    o: Linear,
}

/// From the stream to queries and cache rows. The first products have the block's norm before them, if there is one.
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
    /// None where there is no rope key.
    rotate: Option<Rotate>,
}

struct Latent {
    /// [query latent | latents | rope key] of the stream: matrices of one input are one matrix.
    down: Linear,
    /// Per head [nope | rope], with the norm of the query latent before it and that of the latents beside it.
    q_up: Linear,
    /// W_UK^T per head, and behind its outputs the rotated part of the query, if there is a rope key.
    absorb: Linear,
    rotates: bool,
    /// W_UV per head, with the value's bias. The key's bias drops out of the softmax.
    unabsorb: Linear,
}

/// The tensors of a step's attention, F32, one row per token.
pub(super) struct AttentionScratch {
    /// GLA, MLA: (rows, q_latent_dim + kv_dim)
    down: Tensor,
    /// Before rotation and absorption: (rows, q_heads, head_dim [+ rope_dim])
    q_raw: Tensor,
    /// (rows, q_heads, q_dim)
    q: Tensor,
    /// (rows, kv_dim)
    kv: Tensor,
    /// GLA, MLA, out of the latent space: (rows, q_heads, head_dim)
    values: Tensor,
}

/// What the attention of every block of a step needs beside its own weights.
pub(super) struct AttentionStep<'a> {
    pub(super) rows: usize,
    pub(super) cache: &'a mut PagedKvCache,
    pub(super) decode: &'a Decode,
    pub(super) plan: &'a Plan,
    pub(super) sequences: &'a [SeqId],
    pub(super) cos_sin: &'a Tensor,
    pub(super) softmax_scale: f32,
}

impl Attention {
    /// The layer whose weights a safetensors file holds under a block's names without the block's prefix: `q_proj.weight`,
    /// `kv_b_proj.bias`, .. `weights` is a name for messages and the bytes of the file. Of `config` the numbers of the
    /// attention count, and `hidden_size`. `dtype` (F16, F32 or I8) is how matrices are kept on the device.
    ///
    /// Errors: [`ErrorKind::Weights`](crate::ErrorKind::Weights), [`ErrorKind::TooLarge`](crate::ErrorKind::TooLarge),
    /// [`ErrorKind::OutOfMemory`](crate::ErrorKind::OutOfMemory).
    pub fn from_bytes(gpu: &Gpu, config: &Config, weights: (&str, &[u8]), dtype: DType) -> Result<Self> {
        config.layout()?;
        let source = Source::new(gpu, weights.0, weights.1, dtype)?;
        let attention = Self::from_source(&source, config, "", None)?;
        source.warn_of_unused();
        Ok(attention)
    }

    /// `norm`: the name of the norm of the layer's input, if that is part of the layer.
    pub(super) fn from_source(source: &Source<'_>, config: &Config, prefix: &str, norm: Option<&str>) -> Result<Self> {
        let o = source.matrix(&format!("{prefix}o_proj"), config.hidden_size, config.q_heads * config.head_dim)?;
        Ok(Attention {
            gpu: source.gpu().clone(),
            config: config.clone(),
            projections: Projections::load(source, config, prefix, norm)?,
            o: source.linear(&o)?,
        })
    }

    /// Appends the reserved tokens of `sequences` to one layer of the cache and attends from them.
    ///
    /// - `x`: (tokens, hidden_size) F32, in the order of the sequences
    /// - `cache`: of the layout and rotation of the layer's [`Config`]
    /// - returns: (tokens, hidden_size) F32, new memory
    ///
    /// Errors: those of [`Decode::plan`], [`PagedKvCache::append`] and [`Decode::run`].
    pub fn forward(
        &self,
        x: &Tensor,
        (cache, layer): (&mut PagedKvCache, usize),
        decode: &Decode,
        sequences: &[SeqId],
    ) -> Result<Tensor> {
        let plan = decode.plan(cache, sequences)?;
        let (rows, hidden) = (plan.tokens(), self.config.hidden_size);
        x.expect("x", &[rows, hidden], DType::F32)?;
        let cos_sin = cache.cos_sin(sequences)?;
        let scratch = AttentionScratch::new(&self.gpu, &self.config, rows)?;
        let y = Tensor::zeros(&self.gpu, &[rows, hidden], DType::F32)?;
        let softmax_scale = self.config.softmax_scale();
        let mut step = AttentionStep { rows, cache, decode, plan: &plan, sequences, cos_sin: &cos_sin, softmax_scale };
        self.run(layer, &scratch, &mut step, Span::of(x), Span::of(&y))?;
        // The plan and the scratch go at the end of this function, so what uses them must be on its way.
        self.gpu.submit()?;
        Ok(y)
    }

    /// Records the attention of the step's rows of `input`, added to `x`.
    pub(super) fn run(
        &self,
        layer: usize,
        s: &AttentionScratch,
        step: &mut AttentionStep<'_>,
        input: Span<'_>,
        x: Span<'_>,
    ) -> Result<()> {
        let rows = step.rows;
        self.projections.project(s, rows, input, step.cos_sin)?;
        step.cache.append(layer, step.sequences, &s.kv)?;
        let attended = step.decode.run(step.plan, &step.cache.layer(layer)?, &s.q, step.softmax_scale)?;
        let heads = match &self.projections {
            Projections::Direct(_) => &attended.out,
            Projections::Latent(latent) => {
                latent.unabsorb.run(rows, Span::of(&attended.out), Span::of(&s.values), false)?;
                &s.values
            }
        };
        self.o.run(rows, Span::of(heads), x, true)
    }
}

impl Projections {
    fn load(source: &Source<'_>, config: &Config, prefix: &str, norm: Option<&str>) -> Result<Self> {
        let Config { hidden_size: hidden, q_heads: heads, head_dim, .. } = *config;
        let matrix = |part: &str, rows, in_dim| source.matrix(&format!("{prefix}{part}"), rows, in_dim);
        let rope_dim = config.rope_dim();
        let eps = config.rms_norm_eps;
        let first = |matrix: &Matrix| match norm {
            Some(norm) => source.normed(source.linear(matrix)?, norm, eps),
            None => source.linear(matrix),
        };
        let rotate = |copy_dim| {
            let shape = RotateShape { heads, copy_dim, rope_dim, rotation: config.rope().rotation };
            (rope_dim > 0).then(|| Rotate::new(source.gpu(), shape)).transpose()
        };
        match config.attention {
            AttentionConfig::Gqa { kv_heads } => {
                let k = matrix("k_proj", kv_heads * head_dim, hidden)?;
                let v = matrix("v_proj", kv_heads * head_dim, hidden)?;
                // Rows in the order of a cached row: the key and the value of each group in turn.
                let group = |g: usize| g * head_dim..(g + 1) * head_dim;
                let kv: Vec<Matrix> = (0..kv_heads).flat_map(|g| [k.cut(group(g)), v.cut(group(g))]).collect();
                Ok(Projections::Direct(Box::new(Direct {
                    q: first(&matrix("q_proj", heads * head_dim, hidden)?)?,
                    kv: first(&Matrix::stack(&kv))?,
                    rotate: rotate(0)?,
                })))
            }
            AttentionConfig::Gta { kv_heads, .. } => {
                let kv = matrix("kv_proj", kv_heads * head_dim, hidden)?;
                let rope_key = matrix("k_rope_proj", rope_dim, hidden)?;
                Ok(Projections::Direct(Box::new(Direct {
                    q: first(&matrix("q_proj", heads * head_dim, hidden)?)?,
                    kv: first(&Matrix::stack(&[kv, rope_key]))?,
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
                let kv_norm = NormShape { groups: latent_heads, dim: latent_dim, tail: rope_dim, eps };
                let kv_norm = source.norm(&format!("{prefix}kv_a_layernorm"), kv_norm)?;
                let q_up = source.linear(&matrix("q_b_proj", heads * (head_dim + rope_dim), q_latent_dim)?)?;
                let absorb = source.linear_heads(&keys)?;
                let rotates = rope_dim > 0;
                Ok(Projections::Latent(Box::new(Latent {
                    down: first(&Matrix::stack(&[q_down, kv_down]))?,
                    q_up: source.normed(q_up, &format!("{prefix}q_a_layernorm"), eps)?.with_rest(kv_norm)?,
                    absorb: if rotates { absorb.with_tail(rope_dim, config.rope().rotation)? } else { absorb },
                    rotates,
                    unabsorb: source.linear_heads(&values)?,
                })))
            }
        }
    }

    /// From `input` to `q` and `kv`.
    fn project(&self, s: &AttentionScratch, rows: usize, input: Span<'_>, cos_sin: &Tensor) -> Result<()> {
        let (q_raw, q) = (Span::of(&s.q_raw), Span::of(&s.q));
        match self {
            Projections::Direct(direct) => {
                match &direct.rotate {
                    Some(rotate) => {
                        direct.q.run(rows, input, q_raw, false)?;
                        rotate.run(rows, cos_sin, q_raw, q)?;
                    }
                    None => direct.q.run(rows, input, q, false)?,
                }
                direct.kv.run(rows, input, Span::of(&s.kv), false)
            }
            Projections::Latent(latent) => {
                let down = Span::of(&s.down);
                latent.down.run(rows, input, down, false)?;
                latent.q_up.run_with_rest(rows, down, q_raw, &s.kv)?;
                // [nope | rope] -> [absorbed | rotated]
                match latent.rotates {
                    true => latent.absorb.run_tailed(rows, cos_sin, q_raw, q),
                    false => latent.absorb.run(rows, q_raw, q, false),
                }
            }
        }
    }
}

impl AttentionScratch {
    /// Tensors of `rows` rows.
    pub(super) fn new(gpu: &Gpu, config: &Config, rows: usize) -> Result<Self> {
        let layout = config.layout()?;
        let heads = config.q_heads;
        let f32s = |dims: &[usize]| Tensor::zeros(gpu, &[&[rows], dims].concat(), DType::F32);
        let (q_latent_dim, raw_dim) = match config.attention {
            AttentionConfig::Latent { q_latent_dim, rope_dim, .. } => (q_latent_dim, config.head_dim + rope_dim),
            _ => (0, config.head_dim),
        };
        // What only the latent variants use is tiny for the others.
        let latent = |dims: &[usize]| if q_latent_dim > 0 { f32s(dims) } else { f32s(&vec![1; dims.len()]) };
        Ok(AttentionScratch {
            down: latent(&[q_latent_dim + layout.kv_dim()])?,
            q_raw: f32s(&[heads, raw_dim])?,
            q: f32s(&[heads, layout.q_dim()])?,
            kv: f32s(&[layout.kv_dim()])?,
            values: latent(&[heads, config.head_dim])?,
        })
    }

    /// The same memory for the first `rows` rows.
    pub(super) fn first(&self, rows: usize) -> Result<Self> {
        let cut = |t: &Tensor| t.view(&[&[rows], &t.shape()[1..]].concat());
        Ok(AttentionScratch {
            down: cut(&self.down)?,
            q_raw: cut(&self.q_raw)?,
            q: cut(&self.q)?,
            kv: cut(&self.kv)?,
            values: cut(&self.values)?,
        })
    }
}
