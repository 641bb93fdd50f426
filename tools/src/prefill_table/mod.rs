//! Times prompts and decode steps of whole models with random weights, variant beside variant.
//!
//!     cargo run --release -p latten-tools -- prefill_table [--adapter NAME] [--tier portable|subgroup|matrix]
//!         [--size 183m|433m|876m|1471m] [--layers N] [--vocab N] [--variants gqa-4,gta-4,gla-2,mla]
//!         [--paths absorbed,explicit,auto] [--tokens N] [--chunk N] [--batch N,N..] [--lengths N,N..] [--memory GIB]
//!         [--profile] [--dispatch-flop N] [--json FILE]
//!
//! The models are the paper's (`--size`, default 1471m: 24 layers, 16 heads of 128), Llama-style with a SwiGLU of 2.75
//! times the stream, matrices and cache in f16. Tables:
//!
//! - Prefill: a prompt of `--tokens` in steps of `--chunk`, of GLA and MLA in each form (`PrefillPath`), from the call to
//!   its first token; TFLOP/s of the FLOP that `measure::prefill_flop` counts, and their percent of the matrix units'
//!   rate, or of f32 multiply-adds without them.
//!   For these, on a GPU, from how many new tokens on the explicit form has fewer FLOP and from how many it is faster
//!   (`Session::measure_prefill`), behind a context of 4,096.
//! - Decode: tokens per second of `--batch` sequences of `--lengths` tokens, whose rows are random numbers written into
//!   the cache; GB/s of weights and cached rows, and their percent of a streaming read. A batch whose cache would exceed
//!   `--memory` is cut to what fits, and marked.
//!
//! Both ceilings are measured in the same run. Times are of the host's clock, medians, after half a second of the same
//! work. `--profile` prints the dispatches of a prompt by kernel, and the longest of each; `--dispatch-flop` is what they
//! may hold (`GpuOptions::dispatch_flop`).

mod measure;
mod models;
mod report;

use crate::common::{ceilings, prefill, timing};
use latten::model::{Decoder, PrefillPath, Session, SessionOptions};
use latten::{DType, Gpu, GpuOptions, Tier};
use measure::Repeats;
use models::{Size, Weights, SIZES, VARIANTS};
use prefill::FORMS;
use report::{BreakEvenRow, DecodeRow, PrefillRow, Table};
use std::io::Write;
use timing::Block;

const USAGE: &str = "usage: prefill_table [--adapter NAME] [--tier portable|subgroup|matrix] \
                     [--size 183m|433m|876m|1471m] [--layers N] [--vocab N] [--variants gqa-4,gta-4,gla-2,mla] \
                     [--paths absorbed,explicit,auto] [--tokens N] [--chunk N] [--batch N,N..] [--lengths N,N..] [--memory GIB] [--profile] [--dispatch-flop N] \
                     [--json FILE]";

pub(crate) struct Args {
    adapter: Option<String>,
    tier: Tier,
    size: Size,
    variants: Vec<&'static str>,
    /// Forms of prompts, by name; none for all.
    paths: Vec<String>,
    tokens: usize,
    chunk: Option<usize>,
    batches: Vec<usize>,
    lengths: Vec<usize>,
    memory_bytes: f64,
    profile: bool,
    dispatch_flop: Option<u64>,
    json: Option<String>,
}

pub(crate) fn main() {
    let args = match parse(std::env::args().skip(2)) {
        Ok(args) => args,
        Err(message) => {
            eprintln!("{message}\n{USAGE}");
            std::process::exit(2);
        }
    };
    if let Err(error) = pollster::block_on(run(&args, &mut std::io::stdout())) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Args, String> {
    let mut parsed = Args {
        adapter: None,
        tier: Tier::Matrix,
        size: SIZES[3],
        variants: VARIANTS.to_vec(),
        paths: Vec::new(),
        tokens: 2048,
        chunk: None,
        batches: vec![1, 8, 64],
        lengths: vec![4096, 65_536],
        // Of a card of 80 GB, so that a layer of the widest cache still is one binding of 2 GiB.
        memory_bytes: 46.0 * f64::from(1 << 30),
        profile: false,
        dispatch_flop: None,
        json: None,
    };
    let (mut layers, mut vocab) = (None, None);
    while let Some(name) = args.next() {
        if name == "--profile" {
            parsed.profile = true;
            continue;
        }
        let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
        let number = |text: &str| match text.parse::<usize>() {
            Ok(n) if (1..=1 << 20).contains(&n) => Ok(n),
            _ => Err(format!("{name} {text}: not a number from 1 to 2^20")),
        };
        let numbers = || value.split(',').map(number).collect::<Result<Vec<_>, _>>();
        match name.as_str() {
            "--adapter" => parsed.adapter = Some(value),
            "--tier" => {
                parsed.tier = match value.as_str() {
                    "portable" => Tier::Portable,
                    "subgroup" => Tier::Subgroup,
                    "matrix" => Tier::Matrix,
                    _ => return Err(format!("no tier {value}")),
                }
            }
            "--size" => {
                let size = SIZES.into_iter().find(|size| size.name == value);
                parsed.size = size.ok_or_else(|| format!("no size {value}"))?;
            }
            "--layers" => layers = Some(number(&value)?),
            "--vocab" => vocab = Some(number(&value)?),
            "--variants" => {
                let known = |name: &str| VARIANTS.into_iter().find(|variant| *variant == name);
                let variants = value.split(',').map(|name| known(name).ok_or_else(|| format!("no variant {name}")));
                parsed.variants = variants.collect::<Result<_, _>>()?;
            }
            "--paths" => {
                parsed.paths = value.split(',').map(str::to_string).collect();
                let known = |path: &String| path == "-" || FORMS.iter().any(|(name, _)| path == name);
                if let Some(path) = parsed.paths.iter().find(|path| !known(path)) {
                    return Err(format!("no path {path}"));
                }
            }
            "--tokens" => parsed.tokens = number(&value)?,
            "--chunk" => parsed.chunk = Some(number(&value)?),
            "--batch" => parsed.batches = numbers()?,
            "--lengths" => parsed.lengths = numbers()?,
            "--memory" => {
                let gib = value.parse::<f64>().ok().filter(|gib| *gib > 0.0);
                parsed.memory_bytes = gib.ok_or_else(|| format!("--memory {value}: no size"))? * f64::from(1 << 30);
            }
            "--dispatch-flop" => {
                let flop = value.parse().map_err(|_| format!("--dispatch-flop {value}: no count"))?;
                parsed.dispatch_flop = Some(flop);
            }
            "--json" => parsed.json = Some(value),
            _ => return Err(format!("unknown argument {name}")),
        }
    }
    if let Some(short) = parsed.lengths.iter().find(|length| **length < LEAST_LENGTH) {
        return Err(format!("--lengths {short}: the timed steps need {LEAST_LENGTH} tokens"));
    }
    parsed.size.layers = layers.unwrap_or(parsed.size.layers);
    parsed.size.vocab = vocab.unwrap_or(parsed.size.vocab);
    Ok(parsed)
}

/// Room for the steps that are timed.
const LEAST_LENGTH: usize = 64;
const PAGE: usize = 64;

pub(crate) async fn run(args: &Args, out: &mut impl Write) -> Result<(), String> {
    let text = |error: latten::Error| error.to_string();
    let start = std::time::Instant::now();
    let options = GpuOptions {
        adapter: args.adapter.clone(),
        tier: Some(args.tier),
        profile: args.profile,
        dispatch_flop: args.dispatch_flop,
        ..Default::default()
    };
    let gpu = Gpu::with_options(options).await.map_err(text)?;
    let block = Block::new(&gpu, DType::F16);
    let ceilings = ceilings::measure(&gpu, &block).await.map_err(text)?;
    let size = &args.size;
    let mut table = Table::new(&gpu, args, ceilings);
    table.print_head(out).map_err(io)?;
    let weights = Weights::new(size);
    for variant in &args.variants {
        let most = args.lengths.iter().copied().chain([args.tokens]).max().unwrap_or(1);
        let config = size.config(variant, most).map_err(text)?;
        let decoder = weights.decoder(&gpu, size, &config)?;
        prefills(args, variant, &decoder, &mut table, out).await?;
        decodes(args, variant, (&gpu, &decoder), &block, (&mut table, out)).await?;
    }
    writeln!(out, "\n{:.0} s in all", start.elapsed().as_secs_f64()).map_err(io)?;
    match &args.json {
        Some(path) => table.write(path),
        None => Ok(()),
    }
}

pub(crate) fn io(error: std::io::Error) -> String {
    error.to_string()
}

async fn prefills(
    args: &Args,
    variant: &str,
    decoder: &Decoder,
    table: &mut Table,
    out: &mut impl Write,
) -> Result<(), String> {
    let (gpu, config) = (decoder.gpu(), decoder.config());
    let chunk = args.chunk.unwrap_or(args.tokens).min(args.tokens);
    let flop = measure::prefill_flop(&args.size, config, args.tokens);
    let forms: &[(&'static str, PrefillPath)] = match decoder.keeps_explicit() {
        true => &FORMS,
        false => &[("-", PrefillPath::Auto)],
    };
    for (path, prefill) in forms.iter().filter(|form| args.paths.is_empty() || args.paths.iter().any(|p| p == form.0)) {
        let options = SessionOptions { chunk, page_size: PAGE, prefill: *prefill, ..Default::default() };
        let measured = measure::prefill(decoder, options, (args.tokens, args.profile), Repeats::of(gpu)).await;
        let (seconds, dispatches) = measured.map_err(|e| e.to_string())?;
        let row = PrefillRow::new(table, (variant, path), (args.tokens, chunk), (flop, seconds));
        table.add_prefill(row, out).map_err(io)?;
        if args.profile {
            report::print_profile(out, &dispatches).map_err(io)?;
        }
    }
    // On software adapters that takes minutes.
    if decoder.keeps_explicit() && !gpu.capabilities().is_software() {
        let row = break_even(variant, decoder, chunk.min(1024)).await.map_err(|e| e.to_string())?;
        table.add_break_even(row, out).map_err(io)?;
    }
    Ok(())
}

/// From how many new tokens on the explicit form is faster, behind 4,096 others.
async fn break_even(variant: &str, decoder: &Decoder, chunk: usize) -> latten::Result<BreakEvenRow> {
    let most = decoder.config().max_positions.min(4096 + chunk);
    let options = SessionOptions { chunk, cache_tokens: most, page_size: PAGE, ..Default::default() };
    let measured = Session::new(decoder, options)?.measure_prefill().await?;
    Ok(BreakEvenRow { variant: variant.into(), by_flop: decoder.config().prefill_break_even(), measured })
}

async fn decodes(
    args: &Args,
    variant: &str,
    (gpu, decoder): (&Gpu, &Decoder),
    block: &Block,
    (table, out): (&mut Table, &mut impl Write),
) -> Result<(), String> {
    let text = |error: latten::Error| error.to_string();
    let config = decoder.config();
    let token_bytes = measure::token_bytes(config).map_err(text)?;
    let fits = |length: usize| {
        let pages = (length * config.layers * token_bytes) as f64;
        (args.memory_bytes / pages) as usize
    };
    let mut cases = Vec::new();
    for &length in &args.lengths {
        cases.extend(args.batches.iter().map(|batch| (*batch, (*batch).min(fits(length)), length)));
    }
    let most = cases.iter().map(|(_, batch, length)| batch * length.next_multiple_of(PAGE)).max().unwrap_or(0);
    let max_batch = args.batches.iter().copied().max().unwrap_or(1);
    if most == 0 {
        return Ok(());
    }
    let options =
        SessionOptions { max_batch, chunk: max_batch, cache_tokens: most, page_size: PAGE, ..Default::default() };
    let mut session = measure::filled(gpu, decoder, options, block).map_err(text)?;
    let weight_bytes = 2 * (args.size.block_elements(config) + config.vocab_size * config.hidden_size);
    for (wanted, batch, length) in cases.into_iter().filter(|case| case.1 > 0) {
        let seconds = measure::decode(&mut session, batch, length, Repeats::of(gpu)).await.map_err(text)?;
        let bytes = weight_bytes + batch * length * config.layers * token_bytes;
        let row = DecodeRow::new(table, variant, (batch, wanted), (length, token_bytes), (bytes, seconds));
        table.add_decode(row, out).map_err(io)?;
    }
    Ok(())
}
