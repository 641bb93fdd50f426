//! Times the decode kernels on this adapter against two ceilings measured in the same run.
//!
//!     cargo run --release --example kernel_table -- [--adapter NAME] [--filter TEXT,TEXT..] [--json FILE]
//!
//! Per line: shape, median microseconds of GPU timestamps, GB/s of the bytes that must be read (each cached element
//! once, plus queries and outputs) and their percent of a streaming read, TFLOP/s and their percent of plain f32
//! multiply-adds, and which of the two bounds the shape. Each result is checked against the f64 reference before it is
//! timed. Caches are larger than any last-level cache, so every run is cold; clocks are warmed by 0.5 s of the same work.

mod ceilings;
mod shapes;

use latten::reference::{self, DecodeInputs};
use latten::{
    wgpu, DType, Decode, DecodeOutput, ErrorKind, Gpu, GpuOptions, KvSource, PagedKvCache, Pages, Result, Tensor,
};
use shapes::Shape;
use std::io::Write as _;
use std::time::{Duration, Instant};

struct Options {
    adapter: Option<String>,
    filter: String,
    json: Option<String>,
}

fn main() {
    let options = match arguments() {
        Ok(options) => options,
        Err(message) => {
            eprintln!("{message}\nusage: kernel_table [--adapter NAME] [--filter TEXT] [--json FILE]");
            std::process::exit(2);
        }
    };
    if let Err(error) = pollster::block_on(run(options)) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn arguments() -> Result<Options, String> {
    let mut options = Options { adapter: None, filter: String::new(), json: None };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--adapter" => options.adapter = Some(value),
            "--filter" => options.filter = value,
            "--json" => options.json = Some(value),
            _ => return Err(format!("unknown argument {name}")),
        }
    }
    Ok(options)
}

async fn run(options: Options) -> Result<()> {
    let gpu = Gpu::with_options(GpuOptions { adapter: options.adapter, ..Default::default() }).await?;
    let software = gpu.capabilities().is_software();
    println!("adapter: {}", gpu.capabilities().adapter);
    let ceilings = ceilings::measure(&gpu, software).await?;
    println!("ceilings: streaming read {:.0} GB/s, f32 fma {:.2} TFLOP/s\n", ceilings.read_gbps, ceilings.fma_tflops);
    println!(
        "{:<34} {:>5} {:>10} {:>8} {:>6} {:>9} {:>6}  {:<6} {:>7} {:>9}",
        "shape", "items", "us", "GB/s", "%read", "TFLOP/s", "%fma", "bound", "max err", "us spread"
    );
    let mut lines = Vec::new();
    for shape in shapes::all(software).iter().filter(|s| wanted(&s.name, &options.filter)) {
        match measure(&gpu, shape).await {
            Ok(m) => {
                print_line(shape, &m, ceilings);
                lines.push(json_line(shape, &m, ceilings));
            }
            Err(error) => println!("{:<34} {error}", shape.name),
        }
    }
    if let Some(path) = options.json {
        let head = format!(
            "{{\"adapter\":{:?},\"read_gbps\":{:.1},\"fma_tflops\":{:.3},\"rows\":[\n",
            gpu.capabilities().adapter,
            ceilings.read_gbps,
            ceilings.fma_tflops
        );
        let text = head + &lines.join(",\n") + "\n]}\n";
        let written = std::fs::File::create(&path).and_then(|mut f| f.write_all(text.as_bytes()));
        written.map_err(|e| ErrorKind::Io { path, message: e.to_string() })?;
    }
    Ok(())
}

/// Whether a name contains one of the comma-separated texts; a text that ends in `$` must end it.
fn wanted(name: &str, filter: &str) -> bool {
    filter.split(',').any(|text| match text.strip_suffix('$') {
        Some(text) => name.ends_with(text),
        None => name.contains(text),
    })
}

struct Measured {
    us: f64,
    spread_us: f64,
    items: usize,
    max_error: f64,
}

async fn measure(gpu: &Gpu, shape: &Shape) -> Result<Measured> {
    let heads = shape.heads()?;
    let pages_each: Vec<usize> = shape.lengths.iter().map(|l| l.div_ceil(shape.page_size)).collect();
    let pages = Pages { count: pages_each.iter().sum(), size: shape.page_size, layers: 1 };
    let mut cache = PagedKvCache::new(gpu, heads, DType::F16, pages)?;
    let view = cache.layer(0)?;
    let block = fill(gpu, view.wgpu_buffer(), view.wgpu_buffer().size());
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
    let decode = Decode::new(gpu, heads, DType::F16)?;
    let tokens = ids.len() * shape.q_len;
    let q_values = random(tokens * heads.q_heads() * heads.q_dim(), 99);
    let q = Tensor::from_f32(gpu, &[tokens, heads.q_heads(), heads.q_dim()], &q_values, DType::F32)?;
    let plan = decode.plan(&cache, &ids)?;
    let layer = cache.layer(0)?;
    let scale = (heads.q_dim() as f32).powf(-0.5);
    let output = decode.run(&plan, &layer, &q, scale)?;
    let max_error = check(gpu, &cache, &ids, (&q_values, scale), &output, &block, shape).await?;
    let times = times_us(gpu, gpu.capabilities().is_software(), |pass| {
        let args = latten::attention::DecodeArgs {
            plan: &plan,
            layer: &layer,
            q: &q,
            softmax_scale: scale,
            sinks: None,
            output: &output,
        };
        decode.encode(pass, args)
    })
    .await?;
    let spread_us = times[times.len() * 9 / 10] - times[times.len() / 10];
    Ok(Measured { us: times[times.len() / 2], spread_us, items: plan.items() * heads.groups(), max_error })
}

/// Compares first and last sequence, first and last head, with the reference; the largest absolute error.
async fn check(
    gpu: &Gpu,
    cache: &PagedKvCache,
    ids: &[latten::SeqId],
    (q, scale): (&[f32], f32),
    output: &DecodeOutput,
    block: &[half::f16],
    shape: &Shape,
) -> Result<f64> {
    let out = gpu.download(&output.out).await?;
    let (heads, batch) = (*cache.heads(), cache.batch(ids)?);
    let layout = latten::attention::StateLayout::new(&heads, DType::F16);
    let (state, rope) = (8 * layout.state_words, 8 * layout.rope_words);
    let mut worst = 0.0f64;
    for (b, head) in [(0, 0), (ids.len() - 1, heads.q_heads() - 1)] {
        let (seq, group) = (batch.sequences[b], head / heads.heads_per_group());
        let (mut states, mut keys) = (Vec::new(), Vec::new());
        for t in 0..seq.kv_len as usize {
            let page = batch.page_table[seq.page_table_first as usize + t / shape.page_size] as usize;
            let page_first = page * shape.page_size * (heads.groups() * state + rope);
            let at = page_first + (group * shape.page_size + t % shape.page_size) * state;
            let value = |i: usize| block[i % block.len()].to_f64();
            // These shapes need no padding: a state's elements are consecutive.
            states.extend((0..heads.state_dim()).map(|i| value(at + i)));
            let at = page_first + heads.groups() * shape.page_size * state + t % shape.page_size * rope;
            keys.extend((0..heads.rope_dim()).map(|i| value(at + i)));
        }
        // The last query token of the sequence, this head alone.
        let token = (seq.q_token_first + seq.q_len - 1) as usize;
        let row = token * heads.q_heads() + head;
        let one = one_head(&heads)?;
        let q: Vec<f64> = q[row * heads.q_dim()..(row + 1) * heads.q_dim()].iter().map(|&x| x.into()).collect();
        let inputs =
            DecodeInputs { q: &q, states: &states, rope_keys: &keys, softmax_scale: scale.into(), causal: true };
        let want = reference::decode(&one, &inputs)?;
        for (g, w) in out[row * heads.v_dim()..].iter().zip(&want.out) {
            worst = worst.max((f64::from(*g) - w).abs());
        }
    }
    if worst > 1e-4 {
        return Err(
            ErrorKind::Gpu { context: shape.name.clone(), message: format!("wrong result, off by {worst:e}") }.into()
        );
    }
    Ok(worst)
}

/// The layout of one head of one group.
fn one_head(heads: &latten::HeadLayout) -> Result<latten::HeadLayout> {
    if heads.v_offset() > 0 {
        latten::HeadLayout::mha(1, heads.v_dim())
    } else if heads.nope_dim() == heads.state_dim() {
        latten::HeadLayout::mla(latten::Mla { q_heads: 1, latent_dim: heads.v_dim(), rope_dim: heads.rope_dim() })
    } else {
        let gta = latten::Gta { q_heads: 1, kv_heads: 1, head_dim: heads.v_dim(), rope_dim: heads.rope_dim() };
        latten::HeadLayout::gta(gta)
    }
}

/// About normal values.
fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..n).map(|_| next() + next() + next() + next() - 2.0).collect()
}

/// Fills a buffer with a repeated block of random f16 values, which it returns.
fn fill(gpu: &Gpu, buffer: &wgpu::Buffer, bytes: u64) -> Vec<half::f16> {
    // Not a power of two, so that no two pages are alike.
    let block: Vec<half::f16> = random(3_000_000 * 4, 7).into_iter().map(half::f16::from_f32).collect();
    let raw: &[u8] = bytemuck::cast_slice(&block);
    let mut at = 0;
    while at < bytes {
        let n = (bytes - at).min(raw.len() as u64);
        gpu.queue().write_buffer(buffer, at, &raw[..n as usize]);
        gpu.queue().submit([]);
        at += n;
    }
    block
}

async fn median_us(
    gpu: &Gpu,
    software: bool,
    work: impl FnMut(&mut wgpu::ComputePass<'_>) -> Result<()>,
) -> Result<f64> {
    let times = times_us(gpu, software, work).await?;
    Ok(times[times.len() / 2])
}

/// Sorted microseconds of passes that each do `work`, after half a second of it.
async fn times_us(
    gpu: &Gpu,
    software: bool,
    mut work: impl FnMut(&mut wgpu::ComputePass<'_>) -> Result<()>,
) -> Result<Vec<f64>> {
    let (passes, warm) = if software { (3, Duration::ZERO) } else { (20, Duration::from_millis(500)) };
    let start = Instant::now();
    while start.elapsed() < warm {
        gpu.time_passes(passes, |pass, _| work(pass)).await?;
    }
    let mut times = gpu.time_passes(passes, |pass, _| work(pass)).await?;
    times.sort_by(f64::total_cmp);
    Ok(times)
}

struct Rates {
    gbps: f64,
    tflops: f64,
    read_percent: f64,
    fma_percent: f64,
    bound: &'static str,
}

fn rates(shape: &Shape, m: &Measured, c: Ceilings) -> Rates {
    let (bytes, flops) = shape.bytes_and_flops();
    let (gbps, tflops) = (bytes / m.us / 1e3, flops / m.us / 1e6);
    let bound = if bytes / c.read_gbps > flops / c.fma_tflops / 1e3 { "bytes" } else { "flops" };
    Rates { gbps, tflops, read_percent: 100.0 * gbps / c.read_gbps, fma_percent: 100.0 * tflops / c.fma_tflops, bound }
}

use ceilings::Ceilings;

fn print_line(shape: &Shape, m: &Measured, c: Ceilings) {
    let r = rates(shape, m, c);
    println!(
        "{:<34} {:>5} {:>10.1} {:>8.1} {:>6.1} {:>9.3} {:>6.1}  {:<6} {:>7.0e} {:>9.1}",
        shape.name, m.items, m.us, r.gbps, r.read_percent, r.tflops, r.fma_percent, r.bound, m.max_error, m.spread_us
    );
}

fn json_line(shape: &Shape, m: &Measured, c: Ceilings) -> String {
    let r = rates(shape, m, c);
    format!(
        "{{\"shape\":{:?},\"workgroups\":{},\"us\":{:.2},\"spread_us\":{:.2},\"gbps\":{:.1},\"read_percent\":{:.1},\
         \"tflops\":{:.3},\"fma_percent\":{:.1},\"bound\":\"{}\",\"max_error\":{:.2e},\"cache\":\"cold\"}}",
        shape.name, m.items, m.us, m.spread_us, r.gbps, r.read_percent, r.tflops, r.fma_percent, r.bound, m.max_error
    )
}
