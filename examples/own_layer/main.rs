//! Attention layers of a model of your own, from the residual stream back to it: the loop over the cache is here, GQA in `gqa.rs`, GLA
//! with absorbed matrices in `gla.rs`. Weights have the shapes that `latten::reference` states; in `check.rs` they are random, and the
//! last token is compared with it.
//!
//! `cargo run --release --example own_layer`

mod check;
mod gla;
mod gqa;

use check::{PROMPT, THETA};
use latten::nn::{Linear, Weight};
use latten::reference::LayerConfig;
use latten::{
    CacheOptions, DType, Decode, DecodeArgs, Gpu, HeadLayout, PagedKvCache, Pages, Result, Rope, RopePairs, Tensor,
};

/// What a variant does around the cache and the decode.
trait Layer {
    /// Queries (tokens, q_heads, q_dim), rotated; rows for the cache (tokens, kv_dim), which append rotates.
    fn project(&self, x: &Tensor, cos_sin: &Tensor) -> Result<(Tensor, Tensor)>;
    /// Attended values (tokens, q_heads, v_dim), back in the residual stream: (tokens, model_dim).
    fn finish(&self, attended: &Tensor) -> Result<Tensor>;
}

/// A prompt and then token by token: `x` is (tokens, model_dim). Returns the layer's output of the last token.
async fn last_output(gpu: &Gpu, layer: &dyn Layer, heads: HeadLayout, c: &LayerConfig, x: &[f32]) -> Result<Vec<f32>> {
    let rope = Some(Rope::new(heads.rotated_dim(), THETA, RopePairs::Half)?);
    let pages = Pages { count: 4, size: 16, layers: 1 };
    let mut cache = PagedKvCache::new(gpu, heads, CacheOptions { rope, ..CacheOptions::new(DType::F32, pages) })?;
    let decode = Decode::new(gpu, heads, DType::F32)?;
    let scale = ((c.head_dim + c.rope_dim) as f32).powf(-0.5); // the width before absorption; of GQA rope_dim is 0
    let (seq, mut out) = (cache.insert(), None);
    let (prompt, rest) = x.split_at(PROMPT * c.model_dim);
    for x in std::iter::once(prompt).chain(rest.chunks(c.model_dim)) {
        let rows = x.len() / c.model_dim;
        let x = Tensor::from_slice(gpu, &[rows, c.model_dim], x, DType::F32)?;
        cache.reserve(&[seq], rows)?;
        let plan = decode.plan(&cache, &[seq])?;
        let (q, kv) = layer.project(&x, &cache.cos_sin(&[seq])?)?;
        cache.append(0, &[seq], &kv)?;
        let attended = decode.run(DecodeArgs::new(&plan, &cache.layer(0)?, &q, scale))?;
        out = Some(layer.finish(&attended.out)?);
        cache.commit(&[seq], rows)?;
    }
    let all: Vec<f32> = gpu.download(&out.unwrap_or(Tensor::zeros(gpu, &[1, c.model_dim], DType::F32)?)).await?;
    Ok(all[all.len() - c.model_dim..].to_vec())
}

fn tensor(gpu: &Gpu, shape: &[usize], values: &[f64]) -> Result<Tensor> {
    Tensor::from_slice(gpu, shape, &values.iter().map(|v| *v as f32).collect::<Vec<_>>(), DType::F32)
}

/// A stack of matrices (heads, out_dim, in_dim); `DType::F16` or `I8` halve or quarter what is read.
fn linear(gpu: &Gpu, shape: [usize; 3], values: &[f64]) -> Result<Linear> {
    let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
    Linear::new(gpu, &Weight::new(gpu, shape, &values, DType::F32)?, None)
}

/// The largest difference from the f64 layers, of GQA and of GLA.
pub async fn run() -> Result<[f64; 2]> {
    check::compare(&Gpu::new().await?).await
}

fn main() -> Result<()> {
    let [gqa, gla] = pollster::block_on(run())?;
    println!("the last token's output is at most {gqa:.1e} (GQA) and {gla:.1e} (GLA) from the f64 layers");
    Ok(())
}
