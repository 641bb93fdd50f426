//! Times the linear kernels on this adapter against two ceilings measured in the same run.
//!
//!     cargo run --release --example linear_table -- [--adapter NAME] [--size N] [--json FILE] [--sweep ROWS]
//!
//! Per line: rows of input, dtype of an N x N matrix (default 4096; software adapters 1024), median GPU microseconds of one
//! product among dependent ones in a pass, and of one alone in a pass; GB/s of the bytes that must be read and their
//! percent of a streaming read; TFLOP/s and their percent of plain f32 multiply-adds; the largest error of sampled
//! outputs against the f64 reference. The products of a pass go round copies of the matrix that together exceed a
//! last-level cache. Clocks are warmed by half a second of the same work. `--sweep` tries the numbers of the kernel for
//! few rows instead, on f16 and int8, and prints the best twenty of each.

#[path = "../kernel_table/ceilings.rs"]
mod ceilings;
#[path = "../kernel_table/matmul.rs"]
mod matmul;
#[path = "../kernel_table/timing.rs"]
#[allow(dead_code)] // what only kernel_table reads
mod timing;

use ceilings::Ceilings;
use latten::nn::{quantise, Linear, LinearTuning, Span, Weight};
use latten::{reference, wgpu, DType, ErrorKind, Gpu, GpuOptions, Result, Tensor, Tier};
use std::time::Duration;
use timing::{random, times_us, Block, WARM};

/// More than the last-level cache of any GPU.
const CACHE_BYTES: usize = 160 << 20;
const LARGEST_ERROR: f64 = 1e-4;

struct Options {
    adapter: Option<String>,
    size: Option<usize>,
    json: Option<String>,
    sweep: Option<usize>,
}

fn main() {
    let options = match arguments() {
        Ok(options) => options,
        Err(message) => {
            eprintln!("{message}\nusage: linear_table [--adapter NAME] [--size N] [--json FILE] [--sweep ROWS]");
            std::process::exit(2);
        }
    };
    if let Err(error) = pollster::block_on(run(options)) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn arguments() -> Result<Options, String> {
    let mut options = Options { adapter: None, size: None, json: None, sweep: None };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
        let number = || match value.parse::<usize>() {
            Ok(n) if (1..=1 << 15).contains(&n) => Ok(Some(n)),
            _ => Err(format!("{name} {value}: not a number from 1 to 32768")),
        };
        match name.as_str() {
            "--adapter" => options.adapter = Some(value),
            "--size" => options.size = number()?,
            "--sweep" => options.sweep = number()?,
            "--json" => options.json = Some(value),
            _ => return Err(format!("unknown argument {name}")),
        }
    }
    Ok(options)
}

async fn run(options: Options) -> Result<()> {
    let gpu = Gpu::with_options(GpuOptions { adapter: options.adapter, ..Default::default() }).await?;
    let software = gpu.capabilities().is_software();
    let ceilings = ceilings::measure(&gpu, &Block::new(&gpu, DType::F16)).await?;
    println!("adapter: {}, tier {:?}", gpu.capabilities().adapter, gpu.capabilities().tier);
    println!("ceilings: streaming read {:.0} GB/s, f32 fma {:.2} TFLOP/s\n", ceilings.read_gbps, ceilings.fma_tflops);
    let size = options.size.unwrap_or(if software { 1024 } else { 4096 });
    let mut lines = Vec::new();
    for dtype in [DType::F16, DType::I8] {
        let bench = Bench::new(&gpu, size, dtype)?;
        if let Some(rows) = options.sweep {
            bench.sweep(rows, ceilings).await?;
            continue;
        }
        if dtype == DType::F16 {
            println!(
                "{:<22} {:>10} {:>10} {:>8} {:>6} {:>9} {:>6} {:>8}  numbers",
                "product", "us", "us alone", "GB/s", "%read", "TFLOP/s", "%fma", "max err"
            );
        }
        for rows in [1, 2, 4, 8, 16, if software { 64 } else { 512 }] {
            lines.push(bench.line(rows, ceilings).await?);
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
        std::fs::write(&path, text).map_err(|e| ErrorKind::Io { path, message: e.to_string() })?;
    }
    Ok(())
}

/// One matrix in several copies, which differ so that no cache can help.
struct Bench<'a> {
    gpu: &'a Gpu,
    size: usize,
    dtype: DType,
    copies: Vec<Linear>,
    /// Of the first copy, as the device holds them: (size, size).
    values: Vec<f32>,
}

struct Timed {
    us: f64,
    alone_us: f64,
}

impl<'a> Bench<'a> {
    fn new(gpu: &'a Gpu, size: usize, dtype: DType) -> Result<Self> {
        let values = random(size * size, 5);
        let mut copies = Vec::new();
        let count = CACHE_BYTES.div_ceil(size * size * dtype.size_bytes()).clamp(2, 16);
        for i in 0..count {
            let mut copy = values.clone();
            copy.rotate_left(7 * i * size % values.len());
            copies.push(Linear::new(gpu, &Weight::new(gpu, [1, size, size], &copy, dtype)?, None)?);
        }
        let values = match dtype {
            DType::I8 => {
                let (integers, scales) = quantise(&values, size)?;
                let rows = integers.chunks_exact(size).zip(scales);
                rows.flat_map(|(row, s)| row.iter().map(move |q| f32::from(*q) * s)).collect()
            }
            _ => values.iter().map(|v| half::f16::from_f32(*v).to_f32()).collect(),
        };
        Ok(Bench { gpu, size, dtype, copies, values })
    }

    async fn line(&self, rows: usize, c: Ceilings) -> Result<String> {
        let error = self.error(&self.copies[0], rows).await?;
        let timed = self.time(&self.copies, rows, WARM).await?;
        let (bytes, flops) = self.bytes_and_flops(rows);
        let (gbps, tflops) = (bytes / timed.us / 1e3, flops / timed.us / 1e6);
        let (read, fma) = (100.0 * gbps / c.read_gbps, 100.0 * tflops / c.fma_tflops);
        let LinearTuning { in_lanes, outs, steps, subgroups, .. } = self.copies[0].tuning(rows);
        let name = format!("{rows} x {0} x {0} {1}", self.size, self.dtype);
        println!(
            "{name:<22} {:>10.2} {:>10.2} {gbps:>8.1} {read:>6.1} {tflops:>9.3} {fma:>6.1} {error:>8.0e}  \
             {in_lanes} lanes in, {outs} outs, {steps} steps, subgroups {subgroups}",
            timed.us, timed.alone_us
        );
        Ok(format!(
            "{{\"rows\":{rows},\"size\":{},\"dtype\":\"{}\",\"us\":{:.3},\"us_alone\":{:.3},\"gbps\":{gbps:.1},\
             \"read_percent\":{read:.1},\"tflops\":{tflops:.3},\"fma_percent\":{fma:.1},\"max_error\":{error:.2e},\
             \"in_lanes\":{in_lanes},\"outs\":{outs},\"steps\":{steps},\"subgroups\":{subgroups},\"cache\":\"cold\"}}",
            self.size, self.dtype, timed.us, timed.alone_us
        ))
    }

    /// Weights, input and output once, and 2 FLOP per weight and row.
    fn bytes_and_flops(&self, rows: usize) -> (f64, f64) {
        let bytes = self.copies[0].weight().size_bytes() + 2 * 4 * rows * self.size;
        (bytes as f64, 2.0 * (rows * self.size * self.size) as f64)
    }

    /// Median microseconds: of a product among dependent ones (all write one output), and of one alone.
    async fn time(&self, linears: &[Linear], rows: usize, warm: Duration) -> Result<Timed> {
        let input = Tensor::from_f32(self.gpu, &[rows, self.size], &random(rows * self.size, 9), DType::F32)?;
        let output = Tensor::zeros(self.gpu, &[rows, self.size], DType::F32)?;
        let (x, y) = (Span::of(&input), Span::of(&output));
        let each = if rows > 16 { 1 } else { 2 * linears.len() };
        let mut next = 0;
        let mut one = |pass: &mut wgpu::ComputePass<'_>| {
            next += 1;
            linears[next % linears.len()].encode(pass, rows, x, y, false)
        };
        let median = |times: Vec<f64>| times[times.len() / 2];
        let together = times_us(self.gpu, warm, |pass, _| (0..each).try_for_each(|_| one(pass))).await?;
        let us = median(together) / each as f64;
        let alone_us = median(times_us(self.gpu, Duration::ZERO, |pass, _| one(pass)).await?);
        Ok(Timed { us, alone_us })
    }

    /// The largest error of 16 sampled outputs of each row, which must be small.
    async fn error(&self, linear: &Linear, rows: usize) -> Result<f64> {
        let x_values = random(rows * self.size, 9);
        let input = Tensor::from_f32(self.gpu, &[rows, self.size], &x_values, DType::F32)?;
        let output = Tensor::zeros(self.gpu, &[rows, self.size], DType::F32)?;
        linear.run(rows, Span::of(&input), Span::of(&output), false)?;
        let got = self.gpu.download(&output).await?;
        let f64s = |values: &[f32]| values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
        let x_values = f64s(&x_values);
        let mut worst = 0.0f64;
        for sample in 0..16 {
            let out = (sample * self.size / 16 + sample) % self.size;
            let weight = f64s(&self.values[out * self.size..(out + 1) * self.size]);
            let want = reference::linear(&x_values, &weight, None, self.size)?;
            for (row, want) in want.iter().enumerate() {
                worst = worst.max((f64::from(got[row * self.size + out]) - want).abs());
            }
        }
        if worst > LARGEST_ERROR * (self.size as f64).sqrt() {
            let context = format!("{rows} rows of {} {}", self.size, self.dtype);
            return Err(ErrorKind::Gpu { context, message: format!("wrong result, off by {worst:e}") }.into());
        }
        Ok(worst)
    }

    /// Every number of the kernel for few rows that might serve, the best twenty first.
    async fn sweep(&self, rows: usize, c: Ceilings) -> Result<()> {
        let mut all = Vec::new();
        let max_rows = rows.next_power_of_two().min(16);
        let tiers = if self.gpu.capabilities().tier >= Tier::Subgroup { &[true, false][..] } else { &[false] };
        for &subgroups in tiers {
            for in_lanes in [32, 64, 128, 256] {
                for outs in [1, 2, 4, 8] {
                    for steps in [1, 2, 4, 8] {
                        let tuning = LinearTuning { in_lanes, outs, steps, max_rows, subgroups };
                        // More words than a lane has, or than registers hold.
                        if outs * steps > 32 || (rows > 4 && steps > 1) {
                            continue;
                        }
                        let tuned = self.copies.iter().map(|l| l.clone().with_tuning(tuning));
                        let Ok(linears) = tuned.collect::<Result<Vec<_>>>() else { continue };
                        self.error(&linears[0], rows).await?;
                        let timed = self.time(&linears, rows, Duration::from_millis(60)).await?;
                        all.push((timed, tuning));
                    }
                }
            }
        }
        all.sort_by(|a, b| a.0.us.total_cmp(&b.0.us));
        println!("{rows} x {0} x {0} {1}: the best of {2}", self.size, self.dtype, all.len());
        let (bytes, _) = self.bytes_and_flops(rows);
        for (timed, t) in all.iter().take(20) {
            println!(
                "{:>9.2} us {:>9.2} alone {:>6.1}% of read: {:>3} lanes in, {} outs, {} steps, subgroups {}",
                timed.us,
                timed.alone_us,
                100.0 * bytes / timed.us / 1e3 / c.read_gbps,
                t.in_lanes,
                t.outs,
                t.steps,
                t.subgroups
            );
        }
        Ok(())
    }
}
