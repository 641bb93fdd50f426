//! Tensors, and caches with memory: append, decode, saving and loading.

use crate::numbers::Gen;
use crate::pure::{DTYPES, ROTATIONS};
use latten::cache::{Save, SaveSequence};
use latten::kv::{Append, AppendArgs, Span};
use latten::{
    wgpu, CacheOptions, DType, Decode, DecodeArgs, Decoder, Gla, Gpu, Gqa, Gta, HeadLayout, KvSource, PagedKvCache,
    Pages, Rope, RopePairs, SeqId, SequenceOptions, Tensor,
};

/// What is made once, since it compiles.
pub struct World {
    pub gpu: Gpu,
    pub heads: [HeadLayout; 3],
    pub decoders: Vec<(&'static str, Decoder)>,
}

impl World {
    pub fn new() -> Self {
        let (device, queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
        let gpu = Gpu::from_wgpu(None, device, queue).unwrap();
        gpu.keep_idle_kernels(1 << 12); // the same kernels come again and again
        let heads = [
            HeadLayout::gqa(Gqa { q_heads: 4, kv_heads: 2, head_dim: 8 }),
            HeadLayout::gta(Gta { q_heads: 4, kv_heads: 2, head_dim: 8, rope_dim: 4 }),
            HeadLayout::gla(Gla { q_heads: 4, latent_heads: 2, latent_dim: 8, rope_dim: 4 }),
        ];
        let decoders = crate::models::decoders(&gpu);
        World { gpu, heads: heads.map(Result::unwrap), decoders }
    }
}

pub fn zeros(gpu: &Gpu, shape: &[usize], dtype: DType) -> Tensor {
    Tensor::zeros(gpu, shape, dtype).unwrap()
}

pub fn case(g: &mut Gen, world: &World) {
    if g.one_in(3) {
        return tensors(g, &world.gpu);
    }
    let heads = g.pick(&world.heads);
    let dtype = if g.one_in(20) { DType::U32 } else { g.pick(&[DType::F32, DType::F16, DType::I8]) };
    let pages = Pages { count: g.held(8, 16), size: if g.one_in(20) { g.size() } else { 4 }, layers: g.held(2, 3) };
    let rope =
        g.one_in(2).then(|| Rope { pairs: g.pick(&ROTATIONS), inv_freq: g.f32s(heads.rotated_dim() / 2).to_vec() });
    let options = CacheOptions { grows: g.one_in(3), rope, ..CacheOptions::new(dtype, pages) };
    let Some(mut cache) = g.call("PagedKvCache::new", PagedKvCache::new(&world.gpu, heads, options)) else { return };
    let mut ids = vec![cache.insert(), cache.insert()];
    for _ in 0..g.below(6) {
        step(g, world, &mut cache, &mut ids);
    }
}

fn step(g: &mut Gen, world: &World, cache: &mut PagedKvCache, ids: &mut Vec<SeqId>) {
    let gpu = &world.gpu;
    let id = g.pick(ids);
    let n = g.held(2, 20);
    match g.below(12) {
        0..=2 => {
            g.call("PagedKvCache::reserve", cache.reserve(&[id], n));
        }
        3 => {
            g.call("PagedKvCache::commit", cache.commit(&[id], n));
        }
        4 => {
            let (window, keep_first) = (g.near(5), g.near(2));
            ids.extend(g.call(
                "PagedKvCache::insert_with",
                cache.insert_with(SequenceOptions { window: Some(window), keep_first }),
            ));
        }
        5 => ids.extend(g.call("PagedKvCache::fork", cache.fork(id))),
        6 => {
            let bytes = g.bits() >> g.below(64);
            g.call("PagedKvCache::set_byte_budget", cache.set_byte_budget(bytes));
            cache.shrink().unwrap();
        }
        7 => {
            g.call("PagedKvCache::remove", cache.remove(id));
        }
        8 => saved(g, cache, id),
        9 => append(g, world, cache),
        _ => {
            let _ = cache.reserve(&[id], 1);
            attend(g, gpu, cache, id);
        }
    }
    let _ = (cache.stats(), cache.token_bytes(), cache.page_bytes(), cache.pool_bytes());
}

/// A layer's step, as an app makes it.
fn attend(g: &mut Gen, gpu: &Gpu, cache: &mut PagedKvCache, id: SeqId) {
    let heads = *cache.heads();
    let tokens = cache.batch(&[id]).map_or(1, |batch| batch.tokens().max(1));
    let (kv, layer) = (zeros(gpu, &[g.len(tokens).max(1), heads.kv_dim()], DType::F32), g.near(0));
    g.call("PagedKvCache::append", cache.append(layer, &[id], &kv));
    g.call("PagedKvCache::cos_sin", cache.cos_sin(&[id]));
    let Ok(decode) = Decode::new(gpu, heads, cache.dtype()) else { return };
    let output = g.held(tokens, 64);
    g.call("Decode::output", decode.output(output));
    let Some(plan) = g.call("Decode::plan", decode.plan(cache, &[id])) else { return };
    let Some(view) = g.call("PagedKvCache::layer", cache.layer(layer)) else { return };
    let (q, scale) = (zeros(gpu, &[g.len(tokens).max(1), heads.q_heads(), heads.q_dim()], DType::F32), g.float(0.5));
    g.call("Decode::run", decode.run(DecodeArgs::new(&plan, &view, &q, scale as f32)));
    gpu.submit().unwrap();
}

fn append(g: &mut Gen, world: &World, cache: &PagedKvCache) {
    let (gpu, heads) = (&world.gpu, *cache.heads());
    let (page_size, rotation) = (g.near(cache.pages().size), g.pick(&ROTATIONS));
    let made = Append::new(gpu, heads, cache.dtype(), page_size, rotation);
    let Some(append) = g.call("Append::new", made) else { return };
    let rows = 1 + g.below(3);
    let kv = zeros(gpu, &[rows, heads.kv_dim()], DType::F32);
    let slots = zeros(gpu, &[g.len(rows).max(1)], DType::U32);
    let cos_sin = zeros(gpu, &[g.len(rows).max(1), append.rotated_dim().max(2) / 2, 2], DType::F32);
    let args = AppendArgs { kv: Span::of(&kv), slots: &slots, cos_sin: &cos_sin, tokens: g.near(rows) };
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    let mut pass = encoder.begin_compute_pass(&Default::default());
    let view = cache.layer(0).unwrap();
    g.call("Append::encode", append.encode(gpu, &mut pass, &view, args));
}

/// Out and back, sometimes damaged.
fn saved(g: &mut Gen, cache: &mut PagedKvCache, id: SeqId) {
    let (mut bytes, tokens) = (Vec::new(), vec![1; g.len(cache.len(id).unwrap_or(0))]);
    let fingerprint = vec![7; if g.one_in(10) { 1 << 17 } else { 4 }];
    let sequences = [SaveSequence { id, tokens: &tokens }];
    let save = cache.save(Save { sequences: &sequences, fingerprint: &fingerprint }, &mut bytes, |_| ());
    if g.call("PagedKvCache::save", pollster::block_on(save)).is_none() {
        return;
    }
    if g.one_in(2) {
        let (at, bit) = (g.below(bytes.len()), g.below(8));
        bytes[at] ^= 1 << bit;
        bytes.truncate(g.near(bytes.len()));
    }
    let loaded = pollster::block_on(cache.load(&fingerprint, &bytes[..], |_| ()));
    for sequence in g.call("PagedKvCache::load", loaded).into_iter().flatten() {
        cache.remove(sequence.id).unwrap();
    }
}

fn tensors(g: &mut Gen, gpu: &Gpu) {
    let shape: Vec<usize> = (0..g.len(2).min(6)).map(|_| g.held(4, 16)).collect();
    let dtype = g.pick(&DTYPES);
    let values = g.f32s(16);
    let words: Vec<u32> = values.iter().map(|v| *v as u32).collect();
    g.call("Tensor::from_slice", Tensor::from_slice(gpu, &shape, &values, dtype));
    let of_words = g.pick(&[dtype, DType::U32]);
    g.call("Tensor::from_slice", Tensor::from_slice(gpu, &shape, &words, of_words));
    let Some(tensor) = g.call("Tensor::zeros", Tensor::zeros(gpu, &shape, dtype)) else { return };
    let view: Vec<usize> = shape.iter().map(|n| g.near(*n)).collect();
    if let Some(view) = g.call("Tensor::view", tensor.view(&view)) {
        let _ = (view.len(), view.is_empty());
    }
    g.call("Gpu::upload", gpu.upload(&tensor, &values));
    g.call("Gpu::upload", gpu.upload(&tensor, &words));
    g.call("Gpu::download", pollster::block_on(gpu.download::<f32>(&tensor)));
    g.call("Gpu::download", pollster::block_on(gpu.download::<u32>(&tensor)));
    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 64,
        usage: if g.one_in(8) { wgpu::BufferUsages::UNIFORM } else { wgpu::BufferUsages::STORAGE },
        mapped_at_creation: false,
    });
    g.call("Tensor::from_wgpu", Tensor::from_wgpu(gpu, buffer, &shape, dtype));
    let _ = RopePairs::default();
}
