//! GQA and GTA: from the stream to queries and cached rows by one product.

use super::attention::AttentionScratch;
use super::large_keys::LargeBiases;
use super::projections::LayerReader;
use crate::error::Result;
use crate::gpu::{DType, Tensor};
use crate::kv::KvView;
use crate::model::config::{Config, QkNorm};
use crate::model::weights::matrix::Matrix;
use crate::model::weights::split::Split;
use crate::nn::{Linear, LinearArgs, NormShape, RmsNorm, RopeKernel, RopeWideArgs, RopeWideKernel, Span};

pub(crate) struct Direct {
    /// [queries | all that is cached of a token, in the order of a cached row].
    qkv: Split,
    /// Outputs of a head of the queries.
    head_dim: usize,
    heads: usize,
    norms: Option<QkNorms>,
    rotate: RopeKernel,
    biases: LargeBiases,
}

/// Norms of heads before they rotate, which are between the product and all that reads it.
pub(crate) struct QkNorms {
    queries: RmsNorm,
    /// Of the keys of a cached row; its values are copied.
    keys: RmsNorm,
}

impl Direct {
    /// What is to be cached of each token, as the product makes it.
    fn raw_rows<'a>(&self, s: &'a AttentionScratch) -> Span<'a> {
        Span::of(&s.raw).offset(self.heads * self.head_dim)
    }

    /// The same after norms, if there are any.
    pub(super) fn cached_rows<'a>(&self, s: &'a AttentionScratch) -> Span<'a> {
        match self.norms {
            None => self.raw_rows(s),
            Some(_) => Span::of(&s.kv),
        }
    }

    /// The product, if it is one matrix and nothing stands between it and the cache.
    pub(super) fn product(&self) -> Option<&Linear> {
        self.qkv.whole().filter(|_| self.norms.is_none())
    }

    pub(super) fn biases(&self) -> &LargeBiases {
        &self.biases
    }

    /// From `input` to `q` and the rows to append. `wide`: of queries that read wide channels.
    pub(super) fn project(
        &self,
        s: &AttentionScratch,
        rows: usize,
        input: Span<'_>,
        (cos_sin, wide): (&Tensor, Option<(&RopeWideKernel, &KvView)>),
    ) -> Result<()> {
        let (raw, q) = (Span::of(&s.raw), Span::of(&s.q));
        self.qkv.run(LinearArgs::new(rows, input, raw))?;
        let x = match &self.norms {
            None => raw.head_stride(self.head_dim),
            Some(norms) => {
                norms.queries.run(rows, raw, Span::of(&s.q_raw))?;
                norms.keys.run(rows, self.raw_rows(s), Span::of(&s.kv))?;
                Span::of(&s.q_raw)
            }
        };
        match wide {
            Some((rotate, layer)) => rotate.run(RopeWideArgs { rows, layer, cos_sin, x, y: q }),
            None => self.rotate.run(rows, cos_sin, x, q),
        }
    }
}

impl LayerReader<'_> {
    /// `q_proj`, `k_proj` or `v_proj` of GQA, which may be parts of one matrix.
    pub(super) fn of_gqa(&self, part: &'static str, kv_heads: usize) -> Result<Matrix> {
        let Config { hidden_size, head_dim, q_heads, .. } = *self.config;
        let (q, kv) = (q_heads * head_dim, kv_heads * head_dim);
        let rows = match part {
            "q_proj" => 0..q,
            "k_proj" => q..q + kv,
            _ => q + kv..q + 2 * kv,
        };
        match self.config.files.fused_qkv {
            true => self.matrix("qkv_proj", q + 2 * kv, hidden_size).map(|all| all.cut(rows)),
            false => self.matrix(part, rows.len(), hidden_size),
        }
    }

    /// Norms of queries and keys, if the model has them: of each head, whose gains are the same for all, or of all heads together.
    fn qk_norms(&self) -> Result<Option<QkNorms>> {
        let Config { qk_norm, head_dim, rms_norm_eps: eps, .. } = *self.config;
        let norm = |part, groups: usize| -> Result<RmsNorm> {
            let gains = if qk_norm == QkNorm::Whole { groups } else { 1 };
            let gain = self.source.gains(&self.name(part), &[gains * head_dim])?;
            let gain: Vec<f32> = gain.chunks_exact(head_dim).flat_map(|head| self.ordered(head)).collect();
            let gain = gain.repeat(groups / gains);
            let gain = Tensor::from_slice(self.source.gpu(), &[groups, head_dim], &gain, DType::F32)?;
            let norm = RmsNorm::new(self.source.gpu(), &gain, NormShape { groups, dim: head_dim, tail: 0, eps })?;
            Ok(if qk_norm == QkNorm::Whole { norm.joined() } else { norm })
        };
        let both = || {
            let queries = norm("q_norm", self.share.q_heads.len())?;
            Ok(QkNorms { queries, keys: norm("k_norm", self.share.groups.len())?.with_gap(head_dim)? })
        };
        (qk_norm != QkNorm::None).then(both).transpose()
    }

    /// A head's elements in the order in which they are kept.
    fn ordered(&self, head: &[f32]) -> Vec<f32> {
        match self.config.head_order() {
            Some(order) => order.into_iter().flat_map(|part| head[part].to_vec()).collect(),
            None => head.to_vec(),
        }
    }

    /// The rows of each head of GQA's queries or keys in that order.
    pub(super) fn in_head_order(&self, heads: Matrix) -> Matrix {
        let (dim, Some(order)) = (self.config.head_dim, self.config.head_order()) else { return heads };
        let parts = (0..heads.rows() / dim)
            .flat_map(|head| order.clone().map(|part| heads.cut(head * dim + part.start..head * dim + part.end)));
        Matrix::stack(&parts.collect::<Vec<_>>())
    }

    /// Of queries and cached rows.
    fn direct(&self, copy_dim: usize, kv: &[Matrix], biases: LargeBiases) -> Result<Direct> {
        let queries = self.queries("q_proj", copy_dim, self.config.hidden_size)?;
        let qkv = self.first(&Matrix::stack(&[&[queries], kv].concat()))?;
        let (heads, head_dim) = (self.share.q_heads.len(), self.config.head_dim);
        Ok(Direct { qkv, head_dim, heads, norms: self.qk_norms()?, rotate: self.rotate(copy_dim)?, biases })
    }

    pub(super) fn gqa(&self, kv_heads: usize) -> Result<Direct> {
        let head_dim = self.config.head_dim;
        let own = |part| self.of_gqa(part, kv_heads).map(|all| self.cut(&all, &self.share.groups, head_dim));
        let (k, v) = (self.in_head_order(own("k_proj")?), own("v_proj")?);
        // Rows in the order of a cached row: the key and the value of each group in turn.
        let group = |g: usize| g * head_dim..(g + 1) * head_dim;
        let kv: Vec<Matrix> = (0..self.share.groups.len()).flat_map(|g| [k.cut(group(g)), v.cut(group(g))]).collect();
        let biases = match self.config.qk_norm {
            QkNorm::None => LargeBiases::of_gqa(self.source, self.config, (&k, &v), self.gain()?.as_deref())?,
            _ => LargeBiases::default(), // what is cached has the size that the norm gives it
        };
        self.direct(0, &kv, biases)
    }

    pub(super) fn gta(&self, kv_heads: usize, rope_dim: usize) -> Result<Direct> {
        let Config { hidden_size: hidden, head_dim, .. } = *self.config;
        let kv = self.cut(&self.matrix("kv_proj", kv_heads * head_dim, hidden)?, &self.share.groups, head_dim);
        let rope_key = self.matrix("k_rope_proj", rope_dim, hidden)?;
        let biases = LargeBiases::of_tied(self.source, self.config, &kv, self.gain()?.as_deref())?;
        self.direct(head_dim - rope_dim, &[kv, rope_key], biases)
    }
}
