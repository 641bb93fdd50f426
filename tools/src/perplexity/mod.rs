//! How well models predict a text: bits per byte, and what computing that takes.
//!
//! `cargo run --release -p latten-tools -- perplexity tests/vectors/held_out.txt` in a checkout of the repository, which has the
//! text and the models;
//! `.. tests/vectors/held_out.txt --variant gla --window 512 --stride 256 --kv-dtype i4`

use crate::common::{loading, prefill, repository, warnings};
use latten::model::{PrefillPath, Session, SessionOptions, Tokenizer};
use latten::{DType, Gpu, GpuOptions, SeqId};
use std::io::{self, Write};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, Instant};

pub(crate) mod windows;

use prefill::prefill_path;
use windows::Window;

const USAGE: &str = "usage: perplexity TEXT_FILE [options]

  --variant NAMES    of gqa, gta, gla and mla, with commas between; default: all four in turn
  --models DIR       where the folders of the variants are; default examples/models
  --model DIR        a model folder instead; may be given several times
  --bytes N          take the first N bytes of the text alone
  --window N         tokens that are fed together at most; default: as many as the model has positions
  --stride N         tokens from one window's start to the next; default: a window. A smaller one gives the tokens of
                     later windows at least window - stride tokens before them. Each token but the first of the text
                     counts once in any case
  --batch N          windows side by side; default 4
  --chunk N          tokens in a step, over all of them; default 512
  --prefill FORM     GLA and MLA: absorbed, explicit or auto; default auto
  --dtype DTYPE      f16, f32 or i8: of weights; default f16
  --kv-dtype DTYPE   f32, f16, bf16, i8 or i4: of the KV cache; default as the weights, f16 for i8
  --adapter NAME     take the GPU whose description contains this";

const VARIANTS: [&str; 4] = ["gqa", "gta", "gla", "mla"];

pub(crate) struct Args {
    text: String,
    models: Vec<String>,
    bytes: Option<usize>,
    window: Option<usize>,
    stride: Option<usize>,
    batch: usize,
    chunk: usize,
    prefill: PrefillPath,
    dtype: DType,
    kv_dtype: Option<DType>,
    adapter: Option<String>,
}

pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Args, String> {
    let (mut text, mut folder, mut variants) = (None, String::from("examples/models"), None);
    let mut parsed = Args {
        text: String::new(),
        models: Vec::new(),
        bytes: None,
        window: None,
        stride: None,
        batch: 4,
        chunk: 512,
        prefill: PrefillPath::Auto,
        dtype: DType::F16,
        kv_dtype: None,
        adapter: None,
    };
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} wants a value"));
        match arg.as_str() {
            "--variant" => variants = Some(value()?),
            "--models" => folder = value()?,
            "--model" => parsed.models.push(value()?),
            "--bytes" => parsed.bytes = Some(count(&arg, &value()?)?),
            "--window" => parsed.window = Some(count(&arg, &value()?)?),
            "--stride" => parsed.stride = Some(count(&arg, &value()?)?),
            "--batch" => parsed.batch = count(&arg, &value()?)?,
            "--chunk" => parsed.chunk = count(&arg, &value()?)?,
            "--adapter" => parsed.adapter = Some(value()?),
            "--dtype" => parsed.dtype = dtype(&arg, &value()?, &[DType::F16, DType::F32, DType::I8])?,
            "--kv-dtype" => {
                let all = [DType::F32, DType::F16, DType::BF16, DType::I8, DType::I4];
                parsed.kv_dtype = Some(dtype(&arg, &value()?, &all)?);
            }
            "--prefill" => parsed.prefill = prefill_path(&value()?)?,
            _ if arg.starts_with('-') => return Err(format!("unknown option {arg}")),
            _ if text.is_none() => text = Some(arg),
            _ => return Err(format!("unexpected argument {arg}")),
        }
    }
    parsed.text = text.ok_or("no text file given")?;
    match variants {
        Some(_) if !parsed.models.is_empty() => return Err("--model and --variant exclude each other".into()),
        Some(names) => {
            for name in names.split(',') {
                if !VARIANTS.contains(&name) {
                    return Err(format!("--variant {name}: wanted gqa, gta, gla or mla"));
                }
                parsed.models.push(format!("{folder}/{name}"));
            }
        }
        None if parsed.models.is_empty() => parsed.models = VARIANTS.map(|name| format!("{folder}/{name}")).to_vec(),
        None => {}
    }
    if parsed.chunk < parsed.batch {
        return Err(format!("--chunk {} is less than a token for each of {} windows", parsed.chunk, parsed.batch));
    }
    Ok(parsed)
}

fn count(option: &str, text: &str) -> Result<usize, String> {
    usize::from_str(text).ok().filter(|n| *n > 0).ok_or(format!("{option} {text}: not a number it can take"))
}

fn dtype(option: &str, name: &str, all: &[DType]) -> Result<DType, String> {
    let names = || all.iter().map(DType::to_string).collect::<Vec<_>>().join(", ");
    all.iter()
        .find(|dtype| dtype.to_string() == name)
        .copied()
        .ok_or_else(|| format!("{option} {name}: not of {}", names()))
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
    let decoder = loading::load(gpu, folder, args.dtype).map_err(failed)?;
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
        kv_dtype: args.kv_dtype.unwrap_or(if args.dtype == DType::I8 { DType::F16 } else { args.dtype }),
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
    args.models.iter().chain([&args.text]).try_for_each(repository::here)?;
    let text = read_text(args)?;
    let options = GpuOptions { adapter: args.adapter.clone(), ..Default::default() };
    let gpu = Gpu::with_options(options).await.map_err(|e| e.to_string())?;
    let mut reports = Vec::new();
    for model in &args.models {
        reports.push(run_model(&gpu, model, &text, args).await?);
    }
    match print(out, &gpu, args, &reports) {
        // A reader that has gone away is no error.
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(format!("writing the table: {e}")),
        _ => Ok(reports),
    }
}

fn print(out: &mut impl Write, gpu: &Gpu, args: &Args, reports: &[Report]) -> io::Result<()> {
    let cache = args.kv_dtype.unwrap_or(if args.dtype == DType::I8 { DType::F16 } else { args.dtype });
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

pub(crate) fn main() -> ExitCode {
    warnings::print_warnings();
    let args = match parse(std::env::args().skip(2)) {
        Ok(args) => args,
        Err(message) => {
            eprintln!("perplexity: {message}\n\n{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    match pollster::block_on(run(&args, &mut io::stdout().lock())) {
        Ok(_) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("perplexity: {message}");
            ExitCode::FAILURE
        }
    }
}
