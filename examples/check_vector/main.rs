//! Runs vectors of the oracle on the GPU and compares: `out` and `lse` of a kernel vector, `y` of a layer vector.
//!
//! `cargo run --release --example check_vector -- tests/vectors/kernel_gla_1.json` in a checkout of the repository;
//! `.. < vector.json`
//!
//! The format of vectors: tests/common/vector.rs.

mod kernel;
mod layer;
mod report;
#[path = "../shared/repository.rs"]
mod repository;
#[path = "../../tests/common/vector.rs"]
pub mod vector;

use clap::Parser;
use latten::{Gpu, GpuOptions};
use report::Report;
use std::io::{Read, Write};
use std::process::ExitCode;
use vector::Vector;

/// All errors are within their bounds.
pub const WITHIN: u8 = 0;
/// Some error is beyond its bound.
pub const BEYOND: u8 = 1;
/// Bad usage or input, or no GPU that can run it.
pub const UNCHECKED: u8 = 2;

/// Runs vectors of the oracle on the GPU and compares: each with an f32, an f16 and a bf16 cache, or weights
///
/// Exit code: 0 where all errors are within their bounds, 1 where one is beyond, 2 where a vector could not be checked: bad
/// usage or input, or no GPU that can run it.
#[derive(Parser)]
#[command(name = "check_vector")]
struct Args {
    /// Each with one vector as JSON; - is the standard input
    #[arg(value_name = "FILE", default_value = "-")]
    files: Vec<String>,
    /// Take the GPU whose description contains this
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
}

/// One program run: the exit code, with the report in `out` and complaints in `complaints`.
pub fn run(
    args: impl Iterator<Item = String>,
    input: &mut dyn Read,
    out: &mut dyn Write,
    complaints: &mut dyn Write,
) -> u8 {
    let mut complain = |message: &str| {
        // Nothing can be done about a complaint that nobody reads.
        let _ = writeln!(complaints, "check_vector: {message}");
        UNCHECKED
    };
    let args = match Args::try_parse_from(std::iter::once("check_vector".to_string()).chain(args)) {
        Ok(args) => args,
        Err(error) if error.use_stderr() => return complain(&error.to_string()),
        Err(help) => {
            let _ = write!(out, "{help}");
            return WITHIN;
        }
    };
    // Read before the GPU is looked for: a typing error in a name needs none.
    let vectors: Vec<_> = args.files.iter().map(|file| (file, read(file, input))).collect();
    let mut worst = WITHIN;
    let mut device = None;
    for (file, vector) in vectors {
        let checked = vector.and_then(|vector| {
            let gpu = match &device {
                Some(gpu) => gpu,
                None => device.insert(open(&args.adapter, out)?),
            };
            check(gpu, file, &vector, out)
        });
        let code = match checked {
            Ok(true) => WITHIN,
            Ok(false) => BEYOND,
            Err(message) => complain(&format!("{file}: {message}")),
        };
        worst = worst.max(code);
    }
    worst
}

fn read(file: &str, input: &mut dyn Read) -> Result<Vector, String> {
    let json = if file == "-" {
        let mut json = Vec::new();
        input.read_to_end(&mut json).map(|_| json)
    } else {
        repository::here(file)?;
        std::fs::read(file)
    };
    let json = json.map_err(|e| e.to_string())?;
    if json.trim_ascii().is_empty() {
        return Err("empty; a vector as JSON is wanted".into());
    }
    Vector::parse(&json).map_err(|e| e.to_string())
}

fn open(adapter: &Option<String>, out: &mut dyn Write) -> Result<Gpu, String> {
    let options = GpuOptions { adapter: adapter.clone(), ..Default::default() };
    let gpu = pollster::block_on(Gpu::with_options(options)).map_err(|e| e.to_string())?;
    let _ = writeln!(out, "adapter: {}", gpu.capabilities().adapter);
    Ok(gpu)
}

/// Whether all errors of one vector are within their bounds.
fn check(gpu: &Gpu, file: &str, vector: &Vector, out: &mut dyn Write) -> Result<bool, String> {
    let mut report = Report::new(out);
    let checked = match vector {
        Vector::Kernel(vector) => kernel::check(gpu, file, vector, &mut report),
        Vector::Layer(vector) => layer::check(gpu, file, vector, &mut report),
    };
    checked.map(|()| report.all_within()).map_err(|e| e.to_string())
}

fn main() -> ExitCode {
    let (args, mut input) = (std::env::args().skip(1), std::io::stdin().lock());
    ExitCode::from(run(args, &mut input, &mut std::io::stdout().lock(), &mut std::io::stderr().lock()))
}
