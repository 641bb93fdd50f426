//! From the stream to queries and cached rows, and from what was attended to values: where the variants differ.

use super::attention::AttentionScratch;
use super::direct::Direct;
use super::large_keys::LargeBiases;
use crate::error::Result;
use crate::gpu::Tensor;
use crate::kv::KvView;
use crate::model::config::share::ModelShare;
use crate::model::config::{AttentionConfig, Config};
use crate::model::weights::matrix::Matrix;
use crate::model::weights::reader::WeightReader;
use crate::model::weights::split::Split;
use crate::nn::{AppendRows, Linear, LinearArgs, NormShape, RmsNorm, RopeKernel, RopeShape, RopeWideKernel, Span};
use crate::rope::RopePairs;
use std::ops::Range;

/// From the stream to queries and cache rows. The first products have the block's norm before them, if there is one.
pub(crate) enum Projections {
    /// GQA, GTA: head = [copied | rotated].
    Direct(Box<Direct>),
    /// GLA, MLA: through latents, with the key's matrix absorbed into the query and the value's applied afterwards.
    Latent(Box<Latent>),
}

pub(crate) struct Latent {
    /// [query latent | latents | rope key] of the stream: matrices of one input are one matrix. Without a query latent
    /// [queries | latents | rope key].
    down: Split,
    queries: Queries,
    /// W_UK^T per head, and behind its outputs the rotated part of the query, if there is a rope key.
    absorb: Linear,
    rotates: bool,
    /// W_UV per head, with the value's bias. The key's bias drops out of the softmax.
    unabsorb: Linear,
    /// None where it is not kept, or there is no rope key.
    explicit: Option<ExplicitUp>,
}

/// What the explicit form has in place of `absorb` and `unabsorb`.
pub(crate) struct ExplicitUp {
    /// Per latent head `[W_UK | W_UV]` of each of its query heads, with the value's bias.
    up: Linear,
    /// Of `[nope | rope]`.
    rotate: RopeKernel,
}

/// The forms that a step's tokens take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Forms {
    pub(crate) absorbed: bool,
    pub(crate) explicit: bool,
}

/// How latent attention comes to its queries, per head [nope | rope], and to its cached rows.
pub(crate) enum Queries {
    /// Up from a latent, with its norm before and that of the cached latents beside the product.
    Latent(Split),
    /// They are there, `heads` of `dim`; the norm of the cached latents is left.
    Direct { kv_norm: RmsNorm, heads: usize, dim: usize },
}

impl Projections {
    /// A rank's share. `norm`: the name of the norm of the layer's input, if that is part of the layer.
    pub(crate) fn load(
        source: &WeightReader<'_>,
        (config, share): (&Config, &ModelShare),
        prefix: &str,
        norm: Option<&str>,
    ) -> Result<Self> {
        let load = LayerReader { source, config, share, prefix, norm };
        match config.attention {
            AttentionConfig::Gqa { kv_heads } => Ok(Projections::Direct(Box::new(load.gqa(kv_heads)?))),
            AttentionConfig::Gta { kv_heads, rope_dim } => {
                Ok(Projections::Direct(Box::new(load.gta(kv_heads, rope_dim)?)))
            }
            AttentionConfig::Latent { latent_heads, latent_dim, q_latent_dim, .. } => {
                let kv_norm = NormShape {
                    groups: latent_heads,
                    dim: latent_dim,
                    tail: config.rope_dim(),
                    eps: config.latent_norm_eps,
                };
                Ok(Projections::Latent(Box::new(load.latent(kv_norm, q_latent_dim)?)))
            }
        }
    }

    /// The product that puts new rows into layers like this one, where there can be one: for few rows, and in place of the append.
    /// That of GQA and GTA makes the queries, too; that of GLA and MLA is the query's up-projection.
    pub(crate) fn appending(&self, layer: &KvView, pairs: RopePairs) -> Result<Option<Linear>> {
        let product = match self {
            Projections::Direct(direct) => direct.product(),
            Projections::Latent(latent) => match &latent.queries {
                Queries::Latent(up) => up.whole(),
                Queries::Direct { .. } => None,
            },
        };
        match product {
            Some(product) if product.takes_append(layer, pairs) => product.clone().with_append(layer, pairs).map(Some),
            _ => Ok(None),
        }
    }

    /// The rows to append, of what [`Projections::project`] wrote.
    pub(crate) fn cached_rows<'a>(&self, s: &'a AttentionScratch) -> Span<'a> {
        match self {
            Projections::Direct(direct) => direct.cached_rows(s),
            Projections::Latent(_) => Span::of(&s.kv),
        }
    }

    /// From `input` to `q`, or `q_explicit`, or both, and the rows to append, or to the cache by `appending`. `wide`: of queries that
    /// read wide channels.
    pub(crate) fn project(
        &self,
        s: &AttentionScratch,
        rows: usize,
        input: Span<'_>,
        (cos_sin, wide): (&Tensor, Option<(&RopeWideKernel, &KvView)>),
        (forms, appending): (Forms, Option<(&Linear, AppendRows<'_>)>),
    ) -> Result<()> {
        let (raw, q) = (Span::of(&s.raw), Span::of(&s.q));
        let append = |linear: &Linear, append, x, y| {
            linear.run(LinearArgs { cos_sin: Some(cos_sin), append: Some(append), ..LinearArgs::new(rows, x, y) })
        };
        match self {
            Projections::Direct(direct) => {
                if let Some((linear, to)) = appending {
                    return append(linear, to, input, q);
                }
                direct.project(s, rows, input, (cos_sin, wide))
            }
            Projections::Latent(latent) => {
                latent.down.run(LinearArgs::new(rows, input, raw))?;
                let q_raw = match &latent.queries {
                    Queries::Latent(up) => {
                        let q_raw = Span::of(&s.q_raw);
                        match appending {
                            Some((linear, to)) => append(linear, to, raw, q_raw)?,
                            None => up.run(LinearArgs { rest: Some(&s.kv), ..LinearArgs::new(rows, raw, q_raw) })?,
                        }
                        q_raw
                    }
                    Queries::Direct { kv_norm, heads, dim } => {
                        kv_norm.run(rows, raw.offset(heads * dim), Span::of(&s.kv))?;
                        raw.head_stride(*dim)
                    }
                };
                if let (Some(explicit), true) = (&latent.explicit, forms.explicit) {
                    explicit.queries(s, rows, cos_sin, q_raw)?;
                }
                if !forms.absorbed {
                    return Ok(());
                }
                // [nope | rope] -> [absorbed | rotated]
                let cos_sin = latent.rotates.then_some(cos_sin);
                latent.absorb.run(LinearArgs { cos_sin, ..LinearArgs::new(rows, q_raw, q) })
            }
        }
    }

    /// The biases that are too large for a cache of integers.
    pub(crate) fn large_biases(&self) -> LargeBiases {
        match self {
            Projections::Direct(direct) => direct.biases().clone(),
            Projections::Latent(_) => LargeBiases::default(),
        }
    }

    /// What the explicit form needs, where it is kept.
    pub(crate) fn explicit(&self) -> Option<&ExplicitUp> {
        match self {
            Projections::Direct(_) => None,
            Projections::Latent(latent) => latent.explicit.as_ref(),
        }
    }

    /// The heads' values, (rows, q_heads, v_head_dim): what was attended, out of the latent space if it is there.
    pub(crate) fn values<'a>(&self, s: &'a AttentionScratch, rows: usize, attended: &'a Tensor) -> Result<&'a Tensor> {
        match self {
            Projections::Direct(_) => Ok(attended),
            Projections::Latent(latent) => {
                latent.unabsorb.run(LinearArgs::new(rows, Span::of(attended), Span::of(&s.values)))?;
                Ok(&s.values)
            }
        }
    }
}

impl ExplicitUp {
    /// [nope | rope] -> [nope | rotated]
    pub(super) fn queries(&self, s: &AttentionScratch, rows: usize, cos_sin: &Tensor, q_raw: Span<'_>) -> Result<()> {
        self.rotate.run(rows, cos_sin, q_raw, Span::of(&s.q_explicit))
    }

    /// Keys and values of `rows` latents, (rows, groups, latent_dim), in rows of `kv`, whose ends are not touched.
    pub(crate) fn run(&self, rows: usize, latents: &Tensor, kv: &Tensor) -> Result<()> {
        let width = self.up.outputs();
        self.up.run(LinearArgs::new(rows, Span::of(latents), Span::of(kv).head_stride(width)))
    }
}

/// What a layer's weights are read with.
pub(super) struct LayerReader<'a> {
    pub(super) source: &'a WeightReader<'a>,
    /// Of the whole model, as the files have it.
    pub(super) config: &'a Config,
    /// What is made of them.
    pub(super) share: &'a ModelShare,
    prefix: &'a str,
    norm: Option<&'a str>,
}

impl LayerReader<'_> {
    /// The name of what is published as `part`.
    pub(super) fn name(&self, part: &'static str) -> String {
        format!("{}{}", self.prefix, self.config.files.names.of(part))
    }

    /// The names of what is published as `part`, where there may be one per latent head.
    fn names(&self, part: &'static str, latent_heads: usize) -> Vec<String> {
        let names = self.config.files.names.of_latents(part, latent_heads);
        names.into_iter().map(|name| format!("{}{name}", self.prefix)).collect()
    }

    pub(super) fn matrix(&self, part: &'static str, rows: usize, in_dim: usize) -> Result<Matrix> {
        self.source.matrix(&self.name(part), rows, in_dim)
    }

    /// A product with the layer's input.
    pub(super) fn first(&self, matrix: &Matrix) -> Result<Split> {
        let linear = self.source.linear(matrix)?;
        match self.norm {
            Some(norm) => self.source.normed(linear, norm, self.config.rms_norm_eps),
            None => Ok(linear),
        }
    }

    /// That of the norm of the layer's input, if it is part of the layer.
    pub(super) fn gain(&self) -> Result<Option<Vec<f32>>> {
        self.norm.map(|norm| self.source.gains(norm, &[self.config.hidden_size])).transpose()
    }

    /// Rows of the rank's heads or groups, of those that lie one behind the other in a matrix.
    pub(super) fn cut(&self, all: &Matrix, which: &Range<usize>, rows: usize) -> Matrix {
        all.cut(which.start * rows..which.end * rows)
    }

    /// A matrix that makes queries, per head [copied | rotated]: `part`, if it is by itself.
    pub(super) fn queries(&self, part: &'static str, copy_dim: usize, in_dim: usize) -> Result<Matrix> {
        let (dim, gain) = (copy_dim + self.config.rope_dim(), self.config.rotated_query_gain());
        let mut matrix = match self.config.attention {
            AttentionConfig::Gqa { kv_heads } => self.of_gqa(part, kv_heads)?,
            _ => self.matrix(part, self.config.q_heads * dim, in_dim)?,
        };
        if gain != 1.0 {
            // Of GQA the first elements rotate, of others the last.
            matrix.scale_rows(dim, copy_dim..copy_dim + self.config.turning_dim(), gain);
        }
        let own = self.cut(&matrix, &self.share.q_heads, dim);
        Ok(if copy_dim == 0 { self.in_head_order(own) } else { own })
    }

    /// Rotates what stands behind `copy_dim` elements of each query, if anything.
    pub(super) fn rotate(&self, copy_dim: usize) -> Result<RopeKernel> {
        let (heads, rope_dim) = (self.share.q_heads.len(), self.config.rope_dim());
        RopeKernel::or_copy(self.source.gpu(), RopeShape { heads, copy_dim, rope_dim, pairs: self.config.rotation() })
    }

    fn latent(&self, kv_norm: NormShape, q_latent_dim: Option<usize>) -> Result<Latent> {
        let Config { hidden_size: hidden, head_dim, .. } = *self.config;
        let NormShape { groups, dim: latent_dim, tail: rope_dim, eps } = kv_norm;
        let (heads, own) = (self.share.q_heads.len(), &self.share.groups);
        let kv_down = self.matrix("kv_a_proj_with_mqa", groups * latent_dim + rope_dim, hidden)?;
        let rope_key = kv_down.cut(groups * latent_dim..groups * latent_dim + rope_dim);
        let kv_down = Matrix::stack(&[self.cut(&kv_down, own, latent_dim), rope_key]);
        let kv_norm = self.source.norms_of(&self.names("kv_a_layernorm", groups), kv_norm, own.clone())?;
        let (down, queries) = match q_latent_dim {
            Some(q_latent_dim) => {
                let up = self.source.linear(&self.queries("q_b_proj", head_dim, q_latent_dim)?)?;
                let up = self.source.normed(up, &self.name("q_a_layernorm"), eps)?;
                let up = up.map_first(|first| first.with_rest(kv_norm))?;
                (self.matrix("q_a_proj", q_latent_dim, hidden)?, Queries::Latent(up))
            }
            None => {
                let queries = Queries::Direct { kv_norm, heads, dim: head_dim + rope_dim };
                (self.queries("q_proj", head_dim, hidden)?, queries)
            }
        };
        let KeyValueUp { up, keys, values } = self.key_value_up(groups, latent_dim)?;
        let absorb = self.source.linear_heads(&keys)?;
        let rotates = rope_dim > 0;
        let explicit = match rotates && self.source.keeps_explicit() {
            true => Some(self.explicit(&up, own.len(), self.rotate(head_dim)?)?),
            false => None,
        };
        Ok(Latent {
            down: self.first(&Matrix::stack(&[down, kv_down]))?,
            queries,
            absorb: if rotates { absorb.with_tail(rope_dim, self.config.rotation())? } else { absorb },
            rotates,
            unabsorb: self.source.linear_heads(&values)?,
            explicit,
        })
    }

    /// `kv_b_proj`: per head `[W_UK (head_dim) | W_UV (v_head_dim)]` of latent_dim. Or its parts as newer GGUF files have them:
    /// `k_b_proj`, per head W_UK^T (latent_dim, head_dim), and `v_b_proj`, per head W_UV.
    fn key_value_up(&self, latent_heads: usize, latent_dim: usize) -> Result<KeyValueUp> {
        let Config { q_heads: heads, head_dim, v_head_dim, .. } = *self.config;
        let own = || self.share.q_heads.clone();
        if self.source.has(&format!("{}.weight", self.name("k_b_proj"))) {
            let keys = self.matrix("k_b_proj", heads * latent_dim, head_dim)?;
            let values = self.matrix("v_b_proj", heads * v_head_dim, latent_dim)?;
            let head = |all: &Matrix, rows: usize, h: usize| all.cut(h * rows..(h + 1) * rows);
            let keys: Vec<_> = own().map(|h| head(&keys, latent_dim, h)).collect();
            let values: Vec<_> = own().map(|h| head(&values, v_head_dim, h)).collect();
            let up = keys.iter().zip(&values).map(|(key, value)| Matrix::stack(&[key.transposed(), value.clone()]));
            return Ok(KeyValueUp { up: up.collect(), keys, values });
        }
        let names = self.names("kv_b_proj", latent_heads);
        let both = head_dim + v_head_dim;
        let parts = names.iter().map(|name| self.source.matrix(name, heads * both / names.len(), latent_dim));
        let all = Matrix::stack(&parts.collect::<Result<Vec<_>>>()?);
        let up: Vec<_> = own().map(|h| all.cut(h * both..(h + 1) * both)).collect();
        let keys = up.iter().map(|head| head.cut(0..head_dim).transposed()).collect();
        let values = up.iter().map(|head| head.cut(head_dim..both)).collect();
        Ok(KeyValueUp { up, keys, values })
    }

    /// Per latent head the rows of its query heads, in the order of explicit keys and values.
    fn explicit(&self, up: &[Matrix], groups: usize, rotate: RopeKernel) -> Result<ExplicitUp> {
        let Config { head_dim, v_head_dim, .. } = *self.config;
        let heads = self.share.q_heads.len();
        let group = |heads: &[Matrix]| Matrix::stack(heads).without_bias(head_dim + v_head_dim, 0..head_dim);
        let groups: Vec<_> = up.chunks((heads / groups).max(1)).map(group).collect();
        Ok(ExplicitUp { up: self.source.linear_heads(&groups)?, rotate })
    }
}

/// What makes keys and values of latents, per head.
struct KeyValueUp {
    /// `[W_UK | W_UV]` (head_dim + v_head_dim, latent_dim).
    up: Vec<Matrix>,
    /// W_UK^T (latent_dim, head_dim).
    keys: Vec<Matrix>,
    /// W_UV (v_head_dim, latent_dim), with its bias.
    values: Vec<Matrix>,
}
