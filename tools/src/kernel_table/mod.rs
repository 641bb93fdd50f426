//! Times the decode kernels on this adapter against its ceilings, measured in the same run.
//!
//!     cargo run --release -p latten-tools -- kernel_table [--adapter NAME] [--filter TEXT,TEXT..] [--tier T,T..]
//!         [--dtype T,T..] [--target WORKGROUPS | --probe] [--json FILE] [--svg FILE]
//!     cargo run --release -p latten-tools -- kernel_table --from JSON --svg FILE
//!     cargo run --release -p latten-tools -- kernel_table --list
//!
//! Per line: shape, median microseconds of GPU timestamps, GB/s of the bytes that must be read (each cached element
//! once, with its scales in i8 and i4, plus queries and outputs) and their percent of a streaming read, TFLOP/s and their percent of plain f32
//! multiply-adds and of the matrix units, and which ceiling bounds the shape. Sampled rows of each result are checked
//! against the f64 reference before it is timed. Runs are cold, from caches taken in turn that are together larger than
//! any last-level cache, unless the name says warm; clocks are warmed by 0.5 s of the same work. Where a batch is past
//! the largest binding the name has what fits, and of how many. `--svg` draws the roofline, `--from` of an earlier run;
//! `--list` names a GPU's rows and measures nothing.

mod contents;
mod measure;
mod report;
mod roofline;
mod shapes;

use crate::common::{ceilings, timing};
use latten::{DType, Gpu, GpuOptions, Result, Tier};
use report::{Run, Table};
use timing::Block;

const USAGE: &str = "usage: kernel_table [--adapter NAME] [--filter TEXT,TEXT..] [--tier auto|t0|t1|t2,..] \
                     [--dtype f32|f16|bf16|i8|i4,..] [--target WORKGROUPS | --probe] [--json FILE] [--svg FILE] \
                     [--from JSON] [--list]";

struct Options {
    adapter: Option<String>,
    filter: String,
    tiers: String,
    dtypes: String,
    target: Option<usize>,
    probe: bool,
    list: bool,
    json: Option<String>,
    svg: Option<String>,
    from: Option<String>,
}

pub(crate) fn main() {
    let options = match arguments() {
        Ok(options) => options,
        Err(message) => {
            eprintln!("{message}\n{USAGE}");
            std::process::exit(2);
        }
    };
    if let Err(error) = pollster::block_on(run(options)) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn arguments() -> Result<Options, String> {
    let mut options = Options {
        adapter: None,
        filter: String::new(),
        tiers: "auto".into(),
        dtypes: "f16".into(),
        target: None,
        probe: false,
        list: false,
        json: None,
        svg: None,
        from: None,
    };
    let mut args = std::env::args().skip(2);
    while let Some(name) = args.next() {
        match name.as_str() {
            "--probe" => options.probe = true,
            "--list" => options.list = true,
            _ => {}
        }
        if matches!(name.as_str(), "--probe" | "--list") {
            continue;
        }
        let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--adapter" => options.adapter = Some(value),
            "--filter" => options.filter = value,
            "--tier" => options.tiers = value,
            "--dtype" => options.dtypes = value,
            "--target" => options.target = Some(value.parse().map_err(|_| format!("--target {value} is no count"))?),
            "--json" => options.json = Some(value),
            "--svg" => options.svg = Some(value),
            "--from" => options.from = Some(value),
            _ => return Err(format!("unknown argument {name}")),
        }
    }
    if options.from.is_some() && options.svg.is_none() {
        return Err("--from draws an earlier run: it needs --svg".into());
    }
    Ok(options)
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

/// The cache dtype of a name.
fn cache_dtype(name: &str) -> Option<DType> {
    [DType::F32, DType::F16, DType::BF16, DType::I8, DType::I4].into_iter().find(|dtype| dtype.to_string() == name)
}

/// The roofline of an earlier run's JSON.
pub fn drawn(path: &str) -> Result<String> {
    Ok(roofline::svg(&Table::read(path)?))
}

async fn run(options: Options) -> Result<()> {
    if options.list {
        return list(&options);
    }
    if let (Some(from), Some(svg)) = (&options.from, &options.svg) {
        return report::write(svg, &drawn(from)?);
    }
    let table = measured(&options).await?;
    if let Some(path) = &options.json {
        table.write(path)?;
    }
    if let Some(path) = &options.svg {
        report::write(path, &roofline::svg(&table))?;
    }
    Ok(())
}

/// The rows of a GPU with bindings of 2 GiB, which is Vulkan's and DX12's most.
fn list(options: &Options) -> Result<()> {
    for dtype in options.dtypes.split(',').filter_map(cache_dtype) {
        let limits = shapes::Limits { dtype, binding_bytes: (2 << 30) - 4, software: false };
        for shape in shapes::all(limits)?.iter().filter(|shape| wanted(&shape.name, &options.filter)) {
            let (bytes, flops) = shape.bytes_and_flops(dtype);
            let (name, pools) = (&shape.name, shape.pools(dtype));
            println!("{name:<40} {dtype} {:>8.1} MB in {pools:>2} pools, {:>8.2} GFLOP", bytes / 1e6, flops / 1e9);
        }
    }
    Ok(())
}

async fn measured(options: &Options) -> Result<Table> {
    let start = std::time::Instant::now();
    let base = GpuOptions { adapter: options.adapter.clone(), target_workgroups: options.target, ..Default::default() };
    let gpu = Gpu::with_options(base.clone()).await?;
    let c = gpu.capabilities();
    println!("adapter: {}", c.adapter);
    let mut base = base;
    if options.probe {
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
    let mut table = Table { adapter: c.adapter.clone(), ceilings, rows: Vec::new() };
    for tier in options.tiers.split(',') {
        let Some((gpu, tier_name)) = with_tier(tier, base.clone()).await? else {
            println!("tier {tier}: not available");
            continue;
        };
        for dtype in options.dtypes.split(',') {
            match cache_dtype(dtype) {
                Some(elements) => rows(&gpu, options, (tier_name, dtype, elements), &mut table).await?,
                None => println!("dtype {dtype}: not available"),
            }
        }
    }
    println!("\n{} rows in {:.0} s", table.rows.len(), start.elapsed().as_secs_f64());
    Ok(table)
}

/// All wanted rows of one tier and dtype. A row that fails is printed with its error; the rest goes on.
async fn rows(gpu: &Gpu, options: &Options, (tier, name, dtype): (&str, &str, DType), table: &mut Table) -> Result<()> {
    let c = gpu.capabilities();
    let limits = shapes::Limits { dtype, binding_bytes: c.max_binding_bytes, software: c.is_software() };
    let block = Block::new(gpu, dtype);
    for shape in shapes::all(limits)?.iter().filter(|shape| wanted(&shape.name, &options.filter)) {
        match measure::measure(gpu, shape, &block).await {
            Ok(measured) => {
                let row = Run { shape, tier, dtype: (name, dtype) }.row(&measured, &table.ceilings);
                report::print(&row);
                table.rows.push(row);
            }
            Err(error) => println!("{:<40} {error}", shape.name),
        }
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
