//! GLA with absorbed matrices: what is cached is never made into keys or values.

use super::{linear, tensor, Layer};
use latten::nn::{Linear, LinearArgs, NormShape, RmsNorm, Span};
use latten::reference::{GlaWeights, LayerConfig};
use latten::{DType, Gpu, HeadLayout, Result, RopePairs, Tensor};

/// `q_latent = W_DQ x`, `[q_nope | q_rope] = W_UQ norm(q_latent)`; a cached row is `[norm(c_0) | norm(c_1) | .. | k_R]` of
/// `W_DKV x`. Of `W_UKV`, per head `[W_UK | W_UV]`, one half goes into the query: `q = [W_UK^T q_nope | RoPE(q_rope)]`, and the
/// other half is applied to what was attended, so neither keys nor values are ever made.
pub struct GlaLayer {
    gpu: Gpu,
    heads: HeadLayout,
    q_down: Linear,
    q_up: Linear,
    absorb: Linear,
    kv_down: Linear,
    kv_norm: RmsNorm,
    unabsorb: Linear,
    o: Linear,
}

impl GlaLayer {
    pub fn new(gpu: &Gpu, heads: HeadLayout, c: &LayerConfig, w: &GlaWeights) -> Result<Self> {
        let (&LayerConfig { q_heads, head_dim, state_dim, rope_dim, .. }, eps) = (c, c.eps as f32);
        let norm = NormShape { groups: c.groups, dim: state_dim, tail: rope_dim, eps };
        let (mut w_uk, mut w_uv) = (Vec::new(), Vec::new());
        for head in w.w_ukv.chunks(2 * head_dim * state_dim) {
            let (k, v) = head.split_at(head_dim * state_dim);
            w_uk.extend((0..state_dim * head_dim).map(|i| k[i % head_dim * state_dim + i / head_dim])); // transposed
            w_uv.extend_from_slice(v);
        }
        let q_gain = tensor(gpu, &[1, c.q_latent_dim], &w.q_gain)?;
        Ok(GlaLayer {
            gpu: gpu.clone(),
            heads,
            q_down: linear(gpu, [1, c.q_latent_dim, c.model_dim], &w.w_dq)?,
            q_up: linear(gpu, [1, q_heads * (head_dim + rope_dim), c.q_latent_dim], &w.w_uq)?
                .with_norm(&q_gain, eps)?,
            absorb: linear(gpu, [q_heads, state_dim, head_dim], &w_uk)?.with_tail(rope_dim, RopePairs::Half)?,
            kv_down: linear(gpu, [1, heads.kv_dim(), c.model_dim], &w.w_dkv)?,
            kv_norm: RmsNorm::new(gpu, &tensor(gpu, &[c.groups, state_dim], &w.c_gain)?, norm)?,
            unabsorb: linear(gpu, [q_heads, head_dim, state_dim], &w_uv)?,
            o: linear(gpu, [1, c.model_dim, q_heads * head_dim], &w.w_o)?,
        })
    }
}

impl Layer for GlaLayer {
    fn project(&self, x: &Tensor, cos_sin: &Tensor) -> Result<(Tensor, Tensor)> {
        let (rows, heads) = (x.shape()[0], self.heads.q_heads());
        let raw = self.q_up.forward(&self.q_down.forward(x)?)?;
        let raw = raw.view(&[rows, heads, raw.len() / rows / heads])?;
        let q = Tensor::zeros(&self.gpu, &[rows, heads, self.heads.q_dim()], DType::F32)?;
        let args = LinearArgs::new(rows, Span::of(&raw), Span::of(&q));
        self.absorb.run(LinearArgs { cos_sin: Some(cos_sin), ..args })?;
        let (down, kv) =
            (self.kv_down.forward(x)?, Tensor::zeros(&self.gpu, &[rows, self.heads.kv_dim()], DType::F32)?);
        self.kv_norm.run(rows, Span::of(&down), Span::of(&kv))?;
        Ok((q, kv))
    }

    fn finish(&self, attended: &Tensor) -> Result<Tensor> {
        let values = self.unabsorb.forward(attended)?;
        self.o.forward(&values.view(&[values.shape()[0], self.o.weight().in_dim()])?)
    }
}
