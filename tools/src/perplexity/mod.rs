//! How well models predict a text: bits per byte, and what computing that takes.
//!
//! `cargo run --release -p latten-tools -- perplexity tests/vectors/held_out.txt` in a checkout of the repository, which has the
//! text and the models;
//! `.. tests/vectors/held_out.txt --variant gla --window 512 --stride 256 --kv-dtype i4`

use crate::common::arguments::{count, dtypes, forms, weight_types, Checked, CACHE_DTYPES, VARIANTS, WEIGHT_TYPES};
use crate::common::{loading, repository};
use latten::model::{PrefillPath, Session, SessionOptions, Tokenizer};
use latten::nn::WeightType;
use latten::{DType, Gpu, GpuOptions, SeqId};
use std::io::{self, Write};
use std::time::{Duration, Instant};

pub(crate) mod windows;

use windows::Window;

/// How well models predict a text: bits per byte, and what computing that takes
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The text
    #[arg(value_name = "TEXT_FILE")]
    text: String,
    /// Of the example models, with commas between
    #[arg(long, value_delimiter = ',', value_name = "NAMES", default_values = VARIANTS, value_parser = VARIANTS)]
    variant: Vec<String>,
    /// Where the folders of the variants are
    #[arg(long, value_name = "DIR", default_value = "examples/models")]
    models: String,
    /// A model folder instead; may be given several times
    #[arg(long, value_name = "DIR", conflicts_with = "variant")]
    model: Vec<String>,
    /// Take the first N bytes of the text alone
    #[arg(long, value_name = "N", value_parser = count)]
    bytes: Option<usize>,
    /// Tokens that are fed together at most; without it as many as the model has positions
    #[arg(long, value_name = "N", value_parser = count)]
    window: Option<usize>,
    /// Tokens from one window's start to the next; without it a window. A smaller one gives the tokens of later windows at
    /// least window - stride tokens before them. Each token but the first of the text counts once in any case
    #[arg(long, value_name = "N", value_parser = count)]
    stride: Option<usize>,
    /// Windows side by side
    #[arg(long, value_name = "N", default_value = "4", value_parser = count)]
    batch: usize,
    /// Tokens in a step, over all windows
    #[arg(long, value_name = "N", default_value = "512", value_parser = count)]
    chunk: usize,
    /// Form of prompts, of GLA and MLA
    #[arg(long, value_name = "FORM", default_value = "auto", value_parser = forms())]
    prefill: PrefillPath,
    /// Of weights
    #[arg(long, default_value = "f16", value_parser = weight_types(WEIGHT_TYPES))]
    dtype: WeightType,
    /// Products of few rows by dot products of bytes, where weights are i8 or blocks: less exact (with --batch times --chunk of 8 and less)
    #[arg(long)]
    integer_dot: bool,
    /// Of the KV cache; without it as --dtype, and f16 for integers
    #[arg(long, value_name = "DTYPE", value_parser = dtypes(CACHE_DTYPES))]
    kv_dtype: Option<DType>,
    /// Take the GPU whose description contains this
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
}

impl Args {
    /// What the cache is in.
    fn cache(&self) -> DType {
        self.kv_dtype.unwrap_or(if self.dtype == DType::F32.into() { DType::F32 } else { DType::F16 })
    }
}

impl Checked for Args {
    fn check(&self) -> Result<(), String> {
        match self.chunk < self.batch {
            true => Err(format!("--chunk {} is less than a token for each of {} windows", self.chunk, self.batch)),
            false => Ok(()),
        }
    }
}

impl Args {
    fn folders(&self) -> Vec<String> {
        match self.model.is_empty() {
            true => self.variant.iter().map(|name| format!("{}/{name}", self.models)).collect(),
            false => self.model.clone(),
        }
    }
}

/// What one model makes of the text.
#[derive(Debug)]
pub(crate) struct Report {
    model: String,
    window: usize,
    stride: usize,
    /// Code length of all tokens but the first.
    pub(crate) bits: f64,
    /// Tokens and bytes that this is the code of.
    pub(crate) tokens: usize,
    pub(crate) bytes: usize,
    /// Tokens that went through the model: with a stride, some more than once.
    pub(crate) fed: usize,
    time: Duration,
    /// Of the pages that sequences held, at most.
    pub(crate) cache_bytes: usize,
}

impl Report {
    pub(crate) fn bits_per_byte(&self) -> f64 {
        self.bits / self.bytes as f64
    }
}

fn read_text(args: &Args) -> Result<Vec<u8>, String> {
    let mut text = std::fs::read(&args.text).map_err(|e| format!("{}: {e}", args.text))?;
    match args.bytes {
        Some(bytes) if bytes > text.len() => {
            return Err(format!("--bytes {bytes}: {} has {}", args.text, text.len()));
        }
        bytes => text.truncate(bytes.unwrap_or(text.len())),
    }
    Ok(text)
}

async fn run_model(gpu: &Gpu, folder: &str, text: &[u8], args: &Args) -> Result<Report, String> {
    let failed = |e: latten::Error| format!("{folder}: {e}");
    let tokenizer = Tokenizer::from_folder(folder).map_err(failed)?;
    let tokens = tokenizer.encode(text).map_err(failed)?;
    let decoder = loading::load(gpu, folder, args.dtype, args.integer_dot).map_err(failed)?;
    let most = decoder.config().max_positions;
    let window = args.window.unwrap_or(most);
    let stride = args.stride.unwrap_or(window);
    if window > most {
        return Err(format!("--window {window}: {folder} has {most} positions"));
    }
    if stride > window {
        return Err(format!("--stride {stride}: more than the window of {window}"));
    }
    if tokens.len() < 2 {
        return Err(format!("{}: {} tokens, of which the first is never predicted", args.text, tokens.len()));
    }
    // Of the first token, which is not predicted: one that only begins a text has none.
    let first_bytes = if tokenizer.is_bytes() { 1 } else { tokenizer.decode(&tokens[..1]).len() };
    let all = windows::cut(tokens.len(), window, stride);
    let longest = all.iter().map(|w| w.input.len()).max().unwrap_or(1);
    let batch = args.batch.min(all.len());
    let mut options = SessionOptions {
        max_batch: batch,
        chunk: args.chunk,
        kv_dtype: args.cache(),
        prefill: if decoder.keeps_explicit() { args.prefill } else { PrefillPath::Auto },
        ..Default::default()
    };
    options.cache_tokens = batch.saturating_mul(longest.next_multiple_of(options.page_size));
    let mut session = Session::new(&decoder, options).map_err(failed)?;
    // Before any timing.
    session.warm_up().await.map_err(failed)?;

    let mut report = Report {
        model: folder.into(),
        window,
        stride,
        bits: 0.0,
        tokens: tokens.len() - 1,
        bytes: text.len() - first_bytes,
        fed: all.iter().map(|w| w.input.len()).sum(),
        time: Duration::ZERO,
        cache_bytes: 0,
    };
    let start = Instant::now();
    for windows in all.chunks(batch) {
        read_windows(&mut session, &tokens, windows, args.chunk / batch, &mut report)
            .await
            .map_err(|e| format!("{folder}: {e}"))?;
    }
    report.time = start.elapsed();
    Ok(report)
}

/// Feeds windows side by side, `piece` tokens of each in a call, so that no more logits than a step's are on the host.
async fn read_windows(
    session: &mut Session,
    tokens: &[u32],
    windows: &[Window],
    piece: usize,
    report: &mut Report,
) -> Result<(), String> {
    let vocab = session.decoder().config().vocab_size;
    let page_bytes = session.cache().token_bytes() * SessionOptions::default().page_size;
    let ids: Vec<SeqId> = windows.iter().map(|_| session.insert()).collect();
    let longest = windows.iter().map(|w| w.input.len()).max().unwrap_or(0);
    for at in (0..longest).step_by(piece) {
        let end = |w: &Window| w.input.end.min(w.input.start + at + piece);
        let open: Vec<(SeqId, &Window)> =
            ids.iter().copied().zip(windows).filter(|(_, w)| w.input.len() > at).collect();
        let batch: Vec<(SeqId, &[u32])> =
            open.iter().map(|(id, w)| (*id, &tokens[w.input.start + at..end(w)])).collect();
        // Where all is context, nothing is read back but a row.
        let counts = open.iter().any(|(_, w)| end(w) > w.first);
        let fed = if counts { session.all_logits(&batch).await } else { session.logits(&batch).await };
        let fed = fed.map_err(|e| e.to_string())?;
        report.cache_bytes = report.cache_bytes.max(session.stats().used * page_bytes);
        if !counts {
            continue;
        }
        for ((_, w), logits) in open.iter().zip(&fed) {
            for (row, logits) in
                (w.input.start + at..).zip(logits.chunks_exact(vocab)).filter(|(row, _)| *row >= w.first)
            {
                let bits = code_length(logits, tokens[row + 1]);
                report.bits += bits.ok_or_else(|| format!("a logit after token {row} of the text is not finite"))?;
            }
        }
    }
    ids.into_iter().try_for_each(|id| session.remove(id)).map_err(|e| e.to_string())
}

/// Bits of a token under the softmax of `logits`, summed in f64; none where a logit is not finite.
pub(crate) fn code_length(logits: &[f32], token: u32) -> Option<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !logits.iter().all(|l| l.is_finite()) {
        return None;
    }
    let sum: f64 = logits.iter().map(|l| (f64::from(*l) - f64::from(most)).exp()).sum();
    let chosen = f64::from(*logits.get(token as usize)?) - f64::from(most);
    Some((sum.ln() - chosen) / std::f64::consts::LN_2)
}

/// One report a model, and the table of them to `out`.
pub(crate) async fn run(args: &Args, out: &mut impl Write) -> Result<Vec<Report>, String> {
    let folders = args.folders();
    folders.iter().chain([&args.text]).try_for_each(repository::here)?;
    let text = read_text(args)?;
    let options = GpuOptions { adapter: args.adapter.clone(), ..Default::default() };
    let gpu = Gpu::with_options(options).await.map_err(|e| e.to_string())?;
    let mut reports = Vec::new();
    for model in &folders {
        reports.push(run_model(&gpu, model, &text, args).await?);
    }
    match print(out, &gpu, args, &reports) {
        // A reader that has gone away is no error.
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(format!("writing the table: {e}")),
        _ => Ok(reports),
    }
}

fn print(out: &mut impl Write, gpu: &Gpu, args: &Args, reports: &[Report]) -> io::Result<()> {
    let cache = args.cache();
    writeln!(out, "{}, {} weights, {cache} cache", gpu.capabilities().adapter, args.dtype)?;
    writeln!(out, "{}, batch {}, chunk {}", args.text, args.batch, args.chunk)?;
    writeln!(
        out,
        "bits per byte  per token  perplexity    tokens     bytes  window  stride  fed tok/s  peak cache B  model"
    )?;
    for r in reports {
        let per_token = r.bits / r.tokens as f64;
        writeln!(
            out,
            "{:>13.6} {:>10.4} {:>11.4} {:>9} {:>9} {:>7} {:>7} {:>10.0} {:>13}  {}",
            r.bits_per_byte(),
            per_token,
            per_token.exp2(),
            r.tokens,
            r.bytes,
            r.window,
            r.stride,
            r.fed as f64 / r.time.as_secs_f64(),
            r.cache_bytes,
            r.model
        )?;
    }
    Ok(())
}

pub(crate) fn main(args: &Args) -> Result<(), String> {
    pollster::block_on(run(args, &mut io::stdout().lock())).map(|_| ())
}
