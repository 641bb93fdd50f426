//! A GQA layer in an app's own device, recorded into the app's own compute pass: nothing of it is latten's to submit.
//!
//! `cargo run --release --example own_device`

use latten::kv::{Append, AppendArgs};
use latten::nn::{Linear, LinearArgs, RopeKernel, RopeShape, Span, Weight};
use latten::reference::{self, GqaWeights, LayerConfig};
use latten::rope::cos_sin_table;
use latten::wgpu;
use latten::{
    CacheOptions, DType, Decode, DecodeArgs, Gpu, Gqa, HeadLayout, KvSource, PagedKvCache, Pages, Result, Rope,
    RopePairs, SeqId, Tensor,
};

const THETA: f64 = 10_000.0;
const PAGE_SIZE: usize = 16;
/// New tokens of each step: a prompt, then one by one.
const STEPS: [usize; 4] = [21, 1, 1, 1];
const PAIRS: RopePairs = RopePairs::Half;

/// Everything that a step records. The cache itself rotates nothing: the app has its own append.
struct Layer {
    gpu: Gpu,
    cache: PagedKvCache,
    rope: Rope,
    append: Append,
    decode: Decode,
    rotate: RopeKernel,
    q: Linear,
    kv: Linear,
    o: Linear,
}

impl Layer {
    fn new(gpu: &Gpu, c: &LayerConfig, w: &GqaWeights) -> Result<Self> {
        let heads = HeadLayout::gqa(Gqa { q_heads: c.q_heads, kv_heads: c.groups, head_dim: c.head_dim })?;
        let pages = Pages { count: 4, size: PAGE_SIZE, layers: 1 };
        let head = c.head_dim * c.model_dim;
        // A cached row has the key and then the value of each KV head in turn.
        let kv: Vec<f64> = w.w_k.chunks(head).zip(w.w_v.chunks(head)).flat_map(|(k, v)| [k, v].concat()).collect();
        let shape = RopeShape { heads: c.q_heads, copy_dim: 0, rope_dim: c.head_dim, pairs: PAIRS };
        Ok(Layer {
            gpu: gpu.clone(),
            cache: PagedKvCache::new(gpu, heads, CacheOptions::new(DType::F32, pages))?,
            rope: Rope::new(c.head_dim, THETA, PAIRS)?,
            append: Append::new(gpu, heads, DType::F32, PAGE_SIZE, PAIRS)?,
            decode: Decode::new(gpu, heads, DType::F32)?,
            rotate: RopeKernel::new(gpu, shape)?,
            q: linear(gpu, [1, c.q_heads * c.head_dim, c.model_dim], &w.w_q)?,
            kv: linear(gpu, [1, heads.kv_dim(), c.model_dim], &kv)?,
            o: linear(gpu, [1, c.model_dim, c.q_heads * c.head_dim], &w.w_o)?,
        })
    }

    /// New tokens of a sequence, `x` (tokens, model_dim), through the layer: (tokens, model_dim). A loop keeps its tensors.
    fn step(&mut self, seq: SeqId, x: &Tensor) -> Result<Tensor> {
        let (gpu, heads) = (&self.gpu, *self.cache.heads());
        let (rows, model_dim) = (x.shape()[0], x.shape()[1]);
        let zeros = |shape: &[usize]| Tensor::zeros(gpu, shape, DType::F32);
        self.cache.reserve(&[seq], rows)?;
        let plan = self.decode.plan(&self.cache, &[seq])?;
        // What the cache's own append would upload: where each new token goes, and the angles at its position.
        let batch = self.cache.batch(&[seq])?;
        let slots = Tensor::from_slice(gpu, &[rows], &batch.slots, DType::U32)?;
        let table = cos_sin_table(&self.rope.inv_freq, &batch.positions);
        let cos_sin = Tensor::from_slice(gpu, &[rows, heads.nope_dim() / 2, 2], &table, DType::F32)?;
        let (raw, q) =
            (zeros(&[rows, heads.q_heads(), heads.q_dim()])?, zeros(&[rows, heads.q_heads(), heads.q_dim()])?);
        let (kv, y) = (zeros(&[rows, heads.kv_dim()])?, zeros(&[rows, model_dim])?);
        let (view, output) = (self.cache.layer(0)?, self.decode.output(rows)?);
        let attended = output.out.view(&[rows, self.o.weight().in_dim()])?;

        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        let mut pass = encoder.begin_compute_pass(&Default::default()); // your own dispatches may stand between these
        self.q
            .encode(&mut pass, LinearArgs::new(rows, Span::of(x), Span::of(&raw.view(&[rows, raw.len() / rows])?)))?;
        self.rotate.encode(&mut pass, rows, &cos_sin, Span::of(&raw), Span::of(&q))?;
        self.kv.encode(&mut pass, LinearArgs::new(rows, Span::of(x), Span::of(&kv)))?;
        let args = AppendArgs { kv: Span::of(&kv), slots: &slots, cos_sin: &cos_sin, tokens: rows };
        self.append.encode(gpu, &mut pass, &view, args)?;
        let scale = (heads.nope_dim() as f32).powf(-0.5);
        self.decode.encode(&mut pass, DecodeArgs::new(&plan, &view, &q, scale), &output)?;
        self.o.encode(&mut pass, LinearArgs::new(rows, Span::of(&attended), Span::of(&y)))?;
        drop(pass);

        gpu.submit()?; // uploads come first
        gpu.queue().submit([encoder.finish()]);
        gpu.passes_submitted(); // from now on the memory of plan and output may serve the next step
        self.cache.commit(&[seq], rows)?;
        Ok(y)
    }
}

fn linear(gpu: &Gpu, shape: [usize; 3], values: &[f64]) -> Result<Linear> {
    let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
    Linear::new(gpu, &Weight::new(gpu, shape, &values, DType::F32)?, None)
}

/// The app's device, made as the app likes: latten needs no feature and takes WebGPU's default limits.
async fn device() -> Result<Gpu, Box<dyn std::error::Error>> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = instance.request_adapter(&Default::default()).await?;
    let (device, queue) = adapter.request_device(&Default::default()).await?;
    Ok(Gpu::from_wgpu(&adapter, device, queue)?)
}

/// The largest difference of the last token's output from the f64 layer.
pub async fn run() -> Result<f64, Box<dyn std::error::Error>> {
    let (gpu, mut state) = (device().await?, 1u64);
    let mut random = |rows: usize, in_dim: usize| -> Vec<f64> {
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..rows * in_dim).map(|_| f64::from(next() * 2.0 / (in_dim as f32).sqrt())).collect()
    };
    let (model_dim, q_heads, groups, head_dim) = (64, 8, 2, 32);
    let rotation = reference::Rope::new(THETA, head_dim, reference::RopePairs::Half)?;
    let (state_dim, rope_dim, q_latent_dim, eps) = (2 * head_dim, 0, 0, 1e-6);
    let c = LayerConfig { model_dim, q_heads, groups, head_dim, rope_dim, state_dim, q_latent_dim, eps, rotation };
    let [w_q, w_o] = [random(q_heads * head_dim, model_dim), random(model_dim, q_heads * head_dim)];
    let [w_k, w_v] = [random(groups * head_dim, model_dim), random(groups * head_dim, model_dim)];
    let w = GqaWeights { w_q, w_k, w_v, w_o };
    let x = random(STEPS.iter().sum(), model_dim);

    let mut layer = Layer::new(&gpu, &c, &w)?;
    let (seq, mut rest, mut y) = (layer.cache.insert(), &x[..], Vec::new());
    for tokens in STEPS {
        let (now, after) = rest.split_at(tokens * model_dim);
        let now: Vec<f32> = now.iter().map(|v| *v as f32).collect();
        let now = Tensor::from_slice(&gpu, &[tokens, model_dim], &now, DType::F32)?;
        y = gpu.download::<f32>(&layer.step(seq, &now)?).await?;
        rest = after;
    }
    let (last, want) = (&y[y.len() - model_dim..], reference::gqa_layer(&c, &w, &x)?);
    Ok(last.iter().zip(&want).map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("the last token's output is at most {:.1e} from the f64 layer", pollster::block_on(run())?);
    Ok(())
}
