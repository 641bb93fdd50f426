//! How fast a model's folder is loaded, against a plain read of the same file in the same run, and the memory that it takes
//! beside the weights. The model is one of the Llama family with random weights, written first.
//!
//! `cargo run --release -p latten-tools -- load_speed --layers 10`

use crate::common::arguments::{count, dtypes, Checked};
use crate::common::disk;
use latten::model::{Decoder, LoadOptions};
use latten::{DType, Gpu};
use std::cell::RefCell;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use disk::{forget, read_plain, resident_bytes, PLAIN_BYTES};

/// How fast a model's folder is loaded, against a plain read of its file; random weights, in the Llama family
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
    /// Of the file
    #[arg(long, value_name = "DTYPE", default_value = "f16", value_parser = ["f16", "bf16", "f32"])]
    file: String,
    /// Of the weights on the device
    #[arg(long, default_value = "f16", value_parser = dtypes(["f16", "f32", "i8"]))]
    dtype: DType,
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

/// Names and shapes, in the order of the file, which is that of the names.
fn tensors(args: &Args) -> Vec<(String, Vec<usize>)> {
    let (hidden, wide) = (args.hidden, 11 * args.hidden / 4);
    let mut all = vec![
        ("model.embed_tokens.weight".into(), vec![args.vocab, hidden]),
        ("model.norm.weight".into(), vec![hidden]),
    ];
    for layer in 0..args.layers {
        for (name, shape) in [
            ("input_layernorm", vec![hidden]),
            ("mlp.down_proj", vec![hidden, wide]),
            ("mlp.gate_proj", vec![wide, hidden]),
            ("mlp.up_proj", vec![wide, hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.k_proj", vec![hidden / 4, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.v_proj", vec![hidden / 4, hidden]),
        ] {
            all.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    all.sort();
    all
}

/// Writes the model; finite random numbers, which no file system compresses.
fn write_model(folder: &Path, args: &Args) -> std::io::Result<()> {
    let config = serde_json::json!({
        "model_type": "llama", "vocab_size": args.vocab, "hidden_size": args.hidden, "num_hidden_layers": args.layers,
        "num_attention_heads": args.hidden / 64, "num_key_value_heads": args.hidden / 256, "head_dim": 64,
        "intermediate_size": 11 * args.hidden / 4, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 2048,
        "tie_word_embeddings": true, "hidden_act": "silu",
    });
    std::fs::write(folder.join("config.json"), config.to_string())?;
    let (size, mask) = match args.file.as_str() {
        "f16" => (2, 0xbbff_bbff_bbff_bbff),
        "bf16" => (2, 0xbf7f_bf7f_bf7f_bf7f),
        _ => (4, 0xbf7f_ffff_bf7f_ffffu64),
    };
    let (mut header, mut bytes) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors(args) {
        let end = bytes + size * shape.iter().product::<usize>();
        let dtype = args.file.to_uppercase();
        header.insert(name, serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [bytes, end]}));
        bytes = end;
    }
    let mut header = serde_json::Value::from(header).to_string();
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let mut file = BufWriter::with_capacity(PLAIN_BYTES, File::create(folder.join("model.safetensors"))?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..bytes / 8 {
        file.write_all(&(random.u64(..) & mask).to_le_bytes())?;
    }
    file.write_all(&vec![0; bytes % 8])?;
    file.into_inner().map_err(|e| e.into_error())?.sync_all()
}

/// Resident memory beyond that at the start and, on a software device, where they are resident too, the weights so far.
struct Extra {
    start: Option<u64>,
    weights: bool,
    most: u64,
    next: u64,
}

impl Extra {
    fn note(&mut self, bytes: u64) {
        if bytes < self.next {
            return;
        }
        self.next = bytes + (16 << 20);
        if let (Some(start), Some(now)) = (self.start, resident_bytes()) {
            self.most = self.most.max(now.saturating_sub(start + if self.weights { bytes } else { 0 }));
        }
    }
}

pub(crate) async fn run(args: &Args, out: &mut impl Write) -> Result<(), String> {
    let gpu = Gpu::new().await.map_err(text)?;
    let folder = args.folder.join(format!("latten-load-{}", std::process::id()));
    std::fs::create_dir(&folder).map_err(text)?;
    let result = write_model(&folder, args).map_err(text).and_then(|()| measure(args, &gpu, &folder, out));
    drop(std::fs::remove_dir_all(&folder));
    result
}

fn measure(args: &Args, gpu: &Gpu, folder: &Path, out: &mut impl Write) -> Result<(), String> {
    let path = folder.join("model.safetensors");
    let mut chunk = vec![0; PLAIN_BYTES];
    // From the disk and from the system's memory; plain and loaded.
    let mut best = [[f64::INFINITY; 2]; 2];
    let (mut cold, mut extra, mut size) = (true, 0, 0);
    // Kernels compile once.
    drop(Decoder::load(gpu, folder, args.dtype).map_err(text)?);
    for _ in 0..args.repeats {
        for (place, best) in best.iter_mut().enumerate() {
            let mut ready = || {
                if place == 0 {
                    cold &= forget(&path)
                }
            };
            ready();
            let start = Instant::now();
            size = read_plain(&path, &mut chunk).map_err(text)?;
            best[0] = best[0].min(start.elapsed().as_secs_f64());
            ready();
            let weights = gpu.capabilities().adapter.contains("llvmpipe");
            let noted = RefCell::new(Extra { start: resident_bytes(), weights, most: 0, next: 0 });
            let progress = |now: latten::cache::Progress| noted.borrow_mut().note(now.bytes);
            let options = LoadOptions { dtype: args.dtype, progress: Some(&progress), ..Default::default() };
            let start = Instant::now();
            let decoder = Decoder::load_with(gpu, folder, options).map_err(text)?;
            // Not before all is on the device.
            pollster::block_on(
                gpu.download::<u32>(&latten::Tensor::from_slice(gpu, &[1], &[0], DType::U32).map_err(text)?),
            )
            .map_err(text)?;
            best[1] = best[1].min(start.elapsed().as_secs_f64());
            drop(decoder);
            extra = extra.max(noted.into_inner().most);
        }
    }
    let (mib, extra) = (size as f64 / f64::from(1 << 20), extra as f64 / f64::from(1 << 20));
    let (file, dtype) = (&args.file, args.dtype);
    writeln!(
        out,
        "{mib:.0} MiB of {file} to {dtype}, the best of {}; at most {extra:.1} MiB beside the weights",
        args.repeats
    )
    .map_err(text)?;
    writeln!(out, "from          plain MB/s   load MB/s   of plain").map_err(text)?;
    for (name, [plain, load]) in [if cold { "the disk" } else { "memory (a)" }, "memory"].iter().zip(best) {
        let rate = |seconds: f64| size as f64 / seconds / 1e6;
        writeln!(out, "{name:<12} {:>11.0} {:>11.0} {:>9.0}%", rate(plain), rate(load), 100.0 * plain / load)
            .map_err(text)?;
    }
    Ok(())
}

pub(crate) fn main(args: &Args) -> Result<(), String> {
    pollster::block_on(run(args, &mut std::io::stdout().lock()))
}
