//! What a decode step costs the host: page bookkeeping, planning, rotation tables. Runs on wgpu's no-op device, so on
//! any machine, and measures no driver.
//!
//! `cargo bench --bench host`

use criterion::{criterion_group, criterion_main, BenchmarkId, Criterion, Throughput};
use latten::cache::SeqTable;
use latten::nn::SwiGlu;
use latten::rope::cos_sin_table;
use latten::rope::Rope;
use latten::{
    wgpu, CacheOptions, DType, Decode, Gla, Gpu, Gqa, HeadLayout, KvBatch, KvSource, PagedKvCache, Pages, Result,
    RopePairs, SeqId, SplitPolicy, Tensor,
};
use std::hint::black_box;

const PAGE_SIZE: usize = 64;

/// A table of sequences of this length; it is all of a [`latten::PagedKvCache`] but the memory on the device.
fn table(sequences: usize, length: usize) -> Result<(SeqTable, Vec<SeqId>)> {
    ragged_table(&vec![length; sequences])
}

fn ragged_table(lengths: &[usize]) -> Result<(SeqTable, Vec<SeqId>)> {
    let pages = lengths.iter().map(|length| (length + 1).div_ceil(PAGE_SIZE)).sum();
    let mut table = SeqTable::new(pages, PAGE_SIZE)?;
    let mut ids = Vec::new();
    for &length in lengths {
        ids.push(table.insert());
        table.reserve(&ids[ids.len() - 1..], length)?;
        table.commit(&ids[ids.len() - 1..], length)?;
    }
    Ok((table, ids))
}

/// A batch made once, so that planning is timed without its page tables.
struct Batch(KvBatch);

impl KvSource for Batch {
    type Id = SeqId;
    fn batch(&self, _: &[SeqId]) -> Result<KvBatch> {
        Ok(self.0.clone())
    }
    fn page_size(&self) -> usize {
        PAGE_SIZE
    }
    fn generation(&self) -> u64 {
        self.0.generation
    }
}

/// Planning alone, with its upload: for a card of 1,024 workgroups, equal and ragged lengths. What the upload and the
/// copy of the batch take is in "unsplit" too.
fn plans(criterion: &mut Criterion) -> Result<()> {
    let gpu = noop()?;
    let heads = HeadLayout::gqa(Gqa { q_heads: 32, kv_heads: 8, head_dim: 128 })?;
    let decode = Decode::new(&gpu, heads, DType::F16)?.with_target_workgroups(1024);
    let unsplit = Decode::new(&gpu, heads, DType::F16)?.with_policy(SplitPolicy::Off);
    let mut group = criterion.benchmark_group("plan");
    for sequences in [1, 32, 256] {
        let ragged = (0..sequences).map(|i| 64 + i * 7919 % 8192).collect();
        for (name, lengths) in [("equal", vec![4096; sequences]), ("ragged", ragged)] {
            let (mut table, ids) = ragged_table(&lengths)?;
            table.reserve(&ids, 1)?;
            let batch = Batch(table.batch(&ids)?);
            group.throughput(Throughput::Elements(sequences as u64));
            for (what, decode) in [("auto", &decode), ("unsplit", &unsplit)] {
                let id = BenchmarkId::new(what, format!("{sequences} {name}"));
                group.bench_function(id, |bencher| {
                    bencher.iter(|| {
                        let items = decode.plan(&batch, &ids).map(|plan| plan.items());
                        gpu.queue().submit([]);
                        items
                    });
                });
            }
        }
    }
    group.finish();
    Ok(())
}

/// What recording costs: a decode step's 172 dispatches, and the submit. The no-op device executes none of them.
fn recorded(criterion: &mut Criterion) -> Result<()> {
    let gpu = noop()?;
    let (x, y) = (Tensor::zeros(&gpu, &[1, 256], DType::F32)?, Tensor::zeros(&gpu, &[1, 128], DType::F32)?);
    let swiglu = SwiGlu::new(&gpu)?;
    let mut group = criterion.benchmark_group("record");
    for dispatches in [1, 172] {
        group.throughput(Throughput::Elements(dispatches));
        group.bench_function(BenchmarkId::new("dispatches and submit", dispatches), |bencher| {
            bencher.iter(|| {
                (0..dispatches).try_for_each(|_| swiglu.run(&x, &y))?;
                gpu.submit()
            });
        });
    }
    group.bench_function("dispatches and download/172", |bencher| {
        bencher.iter(|| {
            (0..172).try_for_each(|_| swiglu.run(&x, &y))?;
            pollster::block_on(gpu.download::<f32>(&y))
        });
    });
    group.finish();
    Ok(())
}

fn noop() -> Result<Gpu> {
    let (device, queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
    Gpu::from_wgpu(None, device, queue)
}

/// Reserve one token of each sequence, plan, give it back (which costs what a commit does, and leaves lengths as they
/// are). The submit is the one that a step has anyway.
fn step(gpu: &Gpu, decode: &Decode, table: &mut SeqTable, ids: &[SeqId]) -> Result<usize> {
    table.reserve(ids, 1)?;
    let items = decode.plan(table, ids)?.items();
    table.commit(ids, 0)?;
    gpu.queue().submit([]);
    Ok(items)
}

/// Lengths in the middle of a page, and on a page's end, where every sequence takes a page.
fn steps(criterion: &mut Criterion) -> Result<()> {
    let gpu = noop()?;
    let heads = HeadLayout::gla(Gla { q_heads: 16, latent_heads: 2, latent_dim: 256, rope_dim: 64 })?;
    let decode = Decode::new(&gpu, heads, DType::F16)?;
    let mut group = criterion.benchmark_group("host step");
    for sequences in [1, 16, 64, 256] {
        for length in [64, 1000, 1024, 16_020, 16_384] {
            let (mut table, ids) = table(sequences, length)?;
            group.throughput(Throughput::Elements(sequences as u64));
            step(&gpu, &decode, &mut table, &ids)?;
            group.bench_function(BenchmarkId::new("reserve plan commit", format!("{sequences}x{length}")), |bencher| {
                bencher.iter(|| step(&gpu, &decode, &mut table, &ids));
            });
            table.reserve(&ids, 1)?;
            group.bench_function(BenchmarkId::new("batch", format!("{sequences}x{length}")), |bencher| {
                bencher.iter(|| table.batch(&ids));
            });
        }
    }
    group.finish();
    Ok(())
}

/// A step's host half with a cache that has memory: what [`steps`] does, and the step's slots and angles, which are uploaded.
fn cache_steps(criterion: &mut Criterion) -> Result<()> {
    let gpu = noop()?;
    let heads = HeadLayout::gqa(Gqa { q_heads: 1, kv_heads: 1, head_dim: 8 })?;
    let decode = Decode::new(&gpu, heads, DType::F16)?;
    let mut group = criterion.benchmark_group("cache step");
    for (sequences, length) in [(1, 1000), (64, 1000), (64, 16_020usize)] {
        let pages = Pages { count: sequences * (length + 1).div_ceil(PAGE_SIZE), size: PAGE_SIZE, layers: 1 };
        let rope = Some(Rope::new(heads.rotated_dim(), 1e4, RopePairs::Half)?);
        let options = CacheOptions { rope, ..CacheOptions::new(DType::F16, pages) };
        let mut cache = PagedKvCache::new(&gpu, heads, options)?;
        let ids: Vec<SeqId> = (0..sequences).map(|_| cache.insert()).collect();
        cache.reserve(&ids, length)?;
        cache.commit(&ids, length)?;
        group.throughput(Throughput::Elements(sequences as u64));
        let id = BenchmarkId::new("reserve plan cos_sin commit", format!("{sequences}x{length}"));
        group.bench_function(id, |bencher| {
            bencher.iter(|| {
                cache.reserve(&ids, 1)?;
                let items = decode.plan(&cache, &ids)?.items();
                cache.cos_sin(&ids)?;
                cache.commit(&ids, 0)?;
                gpu.queue().submit([]);
                Ok::<_, latten::Error>(items)
            });
        });
    }
    group.finish();
    Ok(())
}

/// Sequences that share pages: a fork of 32,768 tokens (and its removal), the first write to it, a prompt of as many tokens
/// found in the cache, a decode step of 256 sequences whose tokens are known.
fn sharing(criterion: &mut Criterion) -> Result<()> {
    let mut group = criterion.benchmark_group("sharing");
    let tokens: Vec<u32> = (0..32_768 + 10).collect();
    let mut table = SeqTable::new(1 << 16, PAGE_SIZE)?;
    let root = table.match_prefix(&[], 0);
    table.reserve(&[root], tokens.len())?;
    table.commit_tokens(&[(root, &tokens)])?;
    group.bench_function("fork 32k and remove", |bencher| {
        bencher.iter(|| table.fork(root).and_then(|fork| table.remove(fork)));
    });
    group.bench_function("fork 32k, reserve 1, remove", |bencher| {
        bencher.iter(|| {
            let fork = table.fork(root)?;
            let copies = table.reserve(&[fork], 1)?.len();
            table.remove(fork).map(|()| copies)
        });
    });
    group.bench_function("match_prefix 32k and remove", |bencher| {
        bencher.iter(|| {
            let found = table.match_prefix(black_box(&tokens), 0);
            table.remove(found)
        });
    });
    for length in [1024, 16384] {
        let mut table = SeqTable::new(1 << 17, PAGE_SIZE)?;
        let ids: Vec<SeqId> = (0..256).map(|_| table.match_prefix(&[], 0)).collect();
        for (i, id) in ids.iter().enumerate() {
            table.reserve(&[*id], length)?;
            let tokens: Vec<u32> = (0..length as u32).map(|token| token + i as u32).collect();
            table.commit_tokens(&[(*id, &tokens)])?;
        }
        group.bench_function(
            BenchmarkId::new("reserve, commit_tokens, truncate", format!("256x{length}")),
            |bencher| {
                let accepted: Vec<(SeqId, &[u32])> = ids.iter().map(|id| (*id, &[7][..])).collect();
                bencher.iter(|| {
                    table.reserve(&ids, 1)?;
                    table.commit_tokens(&accepted)?;
                    ids.iter().try_for_each(|id| table.truncate(*id, length))
                });
            },
        );
    }
    group.finish();
    Ok(())
}

fn tables(criterion: &mut Criterion) -> Result<()> {
    let mut group = criterion.benchmark_group("cos_sin_table");
    let rope = Rope::new(64, 1e4, RopePairs::Half)?;
    for tokens in [1, 64, 1024] {
        let positions: Vec<u32> = (0..tokens).map(|i| 1000 + 7 * i).collect();
        group.throughput(Throughput::Elements(u64::from(tokens)));
        group.bench_function(BenchmarkId::from_parameter(tokens), |bencher| {
            bencher.iter(|| cos_sin_table(black_box(&rope.inv_freq), black_box(&positions)));
        });
    }
    group.finish();
    Ok(())
}

fn all(criterion: &mut Criterion) {
    let groups = [recorded, steps, cache_steps, plans, sharing, tables];
    if let Err(error) = groups.into_iter().try_for_each(|group| group(criterion)) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn config() -> Criterion {
    use std::time::Duration;
    Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .without_plots()
}

criterion_group! { name = benches; config = config(); targets = all }
criterion_main!(benches);
