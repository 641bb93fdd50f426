//! A decode on the adapter that is there (`LATTEN_ADAPTER` chooses), from recording to the end of the GPU's work: small
//! shapes of the four variants. For GPU time alone and real sizes: `cargo run --release -p latten-tools -- kernel_table`.
//!
//! `cargo bench --bench decode`

use criterion::{criterion_group, criterion_main, Criterion, Throughput};
use latten::{
    wgpu, CacheOptions, DType, Decode, DecodeArgs, Gla, Gpu, Gqa, Gta, HeadLayout, Mla, PagedKvCache, Pages, Result,
    Tensor,
};
use std::time::Duration;

const SEQUENCES: usize = 4;
const LENGTH: usize = 512;
const PAGE_SIZE: usize = 64;

fn layouts() -> Result<[(&'static str, HeadLayout); 4]> {
    // 8 query heads of 64 each, as in attention.md: GTA and GLA cache half of what GQA does, or less.
    Ok([
        ("gqa", HeadLayout::gqa(Gqa { q_heads: 8, kv_heads: 2, head_dim: 64 })?),
        ("gta", HeadLayout::gta(Gta { q_heads: 8, kv_heads: 2, head_dim: 64, rope_dim: 32 })?),
        ("gla", HeadLayout::gla(Gla { q_heads: 8, latent_heads: 2, latent_dim: 128, rope_dim: 32 })?),
        ("mla", HeadLayout::mla(Mla { q_heads: 8, latent_dim: 256, rope_dim: 32 })?),
    ])
}

/// Between -1 and 1.
fn random(n: usize) -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed(1);
    (0..n).map(|_| 2.0 * random.f32() - 1.0).collect()
}

fn variant(criterion: &mut Criterion, gpu: &Gpu, name: &str, heads: HeadLayout) -> Result<()> {
    let pages = Pages { count: SEQUENCES * LENGTH.div_ceil(PAGE_SIZE), size: PAGE_SIZE, layers: 1 };
    let mut cache = PagedKvCache::new(gpu, heads, CacheOptions::new(DType::F16, pages))?;
    let ids: Vec<_> = (0..SEQUENCES).map(|_| cache.insert()).collect();
    cache.reserve(&ids, LENGTH - 1)?;
    let tokens = SEQUENCES * (LENGTH - 1);
    let rows = Tensor::from_slice(gpu, &[tokens, heads.kv_dim()], &random(tokens * heads.kv_dim()), DType::F32)?;
    cache.append(0, &ids, &rows)?;
    cache.commit(&ids, LENGTH - 1)?;

    cache.reserve(&ids, 1)?;
    let kv = rows.view(&[SEQUENCES, heads.kv_dim()])?;
    cache.append(0, &ids, &kv)?;
    let shape = [SEQUENCES, heads.q_heads(), heads.q_dim()];
    let q = Tensor::from_slice(gpu, &shape, &random(shape.iter().product()), DType::F32)?;
    let decode = Decode::new(gpu, heads, DType::F16)?;
    let (plan, layer) = (decode.plan(&cache, &ids)?, cache.layer(0)?);
    let attend = || -> Result<()> {
        decode.run(DecodeArgs::new(&plan, &layer, &q, 0.1))?;
        gpu.submit()?;
        // A device that is lost here says so at the next run.
        let _ = gpu.device().poll(wgpu::PollType::wait_indefinitely());
        Ok(())
    };
    attend()?;
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Bytes((SEQUENCES * LENGTH * cache.token_bytes()) as u64));
    group.bench_function(format!("{name} {SEQUENCES}x{LENGTH} f16"), |bencher| bencher.iter(attend));
    group.finish();
    Ok(())
}

fn all(criterion: &mut Criterion) {
    let measured = pollster::block_on(Gpu::new()).and_then(|gpu| {
        println!("adapter: {}", gpu.capabilities().adapter);
        layouts()?.into_iter().try_for_each(|(name, heads)| variant(criterion, &gpu, name, heads))
    });
    if let Err(error) = measured {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn config() -> Criterion {
    let (warm_up, measurement) = (Duration::from_millis(500), Duration::from_secs(3));
    Criterion::default().sample_size(20).warm_up_time(warm_up).measurement_time(measurement).without_plots()
}

criterion_group! { name = benches; config = config(); targets = all }
criterion_main!(benches);
