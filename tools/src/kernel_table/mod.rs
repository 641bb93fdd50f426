//! Times the decode kernels on this adapter against its ceilings, measured in the same run.
//!
//!     cargo run --release -p latten-tools -- kernel_table --help
//!
//! Per line: shape, median microseconds of GPU timestamps, GB/s of the bytes that must be read (each cached element
//! once, with its scales in i8 and i4, plus queries and outputs) and their percent of a streaming read, TFLOP/s and their percent of plain f32
//! multiply-adds and of the matrix units, and which ceiling bounds the shape. Sampled rows of each result are checked
//! against the f64 reference before it is timed. Runs are cold, from caches taken in turn that are together larger than
//! any last-level cache, unless the name says warm; clocks are warmed by 0.5 s of the same work. Where a batch is past
//! the largest binding the name has what fits, and of how many. `--svg` draws the roofline; `--against`
//! prints what moved since an earlier run.

pub(crate) mod against;
mod contents;
mod measure;
pub(crate) mod report;
mod roofline;
mod shapes;

use crate::common::arguments::{count, dtypes, Checked, CACHE_DTYPES};
use crate::common::facts::Facts;
use crate::common::{ceilings, timing};
use latten::{DType, Gpu, GpuOptions, Result, Tier};
use report::{Run, Table};
use timing::Block;

/// Times of the decode kernels on this adapter, against its ceilings of the same run
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Take the GPU whose description contains this
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    /// Rows whose names contain one of these texts; a text that ends in $ must end the name. Without it all
    #[arg(long, value_delimiter = ',', value_name = "TEXT,TEXT..")]
    filter: Vec<String>,
    /// Tiers of kernels; auto is the best that the adapter has
    #[arg(long, value_delimiter = ',', default_value = "auto", value_parser = ["auto", "t0", "t1", "t2"])]
    tier: Vec<String>,
    /// Of the cache
    #[arg(long, value_delimiter = ',', default_value = "f16", value_parser = dtypes(CACHE_DTYPES))]
    dtype: Vec<DType>,
    /// Workgroups that the planner aims at; without it latten's own number
    #[arg(long, value_name = "WORKGROUPS", conflicts_with = "probe", value_parser = count)]
    target: Option<usize>,
    /// Measure that number first
    #[arg(long)]
    probe: bool,
    /// Name a GPU's rows, and measure nothing
    #[arg(long)]
    list: bool,
    /// Write what was measured
    #[arg(long, value_name = "FILE")]
    json: Option<String>,
    /// Draw the roofline
    #[arg(long, value_name = "FILE")]
    svg: Option<String>,
    /// Print the rows that moved by more than 3% of their percent of read since this run, a file of --json
    #[arg(long, value_name = "FILE")]
    against: Option<String>,
    /// Take an earlier run, a file of --json, and measure nothing: for --svg and --against
    #[arg(long, value_name = "FILE", conflicts_with_all = ["json", "list", "probe", "target"])]
    from: Option<String>,
}

impl Checked for Args {
    fn check(&self) -> Result<(), String> {
        match self.from.is_some() && self.svg.is_none() && self.against.is_none() {
            true => Err("--from takes an earlier run: it needs --svg or --against".into()),
            false => Ok(()),
        }
    }
}

pub(crate) fn main(args: &Args) -> Result<(), String> {
    pollster::block_on(run(args)).map_err(|e| e.to_string())
}

/// Tiers of kernels by the names of rows; the one place that knows them.
const TIERS: [(&str, Tier); 3] = [("t0", Tier::Portable), ("t1", Tier::Subgroup), ("t2", Tier::Matrix)];

/// A device with the kernels of a tier ("auto": the best that the adapter has, experimental ones that pass their self-test
/// too), and the tier's name; none where the adapter has it not.
async fn with_tier(tier: &str, options: GpuOptions) -> Result<Option<(Gpu, &'static str)>> {
    let wanted = TIERS.iter().find(|(name, _)| *name == tier).map(|(_, tier)| *tier);
    if wanted.is_none() && tier != "auto" {
        return Ok(None);
    }
    let gpu = Gpu::with_options(GpuOptions { tier: wanted.or(Some(Tier::Matrix)), ..options }).await?;
    let got = gpu.capabilities().tier;
    let name = TIERS.iter().find(|(_, tier)| *tier == got).map(|(name, _)| *name);
    Ok(name.filter(|_| wanted.is_none_or(|wanted| wanted == got)).map(|name| (gpu, name)))
}

async fn run(args: &Args) -> Result<()> {
    if args.list {
        return list(args);
    }
    // Read first: a wrong name must not cost a run.
    let before = args.against.as_ref().map(|path| Table::read(path)).transpose()?;
    let table = match &args.from {
        Some(path) => Table::read(path)?,
        None => measured(args).await?,
    };
    if let Some(path) = &args.json {
        table.write(path)?;
    }
    if let Some(path) = &args.svg {
        report::write(path, &roofline::svg(&table)?)?;
    }
    if let Some(before) = before {
        print!("{}", against::text(&before, &table));
    }
    Ok(())
}

/// The rows of a GPU with bindings of 2 GiB, which is Vulkan's and DX12's most.
fn list(args: &Args) -> Result<()> {
    for &dtype in &args.dtype {
        let limits = shapes::Limits { dtype, binding_bytes: (2 << 30) - 4, software: false };
        for shape in shapes::all(limits)?.iter().filter(|shape| wanted(&shape.name, &args.filter)) {
            let (bytes, flops) = shape.bytes_and_flops(dtype);
            let (name, pools) = (&shape.name, shape.pools(dtype));
            println!("{name:<40} {dtype} {:>8.1} MB in {pools:>2} pools, {:>8.2} GFLOP", bytes / 1e6, flops / 1e9);
        }
    }
    Ok(())
}

async fn measured(args: &Args) -> Result<Table> {
    let start = std::time::Instant::now();
    let base = GpuOptions { adapter: args.adapter.clone(), target_workgroups: args.target, ..Default::default() };
    let gpu = Gpu::with_options(base.clone()).await?;
    let c = gpu.capabilities();
    println!("adapter: {}", c.adapter);
    let mut base = base;
    if args.probe {
        let probe = std::time::Instant::now();
        let found = gpu.measure_parallelism().await?;
        let (streams, target) = (found.workgroups, found.target_workgroups);
        println!(
            "probe: {streams} workgroups stream, target {target}, found in {:.2} s",
            probe.elapsed().as_secs_f64()
        );
        found.samples.iter().for_each(|(workgroups, gbps)| println!("  {workgroups:>6} {gbps:>9.1} GB/s"));
        base.target_workgroups = Some(found.target_workgroups);
    }
    println!("target workgroups: {}", base.target_workgroups.unwrap_or(c.target_workgroups));
    let ceilings = ceilings::measure(&gpu, &Block::new(&gpu, DType::F16)).await?;
    let matmul = ceilings.matmul_tflops.map_or("none".into(), |tflops| format!("{tflops:.1} TFLOP/s"));
    let (read, fma) = (ceilings.read_gbps, ceilings.fma_tflops);
    println!("ceilings: streaming read {read:.0} GB/s, f32 fma {fma:.2} TFLOP/s, f16 matrices {matmul}\n");
    report::print_head();
    let mut table = Table { adapter: c.adapter.clone(), facts: Facts::default(), ceilings, rows: Vec::new() };
    for tier in &args.tier {
        let Some((gpu, tier_name)) = with_tier(tier, base.clone()).await? else {
            println!("tier {tier}: not available");
            continue;
        };
        for &dtype in &args.dtype {
            rows(&gpu, args, (tier_name, dtype), &mut table).await?;
        }
    }
    // After the last row, while the clocks are those of a busy device.
    table.facts = Facts::of(&gpu);
    println!("\n{} rows in {:.0} s", table.rows.len(), start.elapsed().as_secs_f64());
    Ok(table)
}

/// All wanted rows of one tier and dtype. A row that fails is printed with its error; the rest goes on.
async fn rows(gpu: &Gpu, args: &Args, (tier, dtype): (&str, DType), table: &mut Table) -> Result<()> {
    let c = gpu.capabilities();
    let limits = shapes::Limits { dtype, binding_bytes: c.max_binding_bytes, software: c.is_software() };
    let block = Block::new(gpu, dtype);
    for shape in shapes::all(limits)?.iter().filter(|shape| wanted(&shape.name, &args.filter)) {
        match measure::measure(gpu, shape, &block).await {
            Ok(measured) => {
                let row = Run { shape, tier, dtype }.row(&measured, &table.ceilings);
                report::print(&row);
                table.rows.push(row);
            }
            Err(error) => println!("{:<40} {error}", shape.name),
        }
    }
    Ok(())
}

/// Whether a name contains one of the texts, if there are any; a text that ends in `$` must end it.
fn wanted(name: &str, filter: &[String]) -> bool {
    let matches = |text: &String| match text.strip_suffix('$') {
        Some(text) => name.ends_with(text),
        None => name.contains(text.as_str()),
    };
    filter.is_empty() || filter.iter().any(matches)
}
