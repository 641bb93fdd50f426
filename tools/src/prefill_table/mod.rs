//! Times prompts and decode steps of whole models with random weights, variant beside variant.
//!
//!     cargo run --release -p latten-tools -- prefill_table --help
//!
//! The models are the paper's (`--size`, default 1471m: 24 layers, 16 heads of 128), Llama-style with a SwiGLU of 2.75
//! times the stream, matrices in f16 or `--weights`, cache in f16. Tables:
//!
//! - Prefill: a prompt of `--tokens` in steps of `--chunk`, of GLA and MLA in each form (`PrefillPath`), from the call to
//!   its first token; TFLOP/s of the FLOP that `measure::prefill_flop` counts, and their percent of the matrix units'
//!   rate, or of f32 multiply-adds without them.
//!   For these, on a GPU, from how many new tokens on the explicit form has fewer FLOP and from how many it is faster
//!   (`Session::measure_prefill`), behind a context of 4,096.
//! - Decode: tokens per second of `--batch` sequences of `--lengths` tokens, whose rows are random numbers written into the
//!   cache, by `Session::stream`; in brackets the time of a step whose tokens are on the host before the next begins. GB/s of weights and cached rows, and their percent of a streaming read. A batch whose cache would exceed
//!   `--memory` is cut to what fits, and marked.
//!
//! - Cold start: from loading to the first token of the prompt, and which kernels are compiled on the way; of the first variant
//!   and form, since later ones find some kernels compiled. With `--profile` and in `--json`.
//!
//! Both ceilings are measured in the same run. Times are of the host's clock, medians, after half a second of the same
//! work. `--profile` prints the dispatches of a prompt by kernel, and the longest of each, and where the time of a decode step
//! goes, which `--json` writes too: what the host records, finishes, submits and waits for, what the device does from the first
//! dispatch to the last, and how long it is idle. `--dispatch-flop` is what dispatches may hold (`GpuOptions::dispatch_flop`).

mod measure;
#[path = "../../../examples/shared/random_models.rs"]
pub(crate) mod models;
mod report;

use crate::common::arguments::{count, dtypes, Checked, TierName, FORMS};
use crate::common::cold_start::ColdStart;
use crate::common::facts::Facts;
use crate::common::{ceilings, timing};
use latten::model::{Decoder, PrefillPath, Session, SessionOptions};
use latten::{DType, Gpu, GpuOptions};
use measure::{Prefill, Repeats};
use models::{Size, Weights, ALL_VARIANTS, SIZES, VARIANTS};
use report::{BreakEvenRow, DecodeRow, PrefillRow, Table};
use std::io::Write;
use std::time::Duration;
use timing::Block;

/// Room for the steps that are timed.
const LEAST_LENGTH: usize = 64;

const PAGE: usize = 64;

/// Times of prompts and decode steps of whole models with random weights, variant beside variant
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Take the GPU whose description contains this
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    /// Of the kernels
    #[arg(long, default_value = "matrix")]
    tier: TierName,
    /// The paper's models
    #[arg(long, default_value = "1471m", value_parser = SIZES.map(|size| size.name))]
    size: String,
    /// Without it those of the size
    #[arg(long, value_name = "N", value_parser = number)]
    layers: Option<usize>,
    /// Tokens of the vocabulary; without it those of the size
    #[arg(long, value_name = "N", value_parser = number)]
    vocab: Option<usize>,
    /// Of the matrices
    #[arg(long, value_name = "DTYPE", default_value = "f16", value_parser = dtypes(["f16", "i8"]))]
    weights: DType,
    /// Of attention
    #[arg(long, value_delimiter = ',', default_values = VARIANTS, value_parser = ALL_VARIANTS)]
    variants: Vec<String>,
    /// Forms of prompts, - for variants that have one form alone; without it all
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true, value_parser = ["-", "absorbed", "explicit", "auto"])]
    paths: Vec<String>,
    /// Of the prompt
    #[arg(long, value_name = "N", default_value = "2048", value_parser = number)]
    tokens: usize,
    /// Tokens in a step of the prompt; without it all
    #[arg(long, value_name = "N", value_parser = number)]
    chunk: Option<usize>,
    /// Sequences of a decode step
    #[arg(long, value_delimiter = ',', value_name = "N,N..", default_values = ["1", "8", "64"], value_parser = number)]
    batch: Vec<usize>,
    /// Steps whose median counts; without it 24, of software adapters 2
    #[arg(long, value_name = "N", value_parser = steps)]
    steps: Option<usize>,
    /// Tokens in the cache, from 64 on
    #[arg(long, value_delimiter = ',', value_name = "N,N..", default_values = ["4096", "65536"], value_parser = length)]
    lengths: Vec<usize>,
    /// The cache's most (GiB). The default is of a card of 80 GB, so that a layer of the widest cache still is one binding of
    /// 2 GiB
    #[arg(long, value_name = "GIB", default_value = "46", value_parser = gib)]
    memory: f64,
    /// Print the dispatches of a prompt by kernel and the longest of each, where the time of decode steps goes, and that of a
    /// cold start
    #[arg(long)]
    profile: bool,
    /// FLOP that a dispatch may hold; without it latten's own number
    #[arg(long, value_name = "N")]
    dispatch_flop: Option<u64>,
    /// Write what was measured
    #[arg(long, value_name = "FILE")]
    json: Option<String>,
}

impl Checked for Args {}

impl Args {
    /// The model, cut as asked for.
    pub(crate) fn model_size(&self) -> Size {
        let mut size = SIZES.into_iter().find(|size| size.name == self.size).unwrap_or(SIZES[3]);
        size.layers = self.layers.unwrap_or(size.layers);
        size.vocab = self.vocab.unwrap_or(size.vocab);
        size
    }
}

fn number(text: &str) -> Result<usize, String> {
    count(text).ok().filter(|n| *n <= 1 << 20).ok_or_else(|| "not a number from 1 to 2^20".into())
}

fn steps(text: &str) -> Result<usize, String> {
    number(text)
        .ok()
        .filter(|n| *n + 2 <= LEAST_LENGTH)
        .ok_or_else(|| format!("not a number from 1 to {}", LEAST_LENGTH - 2))
}

fn length(text: &str) -> Result<usize, String> {
    let length = number(text)?;
    match length < LEAST_LENGTH {
        true => Err(format!("the timed steps need {LEAST_LENGTH} tokens")),
        false => Ok(length),
    }
}

fn gib(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|gib: &f64| *gib > 0.0 && gib.is_finite()).ok_or_else(|| "not a size above 0".into())
}

pub(crate) fn main(args: &Args) -> Result<(), String> {
    pollster::block_on(run(args, &mut std::io::stdout()))
}

pub(crate) async fn run(args: &Args, out: &mut impl Write) -> Result<(), String> {
    let text = |error: latten::Error| error.to_string();
    let start = std::time::Instant::now();
    let options = GpuOptions {
        adapter: args.adapter.clone(),
        tier: Some(args.tier.into()),
        profile: args.profile,
        dispatch_flop: args.dispatch_flop,
        ..Default::default()
    };
    let gpu = Gpu::with_options(options).await.map_err(text)?;
    let open = start.elapsed();
    let block = Block::new(&gpu, DType::F16);
    let ceilings = ceilings::measure(&gpu, &block).await.map_err(text)?;
    let size = &args.model_size();
    let mut table = Table::new(&gpu, args, ceilings, open);
    table.print_head(out).map_err(io)?;
    let weights = Weights::new(size);
    for variant in &args.variants {
        let most = args.lengths.iter().copied().chain([args.tokens]).max().unwrap_or(1);
        let config = size.config(variant, most).map_err(text)?;
        gpu.take_compile_times();
        let (decoder, load) = weights.decoder(&gpu, size, &config, args.weights)?;
        prefills(args, variant, (&decoder, load), &mut table, out).await?;
        decodes(args, variant, (&gpu, &decoder), &block, (&mut table, out)).await?;
    }
    writeln!(out, "\n{:.0} s in all", start.elapsed().as_secs_f64()).map_err(io)?;
    // After the last row, while the clocks are those of a busy device.
    table.facts = Facts::of(&gpu);
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
    (decoder, load): (&Decoder, Duration),
    table: &mut Table,
    out: &mut impl Write,
) -> Result<(), String> {
    let (gpu, config) = (decoder.gpu(), decoder.config());
    let chunk = args.chunk.unwrap_or(args.tokens).min(args.tokens);
    let flop = measure::prefill_flop(&args.model_size(), config, args.tokens);
    let forms: &[(&'static str, PrefillPath)] = match decoder.keeps_explicit() {
        true => &FORMS,
        false => &[("-", PrefillPath::Auto)],
    };
    for (path, prefill) in forms.iter().filter(|form| args.paths.is_empty() || args.paths.iter().any(|p| p == form.0)) {
        let options = SessionOptions { chunk, page_size: PAGE, prefill: *prefill, ..Default::default() };
        let measured = measure::prefill(decoder, options, (args.tokens, args.profile), Repeats::of(gpu)).await;
        let Prefill { seconds, cold, dispatches } = measured.map_err(|e| e.to_string())?;
        let row = PrefillRow::new(table, (variant, path), (args.tokens, chunk), (flop, seconds));
        table.add_prefill(row, out).map_err(io)?;
        if args.profile {
            report::print_profile(out, &dispatches).map_err(io)?;
        }
        if table.cold_start.is_none() {
            let cold = ColdStart::new(load, load + cold, args.tokens, &gpu.take_compile_times());
            table.add_cold_start(variant, path, cold, args.profile.then_some(&mut *out)).map_err(io)?;
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
        (args.memory * f64::from(1 << 30) / pages) as usize
    };
    let mut cases = Vec::new();
    for &length in &args.lengths {
        cases.extend(args.batch.iter().map(|batch| (*batch, (*batch).min(fits(length)), length)));
    }
    let most = cases.iter().map(|(_, batch, length)| batch * length.next_multiple_of(PAGE)).max().unwrap_or(0);
    let max_batch = args.batch.iter().copied().max().unwrap_or(1);
    if most == 0 {
        return Ok(());
    }
    let options =
        SessionOptions { max_batch, chunk: max_batch, cache_tokens: most, page_size: PAGE, ..Default::default() };
    let mut session = measure::filled(gpu, decoder, options, block).map_err(text)?;
    let repeats = Repeats { steps: args.steps.unwrap_or(Repeats::of(gpu).steps), ..Repeats::of(gpu) };
    let weight_bytes = args.weights.size_bits() / 8
        * (args.model_size().block_elements(config) + config.vocab_size * config.hidden_size);
    for (wanted, batch, length) in cases.into_iter().filter(|case| case.1 > 0) {
        let step = measure::decode(&mut session, batch, length, repeats).await.map_err(text)?;
        let bytes = weight_bytes + batch * length * config.layers * token_bytes;
        let mut row = DecodeRow::new(table, variant, (batch, wanted), (length, token_bytes), (bytes, step));
        if args.profile || args.json.is_some() {
            let steps = repeats.steps.min(LEAST_LENGTH - 3);
            let found = measure::breakdowns(&mut session, (batch, length), steps, args.profile).await;
            row.breakdown = found.map_err(text)?;
        }
        table.add_decode(row, out).map_err(io)?;
    }
    Ok(())
}
