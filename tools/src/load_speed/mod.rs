//! How fast a model's folder or GGUF file is loaded, against a plain read of the same file in the same run, and the memory that
//! it takes beside the weights. The models are of the Llama family with random weights, written first.
//!
//! `cargo run --release -p latten-tools -- load_speed --file f16,q4_k --weights f16,i8`

mod files;

use crate::common::arguments::{count, weight_types, Checked, WEIGHT_TYPES};
use crate::common::disk;
use latten::model::{Decoder, LoadOptions};
use latten::nn::{BlockType, WeightType};
use latten::{DType, Gpu};
use std::cell::RefCell;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use disk::{read_plain, resident_bytes, PLAIN_BYTES};

/// What the weights of a file may be: of a folder, or in the blocks of a GGUF file.
const FILES: [&str; 16] = [
    "f16", "bf16", "f32", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl",
    "iq4_xs", "mxfp4",
];

/// How fast models are loaded, against a plain read of their files; random weights, in the Llama family
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Layers of width --hidden; 10 with the other defaults are 1.0 GB of f16
    #[arg(long, value_name = "N", default_value = "10", value_parser = count)]
    layers: usize,
    /// A multiple of 256
    #[arg(long, value_name = "N", default_value = "2048", value_parser = hidden)]
    hidden: usize,
    /// Tokens of the vocabulary
    #[arg(long, value_name = "N", default_value = "32000", value_parser = count)]
    vocab: usize,
    /// Of the file, several by commas
    #[arg(long, value_name = "TYPE", default_value = "f16", value_delimiter = ',', value_parser = FILES)]
    file: Vec<String>,
    /// Of the weights on the device, several by commas; f16 keeps blocks as they are
    #[arg(
        long,
        value_name = "TYPE",
        default_value = "f16",
        value_delimiter = ',',
        value_parser = weight_types(WEIGHT_TYPES)
    )]
    weights: Vec<WeightType>,
    /// Where the model goes
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    folder: PathBuf,
    /// How often; the fastest counts
    #[arg(long, value_name = "N", default_value = "3", value_parser = count)]
    repeats: usize,
}

impl Checked for Args {}

fn hidden(text: &str) -> Result<usize, String> {
    count(text).ok().filter(|n| n.is_multiple_of(256)).ok_or_else(|| "not a multiple of 256".into())
}

fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}

/// Bits of a number on the device: of the table, which is read first, and of the others.
fn device_bits(file: &str, weights: WeightType) -> [f64; 2] {
    let bits = |kind: WeightType| match kind {
        WeightType::Blocks(block) => 8.0 * block.bytes() as f64 / block.elements() as f64,
        WeightType::Plain(dtype) => dtype.size_bits() as f64,
        _ => f64::NAN,
    };
    match (weights, file.parse::<BlockType>()) {
        (WeightType::Plain(DType::F16), Ok(block)) => [bits(block.into()); 2],
        (WeightType::Plain(DType::I8), _) => [16.0, 8.0],
        (WeightType::Blocks(block), _) => [bits(BlockType::Q8_0.into()), bits(block.into())],
        (plain, _) => [bits(plain); 2],
    }
}

/// Resident memory beyond that at the start and, on a software device, where they are resident too, the weights so far.
struct Extra {
    start: Option<u64>,
    /// Bytes of the device for one of the file, of the table and of the others; and the table's bytes in the file.
    weights: ([f64; 2], u64),
    most: u64,
    next: u64,
}

impl Extra {
    fn note(&mut self, bytes: u64) {
        if bytes < self.next {
            return;
        }
        self.next = bytes + (16 << 20);
        let ([table, others], table_bytes) = self.weights;
        let device = bytes.min(table_bytes) as f64 * table + bytes.saturating_sub(table_bytes) as f64 * others;
        if let (Some(start), Some(now)) = (self.start, resident_bytes()) {
            self.most = self.most.max(now.saturating_sub(start + device as u64));
        }
    }
}

/// Seconds of plain reads and of loads, and bytes beside the weights.
struct Measured {
    /// From the disk, and from the system's memory.
    plain: [f64; 2],
    load: [f64; 2],
    extra: u64,
    bytes: u64,
    /// Whether the system could be made to forget the file.
    cold: bool,
}

pub(crate) async fn run(args: &Args, out: &mut impl Write) -> Result<(), String> {
    let gpu = Gpu::new().await.map_err(text)?;
    let folder = args.folder.join(format!("latten-load-{}", std::process::id()));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    writeln!(out, "{}, {cores} cores, the best of {}; MB/s", gpu.capabilities().adapter, args.repeats).map_err(text)?;
    let head =
        "file    device    MiB   disk: plain    load   of it   memory: plain    load   of it   MiB beside weights";
    writeln!(out, "{head}").map_err(text)?;
    for kind in &args.file {
        std::fs::create_dir(&folder).map_err(text)?;
        let result = files::write(&folder, args, kind).map_err(text);
        let result = result.and_then(|(file, model)| {
            args.weights.iter().try_for_each(|weights| {
                let measured = measure(args, &gpu, (&file, &model), (kind, *weights))?;
                print_row(out, kind, *weights, &measured).map_err(text)
            })
        });
        drop(std::fs::remove_dir_all(&folder));
        result?;
    }
    Ok(())
}

fn print_row(out: &mut impl Write, kind: &str, weights: WeightType, m: &Measured) -> std::io::Result<()> {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let rate = |seconds: f64| m.bytes as f64 / seconds / 1e6;
    let [disk, memory] = [0, 1].map(|place| {
        let (plain, load) = (m.plain[place], m.load[place]);
        format!("{:>12.0} {:>7.0} {:>6.0}%", rate(plain), rate(load), 100.0 * plain / load)
    });
    let warm = if m.cold { "" } else { " (the disk's is memory's)" };
    let (kind, size, extra) = (format!("{kind:<7} {weights:<6}"), mib(m.bytes), mib(m.extra));
    writeln!(out, "{kind} {size:>6.0} {disk} {memory} {extra:>10.1}{warm}")
}

fn measure(
    args: &Args,
    gpu: &Gpu,
    (file, model): (&Path, &Path),
    (kind, weights): (&str, WeightType),
) -> Result<Measured, String> {
    let mut chunk = vec![0; PLAIN_BYTES];
    let file_bits = match kind.parse::<BlockType>() {
        Ok(block) => 8.0 * block.bytes() as f64 / block.elements() as f64,
        Err(_) => kind.parse::<DType>().map_err(text)?.size_bits() as f64,
    };
    let software = gpu.capabilities().adapter.contains("llvmpipe");
    let ratios = device_bits(kind, weights).map(|bits| if software { bits / file_bits } else { 0.0 });
    let table_bytes = ((args.vocab * args.hidden) as f64 * file_bits / 8.0) as u64;
    let mut best = Measured { plain: [f64::INFINITY; 2], load: [f64::INFINITY; 2], extra: 0, bytes: 0, cold: true };
    // Kernels compile once.
    drop(Decoder::load(gpu, model, weights).map_err(text)?);
    for _ in 0..args.repeats {
        for place in 0..2 {
            let mut ready = || {
                if place == 0 {
                    best.cold &= disk::forget(file)
                }
            };
            ready();
            let start = Instant::now();
            best.bytes = read_plain(file, &mut chunk).map_err(text)?;
            best.plain[place] = best.plain[place].min(start.elapsed().as_secs_f64());
            ready();
            let weights_so_far = (ratios, table_bytes);
            let noted = RefCell::new(Extra { start: resident_bytes(), weights: weights_so_far, most: 0, next: 0 });
            let progress = |now: latten::cache::Progress| noted.borrow_mut().note(now.bytes);
            let options = LoadOptions { progress: Some(&progress), ..LoadOptions::of(weights) };
            let start = Instant::now();
            let decoder = Decoder::load_with(gpu, model, options).map_err(text)?;
            // Not before all is on the device.
            let last = latten::Tensor::from_slice(gpu, &[1], &[0], DType::U32).map_err(text)?;
            pollster::block_on(gpu.download::<u32>(&last)).map_err(text)?;
            best.load[place] = best.load[place].min(start.elapsed().as_secs_f64());
            drop(decoder);
            best.extra = best.extra.max(noted.into_inner().most);
        }
    }
    Ok(best)
}

pub(crate) fn main(args: &Args) -> Result<(), String> {
    pollster::block_on(run(args, &mut std::io::stdout().lock()))
}
