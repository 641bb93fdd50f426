//! Attention layers of a model of your own, from the residual stream back to it: GQA, and GLA with absorbed matrices.
//! Weights have the shapes that `latten::reference` states; here they are random, and the last token is compared with it.
//!
//! `cargo run --release --example own_layer`

use latten::nn::{Linear, LinearArgs, NormShape, RmsNorm, RopeKernel, RopeShape, Span, Weight};
use latten::reference::{self, Form, GlaWeights, GqaWeights, LayerConfig};
use latten::{
    CacheOptions, DType, Decode, DecodeArgs, Gla, Gpu, Gqa, HeadLayout, PagedKvCache, Pages, Result, Rope, RopePairs,
    Tensor,
};

/// What a variant does around the cache and the decode.
trait Layer {
    /// Queries (tokens, q_heads, q_dim), rotated; rows for the cache (tokens, kv_dim), which append rotates.
    fn project(&self, x: &Tensor, cos_sin: &Tensor) -> Result<(Tensor, Tensor)>;
    /// Attended values (tokens, q_heads, v_dim), back in the residual stream: (tokens, model_dim).
    fn finish(&self, attended: &Tensor) -> Result<Tensor>;
}

/// `q = RoPE(W_Q x)`. A cached row has the key and then the value of each KV head in turn, so the rows of `kv` do.
struct GqaLayer {
    gpu: Gpu,
    shape: RopeShape,
    rope: RopeKernel,
    q: Linear,
    kv: Linear,
    o: Linear,
}

impl GqaLayer {
    fn new(gpu: &Gpu, c: &LayerConfig, w: &GqaWeights) -> Result<Self> {
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

/// `q_latent = W_DQ x`, `[q_nope | q_rope] = W_UQ norm(q_latent)`; a cached row is `[norm(c_0) | norm(c_1) | .. | k_R]` of
/// `W_DKV x`. Of `W_UKV`, per head `[W_UK | W_UV]`, one half goes into the query: `q = [W_UK^T q_nope | RoPE(q_rope)]`, and the
/// other half is applied to what was attended, so neither keys nor values are ever made.
struct GlaLayer {
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
    fn new(gpu: &Gpu, heads: HeadLayout, c: &LayerConfig, w: &GlaWeights) -> Result<Self> {
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

const THETA: f64 = 10_000.0;
/// Tokens of the prompt, and of all.
const PROMPT: usize = 21;
const TOKENS: usize = 24;

fn tensor(gpu: &Gpu, shape: &[usize], values: &[f64]) -> Result<Tensor> {
    Tensor::from_slice(gpu, shape, &values.iter().map(|v| *v as f32).collect::<Vec<_>>(), DType::F32)
}

/// A stack of matrices (heads, out_dim, in_dim); `DType::F16` or `I8` halve or quarter what is read.
fn linear(gpu: &Gpu, shape: [usize; 3], values: &[f64]) -> Result<Linear> {
    let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
    Linear::new(gpu, &Weight::new(gpu, shape, &values, DType::F32)?, None)
}

/// Stands for weights and activations: numbers in -1..1, which f32 holds.
fn random(state: &mut u64, count: usize, scale: f64) -> Vec<f64> {
    let mut next = || {
        *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        f64::from((*state >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
    };
    (0..count).map(|_| f64::from((next() * scale) as f32)).collect()
}

/// The largest difference from the f64 layers, of GQA and of GLA.
pub async fn run() -> Result<[f64; 2]> {
    let (gpu, mut state) = (Gpu::new().await?, 1);
    let mut weight = |rows: usize, in_dim: usize| random(&mut state, rows * in_dim, 2.0 / (in_dim as f64).sqrt());
    let (model_dim, q_heads, groups, head_dim, q_latent_dim) = (64, 8, 2, 32, 48);
    let x = weight(TOKENS, model_dim);
    let x32: Vec<f32> = x.iter().map(|v| *v as f32).collect();

    let rotation = reference::Rope::new(THETA, head_dim, reference::RopePairs::Half)?;
    let (state_dim, rope_dim) = (2 * head_dim, 0);
    let c =
        LayerConfig { model_dim, q_heads, groups, head_dim, rope_dim, state_dim, q_latent_dim: 0, eps: 1e-6, rotation };
    let [w_q, w_o] = [weight(q_heads * head_dim, model_dim), weight(model_dim, q_heads * head_dim)];
    let [w_k, w_v] = [weight(groups * head_dim, model_dim), weight(groups * head_dim, model_dim)];
    let w = GqaWeights { w_q, w_k, w_v, w_o };
    let heads = HeadLayout::gqa(Gqa { q_heads, kv_heads: groups, head_dim })?;
    let got = last_output(&gpu, &GqaLayer::new(&gpu, &c, &w)?, heads, &c, &x32).await?;
    let gqa = difference(&got, &reference::gqa_layer(&c, &w, &x)?);

    let (state_dim, rope_dim) = (40, 16);
    let rotation = reference::Rope::new(THETA, rope_dim, reference::RopePairs::Half)?;
    let c = LayerConfig { rope_dim, state_dim, q_latent_dim, rotation, ..c };
    let (q_width, heads) = (
        q_heads * (head_dim + rope_dim),
        HeadLayout::gla(Gla { q_heads, latent_heads: groups, latent_dim: state_dim, rope_dim })?,
    );
    let w = GlaWeights {
        w_dq: weight(q_latent_dim, model_dim),
        b_dq: vec![0.0; q_latent_dim],
        q_gain: weight(q_latent_dim, 1),
        w_uq: weight(q_width, q_latent_dim),
        b_uq: vec![0.0; q_width],
        w_dkv: weight(heads.kv_dim(), model_dim),
        b_dkv: vec![0.0; heads.kv_dim()],
        c_gain: weight(groups * state_dim, 1),
        w_ukv: weight(q_heads * 2 * head_dim, state_dim),
        b_ukv: vec![0.0; q_heads * 2 * head_dim],
        w_o: weight(model_dim, q_heads * head_dim),
    };
    let got = last_output(&gpu, &GlaLayer::new(&gpu, heads, &c, &w)?, heads, &c, &x32).await?;
    Ok([gqa, difference(&got, &reference::gla_layer(&c, &w, &x, Form::Explicit)?)])
}

fn difference(got: &[f32], want: &[f64]) -> f64 {
    got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max)
}

fn main() -> Result<()> {
    let [gqa, gla] = pollster::block_on(run())?;
    println!("the last token's output is at most {gqa:.1e} (GQA) and {gla:.1e} (GLA) from the f64 layers");
    Ok(())
}
