//! The library in twenty lines: decode steps of Grouped Latent Attention, on random numbers in place of a model.
//!
//! `cargo run --release --example decode`

use latten::reference;
use latten::reference::DecodeInputs;
use latten::{
    CacheOptions, DType, Decode, DecodeArgs, DecodeOutput, Gla, Gpu, HeadLayout, Mla, PagedKvCache, Pages, Result,
    Tensor,
};

const GLA: Gla = Gla { q_heads: 16, latent_heads: 2, latent_dim: 256, rope_dim: 64 };
/// New tokens of each step: a prompt, then one by one.
const STEPS: [usize; 6] = [200, 1, 1, 1, 1, 1];

/// Runs the program; returns the largest difference from the f64 reference that it found.
pub async fn run() -> Result<f64> {
    let gpu = Gpu::new().await?;
    println!("adapter: {}", gpu.capabilities().adapter);
    let heads = HeadLayout::gla(GLA)?;
    let mut layers: Vec<Layer> = (0..3).map(|seed| Layer::new(&gpu, heads, seed)).collect();
    let mut worst = 0.0f64;

    let mut cache = PagedKvCache::new(
        &gpu,
        heads,
        CacheOptions::new(DType::F16, Pages { count: 16, size: 64, layers: layers.len() }),
    )?;
    let decode = Decode::new(&gpu, heads, DType::F16)?; // compiles here, not in the loop
    let softmax_scale = (128.0f32 + 64.0).powf(-0.5); // of a head's width before absorption
    let seq = cache.insert();
    for new in STEPS {
        cache.reserve(&[seq], new)?; // Err: CacheFull { needed, free }; nothing changed
        let plan = decode.plan(&cache, &[seq])?; // split-KV plan, shared by all layers
        for (i, layer) in layers.iter_mut().enumerate() {
            let (q, kv) = layer.project(new)?; // q: (tokens, q_heads, latent_dim + rope_dim)
            cache.append(i, &[seq], &kv)?; // kv: (tokens, latent_heads * latent_dim + rope_dim)
            layer.finish(decode.run(DecodeArgs::new(&plan, &cache.layer(i)?, &q, softmax_scale))?);
        }
        cache.commit(&[seq], new)?;

        print!("{:>4} tokens cached, {:>2} work items, output norms", cache.len(seq)?, plan.items());
        for layer in &layers {
            let (norm, error) = layer.check(softmax_scale).await?;
            print!("  {norm:.4}");
            worst = worst.max(error);
        }
        println!();
    }
    println!("largest difference of a head from the f64 reference: {worst:.1e}");
    println!("{} of {} pages in use, {} bytes per token", cache.stats().used, cache.stats().total, cache.token_bytes());
    Ok(worst)
}

/// Stands for a layer of a model: its projections are random numbers.
struct Layer {
    gpu: Gpu,
    heads: HeadLayout,
    random: fastrand::Rng,
    /// All rows so far (tokens, kv_dim), and the queries of the last step (tokens, q_heads, q_dim): for the reference.
    rows: Vec<f32>,
    q: Vec<f32>,
    attended: Option<DecodeOutput>,
}

impl Layer {
    fn new(gpu: &Gpu, heads: HeadLayout, seed: u64) -> Self {
        Layer {
            gpu: gpu.clone(),
            heads,
            random: fastrand::Rng::with_seed(seed),
            rows: Vec::new(),
            q: Vec::new(),
            attended: None,
        }
    }

    fn draw(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| 4.0 * self.random.f32() - 2.0).collect()
    }

    /// Absorbed and rotated queries of new tokens, and their rows for the cache.
    fn project(&mut self, tokens: usize) -> Result<(Tensor, Tensor)> {
        let (q_heads, q_dim, kv_dim) = (self.heads.q_heads(), self.heads.q_dim(), self.heads.kv_dim());
        self.q = self.draw(tokens * q_heads * q_dim);
        let rows = self.draw(tokens * kv_dim);
        self.rows.extend_from_slice(&rows);
        Ok((
            Tensor::from_slice(&self.gpu, &[tokens, q_heads, q_dim], &self.q, DType::F32)?,
            Tensor::from_slice(&self.gpu, &[tokens, kv_dim], &rows, DType::F32)?,
        ))
    }

    /// A model would go on with W_UV, W_O and the rest of its block.
    fn finish(&mut self, attended: DecodeOutput) {
        self.attended = Some(attended);
    }

    /// Norm of the last token's output, and how far its last head is from the reference.
    async fn check(&self, softmax_scale: f32) -> Result<(f32, f64)> {
        let Some(attended) = &self.attended else { return Ok((0.0, 0.0)) };
        let out = self.gpu.download::<f32>(&attended.out).await?;
        let last = &out[out.len() - self.heads.q_heads() * self.heads.v_dim()..];

        // The last head reads the last latent, so by itself it is an MLA of one head.
        let Gla { latent_heads, latent_dim, rope_dim, .. } = GLA;
        let (mut states, mut rope_keys) = (Vec::new(), Vec::new());
        for row in self.rows.chunks_exact(self.heads.kv_dim()) {
            let row: Vec<f64> = row.iter().map(|&v| half::f16::from_f32(v).to_f64()).collect();
            states.extend_from_slice(&row[(latent_heads - 1) * latent_dim..latent_heads * latent_dim]);
            rope_keys.extend_from_slice(&row[latent_heads * latent_dim..]);
        }
        let q: Vec<f64> = self.q[self.q.len() - self.heads.q_dim()..].iter().map(|&v| v.into()).collect();
        let softmax_scale = softmax_scale.into();
        let inputs = DecodeInputs { q: &q, states: &states, rope_keys: &rope_keys, softmax_scale, causal: true };
        let want = reference::decode(&HeadLayout::mla(Mla { q_heads: 1, latent_dim, rope_dim })?, &inputs)?.out;

        let got = &last[last.len() - latent_dim..];
        let error = got.iter().zip(&want).map(|(&g, w)| (f64::from(g) - w).abs()).fold(0.0, f64::max);
        Ok((last.iter().map(|v| v * v).sum::<f32>().sqrt(), error))
    }
}

/// The attention and the cache alone, without a model
#[derive(clap::Parser)]
#[command(name = "decode")]
struct Args {}

fn main() -> Result<()> {
    <Args as clap::Parser>::parse();
    pollster::block_on(run()).map(|_| ())
}
