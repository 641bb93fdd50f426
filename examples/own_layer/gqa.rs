//! GQA: one product makes keys and values in the order of a cached row.

use super::{linear, Layer};
use latten::nn::{Linear, RopeKernel, RopeShape, Span};
use latten::reference::{GqaWeights, LayerConfig};
use latten::{DType, Gpu, Result, RopePairs, Tensor};

/// `q = RoPE(W_Q x)`. A cached row has the key and then the value of each KV head in turn, so the rows of `kv` do.
pub struct GqaLayer {
    gpu: Gpu,
    shape: RopeShape,
    rope: RopeKernel,
    q: Linear,
    kv: Linear,
    o: Linear,
}

impl GqaLayer {
    pub fn new(gpu: &Gpu, c: &LayerConfig, w: &GqaWeights) -> Result<Self> {
        let head = c.head_dim * c.model_dim;
        let kv: Vec<f64> = w.w_k.chunks(head).zip(w.w_v.chunks(head)).flat_map(|(k, v)| [k, v].concat()).collect();
        let shape = RopeShape { heads: c.q_heads, copy_dim: 0, rope_dim: c.head_dim, pairs: RopePairs::Half };
        Ok(GqaLayer {
            gpu: gpu.clone(),
            shape,
            rope: RopeKernel::new(gpu, shape)?,
            q: linear(gpu, [1, c.q_heads * c.head_dim, c.model_dim], &w.w_q)?,
            kv: linear(gpu, [1, 2 * c.groups * c.head_dim, c.model_dim], &kv)?,
            o: linear(gpu, [1, c.model_dim, c.q_heads * c.head_dim], &w.w_o)?,
        })
    }
}

impl Layer for GqaLayer {
    fn project(&self, x: &Tensor, cos_sin: &Tensor) -> Result<(Tensor, Tensor)> {
        let shape = [x.shape()[0], self.shape.heads, self.shape.rope_dim];
        let (raw, q) = (self.q.forward(x)?.view(&shape)?, Tensor::zeros(&self.gpu, &shape, DType::F32)?);
        self.rope.run(shape[0], cos_sin, Span::of(&raw), Span::of(&q))?;
        Ok((q, self.kv.forward(x)?))
    }

    fn finish(&self, attended: &Tensor) -> Result<Tensor> {
        self.o.forward(&attended.view(&[attended.shape()[0], self.o.weight().in_dim()])?)
    }
}
