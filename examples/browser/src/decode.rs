//! `Decode`: the attention kernels over typed arrays.

use crate::cache::{Inner, KvCache};
use crate::device::Device;
use crate::error::{Result, Thrown};
use crate::layout::{dtype, layout};
use crate::options::{object, Options};
use js_sys::{Float32Array, Promise};
use latten::nn::{RopeKernel, RopeShape, Span};
use latten::{AttentionOptions, DType, DecodeArgs, DecodeOutput, RopePairs, SeqId, SplitPolicy, Tensor};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::future_to_promise;

/// Compiled attention for one layout and element type.
#[wasm_bindgen]
pub struct Decode {
    device: Device,
    decode: latten::Decode,
}

impl Decode {
    /// Records; the result is there when it is downloaded.
    fn recorded(
        &self,
        cache: &KvCache,
        layer: usize,
        sequences: &[u32],
        q: &[f32],
        scale: f32,
    ) -> Result<DecodeOutput> {
        let mut inner = cache.inner()?;
        let (ids, heads) = (inner.ids(sequences)?, self.decode.heads());
        let plan = self.decode.plan(&inner.cache, &ids)?;
        let shape = [plan.tokens(), heads.q_heads(), heads.q_dim()];
        let q = Tensor::from_slice(&self.device.gpu, &shape, q, DType::F32)?;
        let q = match inner.cache.options().rope {
            Some(rope) => self.rotated(&mut inner, &ids, &q, rope.pairs)?,
            None => q,
        };
        Ok(self.decode.run(DecodeArgs::new(&plan, &inner.cache.layer(layer)?, &q, scale))?)
    }
}

impl Decode {
    /// Queries (tokens, qHeads, qDim), rotated to their tokens' positions.
    fn rotated(&self, inner: &mut Inner, ids: &[SeqId], q: &Tensor, pairs: RopePairs) -> Result<Tensor> {
        let (gpu, heads) = (&self.device.gpu, self.decode.heads());
        let rope_dim = heads.rotated_dim();
        let shape = RopeShape { heads: heads.q_heads(), copy_dim: heads.q_dim() - rope_dim, rope_dim, pairs };
        let cos_sin = inner.cache.cos_sin(ids)?;
        let y = Tensor::zeros(gpu, q.shape(), DType::F32)?;
        let tokens = q.shape().first().copied().unwrap_or_default();
        RopeKernel::new(gpu, shape)?.run(tokens, &cos_sin, Span::of(q), Span::of(&y))?;
        Ok(y)
    }
}

#[wasm_bindgen]
impl Decode {
    /// Compiles.
    #[wasm_bindgen(constructor)]
    pub fn new(
        device: &Device,
        #[wasm_bindgen(unchecked_param_type = "Heads")] heads: JsValue,
        #[wasm_bindgen(unchecked_optional_param_type = "CacheDType")] elements: JsValue,
        #[wasm_bindgen(unchecked_optional_param_type = "AttentionOptions")] options: JsValue,
    ) -> Result<Decode, JsValue> {
        let o = Options::new("options", &options, &["softcap", "window", "keepFirst", "splitTokens"])?;
        let seen = AttentionOptions {
            softcap: o.number("softcap", f64::MIN..=f64::MAX)?.map(|cap| cap as f32),
            window: o.size("window", 0..=1 << 30)?,
            keep_first: o.size("keepFirst", 0..=1 << 30)?.unwrap_or(0),
            ..Default::default()
        };
        let decode = latten::Decode::with_options(&device.gpu, layout(&heads)?, dtype(&elements)?, seen);
        let mut decode = decode.map_err(Thrown::from)?;
        if let Some(tokens) = o.size("splitTokens", 1..=1 << 30)? {
            decode = decode.with_policy(SplitPolicy::FixedTokens(tokens));
        }
        Ok(Decode { device: device.clone(), decode })
    }

    /// Attention of the reserved tokens of the sequences. `q` is (tokens, qHeads, qDim), (GLA, MLA) absorbed, and rotated, but of
    /// a cache with `rope`, which rotates it; the results are `out` (tokens, qHeads, vDim) and `lse` (tokens, qHeads). It reads the cache as it is at the call.
    #[wasm_bindgen(unchecked_return_type = "Promise<Attended>")]
    pub fn run(
        &self,
        cache: &KvCache,
        layer: u32,
        #[wasm_bindgen(unchecked_param_type = "ArrayLike<number>")] sequences: &[u32],
        #[wasm_bindgen(unchecked_param_type = "ArrayLike<number>")] q: &[f32],
        scale: f32,
    ) -> Promise {
        let (gpu, recorded) = (self.device.gpu.clone(), self.recorded(cache, layer as usize, sequences, q, scale));
        future_to_promise(async move {
            let output = recorded?;
            let out = gpu.download(&output.out).await.map_err(Thrown::from)?;
            let lse = gpu.download(&output.lse).await.map_err(Thrown::from)?;
            let array = |values: &[f32]| JsValue::from(Float32Array::from(values));
            Ok(object([("out", array(&out)), ("lse", array(&lse))]))
        })
    }
}
