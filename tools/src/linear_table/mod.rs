//! Times the linear kernels on this adapter against two ceilings measured in the same run.
//!
//!     cargo run --release -p latten-tools -- linear_table --help
//!
//! Per line: rows of input, inputs and outputs of the matrix (default 4096; software adapters 1024), type of the weights, median GPU
//! microseconds of one product among dependent ones in a pass, and of one alone in a pass; GB/s of the bytes that must be
//! read and their percent of a streaming read; TFLOP/s and their percent of plain f32 multiply-adds and of cooperative
//! matrices; the largest error of sampled outputs against the f64 reference. The products of a pass go round copies of
//! the matrix that together exceed a last-level cache. Clocks are warmed by half a second of the same work. `--tier` is
//! that of [`GpuOptions::tier`]; cooperative matrices must be asked for. `--sweep` tries the numbers of the kernel for so
//! many rows instead, and prints the best twenty of each type. `--experts` times layers of so many experts, of
//! which a row goes to TOP, instead: rows of IN through SwiGLUs of OUT, one by one and listed by expert.

mod experts;
mod weights;

pub(crate) use weights::random_blocks;

use crate::common::arguments::{count, TierName};
use crate::common::facts::Facts;
use crate::common::{ceilings, timing};
use ceilings::Ceilings;
use experts::Layer;
use latten::nn::{ExpertShape, Linear, LinearArgs, LinearTuning, MatrixTile, Span, WeightType};
use latten::{reference, wgpu, DType, ErrorKind, Gpu, GpuOptions, Result, Tensor, Tier};
use std::time::Duration;
use timing::{random, times_us, Block, WARM};
use weights::weight;

/// More than the last-level cache of any GPU.
const CACHE_BYTES: usize = 160 << 20;
/// Of a product's root mean square, in f32; cooperative matrices round the input to f16.
const LARGEST_ERROR: f64 = 1e-4;
const LARGEST_HALF_ERROR: f64 = 1e-3;
/// Of dot products of bytes: 1/254 of the largest of eight or sixteen, over thousands.
const LARGEST_BYTE_ERROR: f64 = 1e-2;

/// Times of the linear kernels on this adapter, against its ceilings of the same run
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Take the GPU whose description contains this
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    /// Of the kernels; cooperative matrices must be asked for. Without it the best of the others
    #[arg(long)]
    tier: Option<TierName>,
    /// Inputs and outputs of the matrix; without it 4096, on software adapters 1024, and 2048x1408 with --experts
    #[arg(long, value_name = "IN[xOUT]", value_parser = size)]
    size: Option<(usize, usize)>,
    /// Rows of input
    #[arg(long, value_delimiter = ',', value_name = "N,N,..", value_parser = number)]
    rows: Vec<usize>,
    /// Types of the weights, as f16, i8, q4_0, q4_k; without it f16 and i8
    #[arg(long, value_delimiter = ',', value_name = "TYPE,TYPE,..")]
    weights: Vec<WeightType>,
    /// Write what was measured
    #[arg(long, value_name = "FILE", conflicts_with_all = ["sweep", "experts"])]
    json: Option<String>,
    /// Try the numbers of the kernel for so many rows instead, and print the best twenty
    #[arg(long, value_name = "ROWS", value_parser = number)]
    sweep: Option<usize>,
    /// Of a sweep, only the numbers whose text contains this
    #[arg(long, value_name = "TEXT", requires = "sweep", default_value = "")]
    only: String,
    /// Time layers of N experts instead, of which a row goes to TOP: rows of IN through SwiGLUs of OUT
    #[arg(long, value_name = "N,TOP", value_parser = experts)]
    experts: Option<(usize, usize)>,
    #[command(flatten)]
    fused: Fused,
}

fn number(text: &str) -> Result<usize, String> {
    count(text).ok().filter(|n| *n <= 1 << 15).ok_or_else(|| format!("{text:?} is not a number from 1 to 32768"))
}

fn size(text: &str) -> Result<(usize, usize), String> {
    let (inputs, outputs) = text.split_once('x').unwrap_or((text, text));
    Ok((number(inputs)?, number(outputs)?))
}

fn experts(text: &str) -> Result<(usize, usize), String> {
    let (experts, top) = text.split_once(',').ok_or("not N,TOP")?;
    Ok((number(experts)?, number(top)?))
}

pub(crate) fn main(args: Args) -> Result<(), String> {
    pollster::block_on(run(args)).map_err(|e| e.to_string())
}

async fn run(args: Args) -> Result<()> {
    let gpu =
        Gpu::with_options(GpuOptions { adapter: args.adapter, tier: args.tier.map(Tier::from), ..Default::default() })
            .await?;
    let software = gpu.capabilities().is_software();
    if let Some((experts, top)) = args.experts {
        let (dim, width) = args.size.unwrap_or((2048, 1408));
        let rows = or(args.rows, &[1, 4, 8, 16, 32, 64, 128, 256]);
        println!("adapter: {}", gpu.capabilities().adapter);
        for kind in or(args.weights, &[DType::F16.into(), DType::I8.into()]) {
            print!("{kind}, ");
            Layer::new(&gpu, ExpertShape { experts, top, dim, width }, kind)?.table(&rows).await?;
        }
        return Ok(());
    }
    let ceilings = ceilings::measure(&gpu, &Block::new(&gpu, DType::F16)).await?;
    println!("adapter: {}, tier {:?}", gpu.capabilities().adapter, gpu.capabilities().tier);
    let matmul = ceilings.matmul_tflops.map_or("none".into(), |t| format!("{t:.0} TFLOP/s"));
    println!(
        "ceilings: streaming read {:.0} GB/s, f32 fma {:.2} TFLOP/s, cooperative matrices {matmul}\n",
        ceilings.read_gbps, ceilings.fma_tflops
    );
    let size = args.size.unwrap_or(if software { (1024, 1024) } else { (4096, 4096) });
    let rows_of_lines = or(args.rows, &[1, 2, 4, 8, 16, if software { 64 } else { 512 }]);
    let mut lines = Vec::new();
    for kind in or(args.weights, &[DType::F16.into(), DType::I8.into()]) {
        let bench = Bench::new(&gpu, size, kind, args.fused)?;
        if let Some(rows) = args.sweep {
            bench.sweep((rows, &args.only), ceilings).await?;
            continue;
        }
        if lines.is_empty() {
            println!(
                "{:<24} {:>10} {:>10} {:>8} {:>6} {:>9} {:>6} {:>7} {:>8}  numbers",
                "rows x in x out", "us", "us alone", "GB/s", "%read", "TFLOP/s", "%fma", "%matmul", "max err"
            );
        }
        for &rows in &rows_of_lines {
            lines.push(bench.line(rows, ceilings).await?);
        }
    }
    if let Some(path) = args.json {
        let text = table_text(&gpu.capabilities().adapter, &Facts::of(&gpu), &ceilings, &lines);
        std::fs::write(&path, text).map_err(|e| ErrorKind::Io { path, message: e.to_string() })?;
    }
    Ok(())
}

/// The file of `--json`: one row to a line.
pub(crate) fn table_text(adapter: &str, facts: &Facts, ceilings: &Ceilings, lines: &[String]) -> String {
    let Facts { commit, date, device, driver, clocks } = facts;
    let facts = serde_json::json!({
        "adapter": adapter,
        "commit": commit,
        "date": date,
        "device": device,
        "driver": driver,
        "clocks": clocks,
    })
    .to_string();
    let Ceilings { read_gbps, fma_tflops, .. } = ceilings;
    let head = facts.trim_end_matches('}');
    let rows = lines.join(",\n");
    format!("{head},\"read_gbps\":{read_gbps:.1},\"fma_tflops\":{fma_tflops:.3},\"rows\":[\n{rows}\n]}}\n")
}

/// What was asked for, or else this.
fn or<T: Clone>(asked: Vec<T>, usual: &[T]) -> Vec<T> {
    if asked.is_empty() {
        usual.to_vec()
    } else {
        asked
    }
}

/// What is fused with the products.
#[derive(Debug, Clone, Copy, clap::Args)]
struct Fused {
    /// Dot products of bytes, where the weights are I8 or in blocks
    #[arg(long)]
    integer_dot: bool,
    /// A norm before the product
    #[arg(long)]
    norm: bool,
    /// SwiGLU behind it: half as many outputs
    #[arg(long)]
    swiglu: bool,
}

const EPS: f32 = 1e-5;

fn gains(inputs: usize) -> Vec<f32> {
    random(inputs, 31).iter().map(|gain| 1.0 + 0.5 * gain).collect()
}

impl Fused {
    fn with(self, gpu: &Gpu, linear: Linear) -> Result<Linear> {
        let inputs = linear.weight().in_dim();
        let mut linear = linear;
        if self.norm {
            linear = linear.with_norm(&Tensor::from_slice(gpu, &[1, inputs], &gains(inputs), DType::F32)?, EPS)?;
        }
        if self.swiglu {
            linear = linear.with_swiglu()?;
        }
        match self.integer_dot {
            true => linear.with_integer_dot(),
            false => Ok(linear),
        }
    }
}

/// One matrix in several copies, which differ so that no cache can help.
struct Bench<'a> {
    gpu: &'a Gpu,
    inputs: usize,
    outputs: usize,
    kind: WeightType,
    copies: Vec<Linear>,
    /// Of the first copy, as the device holds them: (outputs, inputs).
    values: Vec<f32>,
    fused: Fused,
}

struct Timed {
    us: f64,
    alone_us: f64,
}

impl<'a> Bench<'a> {
    fn new(gpu: &'a Gpu, (inputs, outputs): (usize, usize), kind: WeightType, fused: Fused) -> Result<Self> {
        let (first, values) = weight(gpu, [outputs, inputs], kind, 0)?;
        let count = CACHE_BYTES.div_ceil(first.size_bytes()).clamp(2, 16);
        let mut copies = vec![Linear::new(gpu, &first, None)?];
        for copy in 1..count {
            copies.push(Linear::new(gpu, &weight(gpu, [outputs, inputs], kind, copy)?.0, None)?);
        }
        // Where there are no such products, those that there are.
        let fused =
            Fused { integer_dot: fused.integer_dot && kind != DType::F16.into() && kind != DType::F32.into(), ..fused };
        let copies = copies.into_iter().map(|linear| fused.with(gpu, linear)).collect::<Result<_>>()?;
        Ok(Bench { gpu, inputs, outputs, kind, copies, values, fused })
    }

    async fn line(&self, rows: usize, c: Ceilings) -> Result<String> {
        let error = self.error(&self.copies[0], rows).await?;
        let timed = self.time(&self.copies, rows, WARM).await?;
        let (bytes, flops) = self.bytes_and_flops(rows);
        let (gbps, tflops) = (bytes / timed.us / 1e3, flops / timed.us / 1e6);
        let (read, fma) = (100.0 * gbps / c.read_gbps, 100.0 * tflops / c.fma_tflops);
        let of_matmul = c.matmul_tflops.map_or(0.0, |ceiling| 100.0 * tflops / ceiling);
        let numbers = self.numbers(rows);
        println!(
            "{:<24} {:>10.2} {:>10.2} {gbps:>8.1} {read:>6.1} {tflops:>9.3} {fma:>6.1} {of_matmul:>7.1} {error:>8.0e}  \
             {numbers}",
            self.name(rows),
            timed.us,
            timed.alone_us
        );
        Ok(format!(
            "{{\"rows\":{rows},\"inputs\":{},\"outputs\":{},\"dtype\":\"{}\",\"us\":{:.3},\"us_alone\":{:.3},\
             \"gbps\":{gbps:.1},\"read_percent\":{read:.1},\"tflops\":{tflops:.3},\"fma_percent\":{fma:.1},\
             \"matmul_percent\":{of_matmul:.1},\"max_error\":{error:.2e},\"numbers\":\"{numbers}\",\"cache\":\"cold\"}}",
            self.inputs, self.outputs, self.kind, timed.us, timed.alone_us
        ))
    }

    fn name(&self, rows: usize) -> String {
        format!("{rows} x {} x {} {}", self.inputs, self.outputs, self.kind)
    }

    /// What the kernel for so many rows goes by.
    fn numbers(&self, rows: usize) -> String {
        let LinearTuning { in_lanes, outs, steps, max_rows, out_lanes, subgroups } = self.copies[0].tuning(rows);
        match self.copies[0].matrix_tile(rows) {
            Some(tile) => tile_text(&tile),
            None if rows > max_rows => "portable tile".into(),
            None => format!("{in_lanes} x {out_lanes} lanes, {outs} outs, {steps} steps, subgroups {subgroups}"),
        }
    }

    /// Weights, input and output once, and 2 FLOP per weight and row.
    fn bytes_and_flops(&self, rows: usize) -> (f64, f64) {
        let bytes = self.copies[0].weight().size_bytes() + 4 * rows * (self.inputs + self.outputs);
        (bytes as f64, 2.0 * (rows * self.inputs * self.outputs) as f64)
    }

    /// Median microseconds: of a product among dependent ones (all write one output), and of one alone. Each copy has an input of its
    /// own, as in a model: one that is used again and again stays in the caches next to the multiprocessors, and of 8 rows half of the
    /// time is that of reading the input.
    async fn time(&self, linears: &[Linear], rows: usize, warm: Duration) -> Result<Timed> {
        let values = random(rows * self.inputs, 9);
        let input = || Tensor::from_slice(self.gpu, &[rows, self.inputs], &values, DType::F32);
        let inputs = linears.iter().map(|_| input()).collect::<Result<Vec<_>>>()?;
        let output = Tensor::zeros(self.gpu, &[rows, linears[0].outputs()], DType::F32)?;
        let y = Span::of(&output);
        let each = if rows > 16 { 1 } else { 2 * linears.len() };
        let mut next = 0;
        let mut one = |pass: &mut wgpu::ComputePass<'_>| {
            next += 1;
            let copy = next % linears.len();
            linears[copy].encode(pass, LinearArgs::new(rows, Span::of(&inputs[copy]), y))
        };
        let median = |times: Vec<f64>| times[times.len() / 2];
        let together = times_us(self.gpu, warm, |pass, _| (0..each).try_for_each(|_| one(pass))).await?;
        let us = median(together) / each as f64;
        let alone_us = median(times_us(self.gpu, Duration::ZERO, |pass, _| one(pass)).await?);
        Ok(Timed { us, alone_us })
    }

    /// The largest error of 16 sampled outputs of each row, which must be small.
    async fn error(&self, linear: &Linear, rows: usize) -> Result<f64> {
        let x_values = random(rows * self.inputs, 9);
        let input = Tensor::from_slice(self.gpu, &[rows, self.inputs], &x_values, DType::F32)?;
        let outputs = linear.outputs();
        let output = Tensor::zeros(self.gpu, &[rows, outputs], DType::F32)?;
        linear.run(LinearArgs::new(rows, Span::of(&input), Span::of(&output)))?;
        let got = self.gpu.download::<f32>(&output).await?;
        let f64s = |values: &[f32]| values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
        let mut x_values = f64s(&x_values);
        if self.fused.norm {
            x_values = reference::rms_norm(&x_values, &f64s(&gains(self.inputs)), self.inputs, EPS.into())?;
        }
        let mut worst = 0.0f64;
        for sample in 0..16 {
            let out = (sample * outputs / 16 + sample) % outputs;
            // Of SwiGLU the gate's row and the other.
            let matrix_rows = [out, out + outputs];
            let matrix_rows = &matrix_rows[..if self.fused.swiglu { 2 } else { 1 }];
            let weight: Vec<f32> =
                matrix_rows.iter().flat_map(|row| &self.values[row * self.inputs..][..self.inputs]).copied().collect();
            let mut want = reference::linear(&x_values, &f64s(&weight), None, self.inputs)?;
            if self.fused.swiglu {
                want = reference::swiglu(&want, 1)?;
            }
            for (row, want) in want.iter().enumerate() {
                let off = (f64::from(got[row * outputs + out]) - want).abs();
                worst = if off.is_nan() { f64::INFINITY } else { worst.max(off) };
            }
        }
        let most = match linear.matrix_tile(rows) {
            _ if self.fused.integer_dot => LARGEST_BYTE_ERROR,
            Some(_) => LARGEST_HALF_ERROR,
            None => LARGEST_ERROR,
        };
        if worst > most * (self.inputs as f64).sqrt() {
            let context = self.name(rows);
            return Err(ErrorKind::Gpu { context, message: format!("wrong result, off by {worst:e}") }.into());
        }
        Ok(worst)
    }

    /// Every number of the kernel for so many rows that might serve, the best twenty first; of those whose text contains `only`.
    async fn sweep(&self, (rows, only): (usize, &str), c: Ceilings) -> Result<()> {
        let mut all = Vec::new();
        for (text, linears) in self.candidates(rows).into_iter().filter(|(text, _)| text.contains(only)) {
            self.error(&linears[0], rows).await?;
            all.push((self.time(&linears, rows, WARM).await?, text));
        }
        all.sort_by(|a, b| a.0.us.total_cmp(&b.0.us));
        println!("{}: the best of {}", self.name(rows), all.len());
        let (bytes, flops) = self.bytes_and_flops(rows);
        for (timed, text) in all.iter().take(20) {
            println!(
                "{:>9.2} us {:>9.2} alone {:>6.1}% of read {:>7.1} TFLOP/s: {text}",
                timed.us,
                timed.alone_us,
                100.0 * bytes / timed.us / 1e3 / c.read_gbps,
                flops / timed.us / 1e6,
            );
        }
        Ok(())
    }

    /// All copies with the same numbers, and what those are: of the kernel for few rows up to 16, and of cooperative
    /// matrices from there on, if the tier has them.
    fn candidates(&self, rows: usize) -> Vec<(String, Vec<Linear>)> {
        let mut all = Vec::new();
        let mut add = |text: String, tune: &dyn Fn(&Linear) -> Result<Linear>| {
            all.extend(self.copies.iter().map(tune).collect::<Result<Vec<_>>>().ok().map(|linears| (text, linears)));
        };
        let max_rows = rows.next_power_of_two().min(16);
        let tier = self.gpu.capabilities().tier;
        for (in_lanes, outs, steps) in numbers([32, 64, 128, 256], [1, 2, 4, 8], [1, 2, 4, 8]) {
            for (out_lanes, subgroups) in [(1, true), (4, true), (1, false), (2, false), (4, false), (8, false)] {
                let tuning = LinearTuning { in_lanes, outs, steps, max_rows, out_lanes, subgroups };
                // More words than a lane has, or than registers hold.
                let useless = outs * steps > 32 || (rows > 4 && steps > 1) || (subgroups && tier < Tier::Subgroup);
                if rows <= 16 && !useless {
                    let text =
                        format!("{in_lanes} x {out_lanes} lanes, {outs} outs, {steps} steps, subgroups {subgroups}");
                    add(text, &|linear| linear.clone().with_tuning(tuning));
                }
            }
        }
        for (row_tiles, row_groups, (step_words, ahead)) in numbers([1, 2, 4], [1, 2, 4], [(8, 1), (8, 2), (16, 1)]) {
            for (out_tiles, out_groups) in [(2, 1), (2, 2), (2, 4), (4, 1), (4, 2)] {
                let tile = MatrixTile { row_tiles, out_tiles, row_groups, out_groups, step_words, ahead };
                let tile_rows = 16 * row_tiles * row_groups;
                let useless = row_groups * out_groups < 4 || tile_rows >= 2 * rows.next_power_of_two();
                if rows >= 16 && tier == Tier::Matrix && !useless {
                    let tune = |linear: &Linear| {
                        // Fewer rows of the other kernel, so that this one is taken.
                        let tuning = LinearTuning { max_rows: 8, ..linear.tuning(rows) };
                        linear.clone().with_tuning(tuning)?.with_matrix_tile(tile)
                    };
                    add(tile_text(&tile), &tune);
                }
            }
        }
        all
    }
}

fn tile_text(tile: &MatrixTile) -> String {
    let MatrixTile { row_tiles, out_tiles, row_groups, out_groups, step_words, ahead } = *tile;
    let (rows, outs) = (16 * row_tiles * row_groups, 16 * out_tiles * out_groups);
    format!("matrices: {rows} x {outs}, {row_groups} x {out_groups} subgroups, {ahead} x {step_words} words")
}

/// All triples.
fn numbers<T: Copy, const N: usize, const M: usize, const L: usize>(
    a: [usize; N],
    b: [usize; M],
    c: [T; L],
) -> Vec<(usize, usize, T)> {
    let pairs = a.into_iter().flat_map(|a| b.into_iter().map(move |b| (a, b)));
    pairs.flat_map(|(a, b)| c.into_iter().map(move |c| (a, b, c))).collect()
}
