//! One row: fill a cache, decode, compare with the reference, time.

use super::contents::Contents;
use super::shapes::Shape;
use crate::common::timing::{random, times_us, Block, WARM};
use latten::attention::DecodeArgs;
use latten::reference;
use latten::reference::DecodeInputs;
use latten::{
    CacheOptions, DType, Decode, DecodeOutput, ErrorKind, Gpu, HeadLayout, KvSource, PagedKvCache, Pages, Result,
};
use latten::{SeqId, Tensor};

/// Off by more than this from the f64 reference is a wrong result (outputs are of order 0.1 and below).
const TOLERANCE: f64 = 1e-4;
pub struct Measured {
    pub us: f64,
    /// From the 10th to the 90th percentile.
    pub spread_us: f64,
    pub workgroups: usize,
    pub max_error: f64,
}

pub async fn measure(gpu: &Gpu, shape: &Shape, block: &Block) -> Result<Measured> {
    let (heads, dtype) = (shape.heads, block.dtype());
    let pages = Pages { count: shape.pages(), size: shape.page_size, layers: shape.pools(dtype) };
    let mut cache = PagedKvCache::new(gpu, heads, CacheOptions::new(dtype, pages))?;
    let mut ids = Vec::new();
    for &length in &shape.lengths {
        let id = cache.insert();
        if length > shape.q_len {
            cache.reserve(&[id], length - shape.q_len)?;
            cache.commit(&[id], length - shape.q_len)?;
        }
        cache.reserve(&[id], shape.q_len)?;
        ids.push(id);
    }
    let layers = (0..pages.layers).map(|layer| cache.layer(layer)).collect::<Result<Vec<_>>>()?;
    let contents = Contents::new(gpu, heads, shape.page_size, block);
    for layer in &layers {
        contents.fill(gpu, &layer.wgpu_buffers()[0])?;
    }
    let decode = Decode::new(gpu, heads, dtype)?;
    let tokens = ids.len() * shape.q_len;
    let q_values = random(tokens * heads.q_heads() * heads.q_dim(), 99);
    let q = Tensor::from_slice(gpu, &[tokens, heads.q_heads(), heads.q_dim()], &q_values, DType::F32)?;
    let plan = decode.plan(&cache, &ids)?;
    let softmax_scale = (heads.q_dim() as f32).powf(-0.5);
    let output = decode.run(DecodeArgs::new(&plan, &layers[0], &q, softmax_scale))?;
    let sample = Sample { cache: &cache, ids: &ids, q: &q_values, softmax_scale, contents: &contents, shape };
    let max_error = sample.check(gpu, &output).await?;
    let times = times_us(gpu, WARM, |pass, i| {
        let layer = &layers[i % layers.len()];
        decode.encode(pass, DecodeArgs::new(&plan, layer, &q, softmax_scale), &output)
    })
    .await?;
    let spread_us = times[times.len() * 9 / 10] - times[times.len() / 10];
    Ok(Measured { us: times[times.len() / 2], spread_us, workgroups: plan.workgroups(), max_error })
}

/// What a sampled result follows from.
struct Sample<'a> {
    cache: &'a PagedKvCache,
    ids: &'a [SeqId],
    q: &'a [f32],
    softmax_scale: f32,
    contents: &'a Contents<'a>,
    shape: &'a Shape,
}

impl Sample<'_> {
    /// The largest absolute error against the reference of some rows: first and last sequence, head and query token.
    async fn check(&self, gpu: &Gpu, output: &DecodeOutput) -> Result<f64> {
        let out = gpu.download::<f32>(&output.out).await?;
        let (heads, q_len) = (&self.shape.heads, self.shape.q_len);
        let batch = self.cache.batch(self.ids)?;
        let mut worst = 0.0f64;
        for (sequence, head, token) in [(0, 0, 0), (self.ids.len() - 1, heads.q_heads() - 1, q_len - 1)] {
            let view = batch.sequences[sequence];
            // A query token sees the tokens up to its own.
            let visible = view.kv_len as usize - q_len + token + 1;
            let pages = &batch.page_table[view.page_table_first as usize..];
            let (states, rope_keys) = self.contents.rows(pages, visible, head / heads.heads_per_group());
            let row = (view.q_token_first as usize + token) * heads.q_heads() + head;
            let q = self.q[row * heads.q_dim()..(row + 1) * heads.q_dim()].iter();
            let q: Vec<f64> = q.map(|&x| x.into()).collect();
            let softmax_scale = self.softmax_scale.into();
            let inputs = DecodeInputs { q: &q, states: &states, rope_keys: &rope_keys, softmax_scale, causal: true };
            let want = reference::decode(&one_head(heads)?, &inputs)?;
            for (got, want) in out[row * heads.v_dim()..].iter().zip(&want.out) {
                let error = (f64::from(*got) - want).abs();
                worst = if error.is_nan() { f64::INFINITY } else { worst.max(error) };
            }
        }
        if worst > TOLERANCE {
            let message = format!("wrong result, off by {worst:e}");
            return Err(ErrorKind::Gpu { context: self.shape.name.clone(), message }.into());
        }
        Ok(worst)
    }
}

/// The layout of one head of one group.
fn one_head(heads: &HeadLayout) -> Result<HeadLayout> {
    if heads.v_offset() > 0 {
        HeadLayout::mha(1, heads.v_dim())
    } else if heads.nope_dim() == heads.state_dim() {
        HeadLayout::mla(latten::Mla { q_heads: 1, latent_dim: heads.v_dim(), rope_dim: heads.rope_dim() })
    } else {
        let gta = latten::Gta { q_heads: 1, kv_heads: 1, head_dim: heads.v_dim(), rope_dim: heads.rope_dim() };
        HeadLayout::gta(gta)
    }
}
