//! Text from the trained example models, one per variant of attention, with what each costs.
//!
//! `cargo run --release --example generate -- --prompt "ROMEO:" --tokens 200` in a checkout of the repository, which has the
//! models; elsewhere with `--model DIR`.

use latten::cache::{saved_info, LoadedSequence, SaveSequence};
use latten::model::{continue_sequence, GenerateOptions, PrefillPath, Session, SessionOptions, Tokenizer};
use latten::nn::Sampling;
use latten::{DType, DispatchTime, Gpu, GpuOptions, SeqId, Tier};
use std::fs::File;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Instant;

mod guesses;
pub(crate) mod loading;
#[path = "../shared/prefill.rs"]
mod prefill;
mod profile;
#[path = "../shared/repository.rs"]
mod repository;
mod several;
#[path = "../shared/warnings.rs"]
mod warnings;

use guesses::Guesses;
use prefill::prefill_path;
use profile::{print_profile, profiled};
use several::Several;

const USAGE: &str = "usage: generate [options]

  --variant NAME     gqa, gta, gla or mla; default: all four in turn
  --model DIR        a model folder instead
  --models DIR       where the folders of the variants are; default examples/models
  --prompt TEXT      default \"ROMEO:\\n\"
  --tokens N         tokens to make; default 200
  --seed N           default 0
  --temperature T    0 is greedy; default 0.8
  --top-p P          default 0.95
  --dtype f16|f32    of weights and KV cache; default f16
  --weights DTYPE    f16, f32 or i8: of weights alone
  --kv-dtype DTYPE   f32, f16, bf16, i8 or i4: of the KV cache alone
  --beams N          beam search: the N most probable texts found; instead of drawing
  --best-of N        draw N texts, the most probable first
  --length-penalty P with these: texts are ordered by log-probability / length^P; default 1
  --stop N           with these: a text ends with this token, as 10, the end of a line; may be given several times;
                     default: those that end the model's texts
  --window N         a token sees the last N tokens alone, and the cache holds no more
  --keep-first N     and the first N, with --window
  --prefill FORM     of prompts, GLA and MLA: absorbed, explicit or auto; default auto
  --draft DIR        guess tokens ahead with this smaller model, as examples/models/draft: the text is no other
  --lookup           guess them from the text itself
  --guesses N        with these: most guesses per step; default 4
  --profile          dispatches, submits and microseconds per token, and what each kernel takes of it
  --save-session FILE  keep the model's state there at the end; with --model or --variant
  --load-session FILE  go on from there: before the prompt, whose default is then none
  --pipelines FILE   keep compiled pipelines there, for the next start
  --adapter NAME     take the GPU whose description contains this";

pub(crate) struct Args {
    models: Vec<String>,
    prompt: String,
    options: GenerateOptions,
    dtype: DType,
    weights: Option<DType>,
    kv_dtype: Option<DType>,
    several: Option<Several>,
    stop: Vec<u32>,
    window: Option<usize>,
    keep_first: usize,
    prefill: PrefillPath,
    guesses: Guesses,
    profile: bool,
    save: Option<String>,
    load: Option<String>,
    pipelines: Option<String>,
    adapter: Option<String>,
}

pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Args, String> {
    let (mut folder, mut variant, mut model, mut prompt) = (String::from("examples/models"), None, None, None);
    let mut parsed = Args {
        models: Vec::new(),
        prompt: String::new(),
        options: GenerateOptions {
            max_new_tokens: 200,
            sampling: Sampling { temperature: 0.8, top_p: 0.95 },
            ..Default::default()
        },
        dtype: DType::F16,
        weights: None,
        kv_dtype: None,
        several: None,
        stop: Vec::new(),
        window: None,
        keep_first: 0,
        prefill: PrefillPath::Auto,
        guesses: Guesses::default(),
        profile: false,
        save: None,
        load: None,
        pipelines: None,
        adapter: None,
    };
    let mut flags = several::Flags::default();
    while let Some(arg) = args.next() {
        flags.given.push(arg.clone());
        let mut value = || args.next().ok_or(format!("{arg} wants a value"));
        match arg.as_str() {
            "--variant" => variant = Some(value()?),
            "--model" => model = Some(value()?),
            "--models" => folder = value()?,
            "--prompt" => prompt = Some(value()?),
            "--save-session" => parsed.save = Some(value()?),
            "--load-session" => parsed.load = Some(value()?),
            "--tokens" => parsed.options.max_new_tokens = number(&arg, &value()?)?,
            "--seed" => parsed.options.seed = number(&arg, &value()?)?,
            "--temperature" => parsed.options.sampling.temperature = number(&arg, &value()?)?,
            "--top-p" => parsed.options.sampling.top_p = number(&arg, &value()?)?,
            "--window" => parsed.window = Some(number(&arg, &value()?)?),
            "--keep-first" => parsed.keep_first = number(&arg, &value()?)?,
            "--prefill" => parsed.prefill = prefill_path(&value()?)?,
            "--adapter" => parsed.adapter = Some(value()?),
            "--pipelines" => parsed.pipelines = Some(value()?),
            "--profile" => parsed.profile = true,
            "--draft" => parsed.guesses.draft = Some(value()?),
            "--lookup" => parsed.guesses.lookup = true,
            "--guesses" => parsed.guesses.most = Some(number(&arg, &value()?)?),
            "--weights" => {
                parsed.weights = match value()?.as_str() {
                    "f32" => Some(DType::F32),
                    "f16" => Some(DType::F16),
                    "i8" => Some(DType::I8),
                    other => return Err(format!("--weights {other}: wanted f16, f32 or i8")),
                }
            }
            "--kv-dtype" => {
                let name = value()?;
                let all = [DType::F32, DType::F16, DType::BF16, DType::I8, DType::I4];
                let found = all.into_iter().find(|dtype| dtype.to_string() == name);
                let wanted = || format!("--kv-dtype {name}: wanted f32, f16, bf16, i8 or i4");
                parsed.kv_dtype = Some(found.ok_or_else(wanted)?);
            }
            "--dtype" => {
                parsed.dtype = match value()?.as_str() {
                    "f32" => DType::F32,
                    "f16" => DType::F16,
                    other => return Err(format!("--dtype {other}: wanted f32 or f16")),
                }
            }
            other if flags.take(other, value)? => {}
            _ => return Err(format!("unknown argument {arg}")),
        }
    }
    parsed.several = flags.choose(&parsed)?;
    parsed.stop = std::mem::take(&mut flags.stop);
    parsed.guesses.check(&flags.given)?;
    parsed.prompt = prompt.unwrap_or(if parsed.load.is_some() { "" } else { "ROMEO:\n" }.into());
    if (parsed.prompt.is_empty() && parsed.load.is_none()) || parsed.options.max_new_tokens == 0 {
        return Err("the prompt is empty, or --tokens is 0".into());
    }
    if (parsed.save.is_some() || parsed.load.is_some()) && model.is_none() && variant.is_none() {
        return Err("a session is of one model: --model or --variant".into());
    }
    parsed.models = match (model, variant) {
        (Some(model), None) => vec![model],
        (Some(_), Some(_)) => return Err("--model and --variant exclude each other".into()),
        (None, Some(v)) if !["gqa", "gta", "gla", "mla"].contains(&v.as_str()) => {
            return Err(format!("--variant {v}: wanted gqa, gta, gla or mla"));
        }
        (None, Some(v)) => vec![format!("{folder}/{v}")],
        (None, None) => ["gqa", "gta", "gla", "mla"].map(|v| format!("{folder}/{v}")).to_vec(),
    };
    Ok(parsed)
}

fn number<T: FromStr>(option: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{option} {text}: not a number it can take"))
}

/// What stops the program: a message, or a reader of the output that has gone away.
pub(crate) enum Stop {
    Failed(String),
    ReaderGone,
}

impl From<latten::Error> for Stop {
    fn from(e: latten::Error) -> Self {
        Stop::Failed(e.to_string())
    }
}

impl From<io::Error> for Stop {
    fn from(e: io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::BrokenPipe => Stop::ReaderGone,
            _ => Stop::Failed(format!("writing the text: {e}")),
        }
    }
}

/// One model's line of the closing table.
struct Report {
    variant: &'static str,
    /// Milliseconds to the first token.
    prefill_ms: f64,
    prefill_rate: f64,
    decode_rate: f64,
    kv_elements: usize,
    kv_bytes: usize,
    cached_bytes: usize,
    /// Per token after the first.
    dispatches: f64,
    submits: f64,
    layers: usize,
    /// Of so many tokens more, where they were asked for.
    profile: (Vec<DispatchTime>, usize),
}

/// A session with the sequence that the text goes on from, and all tokens of it; which may be more than it holds.
struct Opened {
    session: Session,
    sequence: SeqId,
    tokens: Vec<u32>,
    tokenizer: Tokenizer,
}

async fn open(gpu: &Gpu, folder: &str, args: &Args) -> Result<Opened, Stop> {
    let tokenizer = Tokenizer::from_folder(folder)?;
    let (saved, before) = args.load.as_ref().map_or(Ok(Default::default()), |path| saved_tokens(path))?;
    let prompt = match args.prompt.is_empty() {
        true => Vec::new(),
        // What begins a text stands at the beginning of the saved one alone.
        false => tokenizer.encode_after(&before, &args.prompt)?,
    };
    let decoder = loading::load(gpu, folder, args.weights.unwrap_or(args.dtype))?;
    let mut options = SessionOptions {
        kv_dtype: args.kv_dtype.unwrap_or(args.dtype),
        cache_tokens: saved + prompt.len() + args.options.max_new_tokens,
        window: args.window,
        keep_first: args.keep_first,
        prefill: if decoder.keeps_explicit() { args.prefill } else { PrefillPath::Auto },
        ..Default::default()
    };
    let each = options.page_size.saturating_mul(2).saturating_add(args.options.max_new_tokens);
    if let Some(several) = &args.several {
        // Each text has its own tokens, in pages of which the first and the last may be part empty.
        options.cache_tokens = options.cache_tokens.saturating_add(several.count().saturating_mul(each));
        options.max_batch = several.count();
    } else if let Some(window) = args.window {
        // What was saved, until the prompt is read; first tokens, window and those of a step, each in pages of its own.
        let seen = args.keep_first.saturating_add(window).saturating_add(options.chunk + 4 * options.page_size);
        options.cache_tokens = options.cache_tokens.min(seen.saturating_add(saved));
    }
    let mut session = Session::new(&decoder, options)?;
    // Before any timing.
    session.warm_up().await?;

    let (sequence, mut tokens) = match &args.load {
        Some(path) => first(session.load_file(path, |_| {}).await?, path)?,
        None => (session.insert(), Vec::new()),
    };
    tokens.extend(prompt);
    Ok(Opened { session, sequence, tokens, tokenizer })
}

async fn run_model(gpu: &Gpu, folder: &str, args: &Args, out: &mut impl Write) -> Result<Report, Stop> {
    let Opened { mut session, sequence, mut tokens, tokenizer } = open(gpu, folder, args).await?;
    let config = session.decoder().config().clone();
    // What is not in the cache yet: the last token of the saved text, and the prompt.
    let input = tokens.get(session.len(sequence)?..).unwrap_or_default().to_vec();

    let mut text = tokenizer.stream();
    writeln!(out, "--- {} ---", config.variant())?;
    tokens.iter().try_for_each(|token| write!(out, "{}", text.push(*token)))?;
    out.flush()?;
    let mut written = Ok(());
    let start = Instant::now();
    let (mut first_at, mut last_at) = (start, start);
    let mut counted = [gpu.counters(); 2];
    let on_token = |token| {
        last_at = Instant::now();
        counted[1] = gpu.counters();
        if first_at == start {
            first_at = last_at;
            counted[0] = counted[1];
        }
        written = write!(out, "{}", text.push(token)).and_then(|()| out.flush());
        if written.is_err() || tokenizer.end_tokens().contains(&token) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let made = continue_sequence(&mut session, sequence, &input, args.options, on_token).await?;
    written?;
    writeln!(out, "{}\n", text.finish())?;
    tokens.extend(&made);
    if let Some(path) = &args.save {
        session.save_file(&[SaveSequence { id: sequence, tokens: &tokens }], path, |_| {}).await?;
        writeln!(out, "{} tokens kept in {path}\n", tokens.len())?;
    }

    // The last token is not fed, and a window holds whole pages.
    let cached_bytes = match args.window {
        None => session.cache().token_bytes() * session.len(sequence)?,
        Some(_) => session.stats().bytes as usize,
    };
    session.remove(sequence)?;
    let profile = if args.profile { profiled(gpu, &mut session, &input, args).await? } else { Default::default() };
    let heads = config.layout()?;
    let (prefill, decode) = ((first_at - start).as_secs_f64(), (last_at - first_at).as_secs_f64());
    let per_token = |from: u64, to: u64| (to - from) as f64 / (made.len() - 1) as f64;
    Ok(Report {
        variant: config.variant(),
        prefill_ms: 1e3 * prefill,
        prefill_rate: input.len() as f64 / prefill,
        decode_rate: (made.len() - 1) as f64 / decode,
        kv_elements: heads.kv_dim() * config.layers,
        kv_bytes: session.cache().token_bytes(),
        cached_bytes,
        dispatches: per_token(counted[0].dispatches, counted[1].dispatches),
        submits: per_token(counted[0].submits, counted[1].submits),
        layers: config.layers,
        profile,
    })
}

/// How many tokens a saved session has, and those of its first sequence.
fn saved_tokens(path: &str) -> Result<(usize, Vec<u32>), Stop> {
    let file = File::open(path).map_err(|e| Stop::Failed(format!("{path}: {e}")))?;
    let sequences = saved_info(file).map_err(|e| Stop::Failed(format!("{path}: {e}")))?.sequences;
    let count = sequences.iter().map(|s| s.tokens.len().max(s.len)).sum();
    Ok((count, sequences.into_iter().next().map(|first| first.tokens).unwrap_or_default()))
}

/// The one sequence of a session that this program saved, and its tokens.
fn first(loaded: Vec<LoadedSequence>, path: &str) -> Result<(SeqId, Vec<u32>), Stop> {
    match loaded.into_iter().next() {
        Some(first) if !first.tokens.is_empty() => Ok((first.id, first.tokens)),
        _ => Err(Stop::Failed(format!("{path}: no sequence with tokens in it"))),
    }
}

pub(crate) async fn run(args: &Args) -> Result<(), Stop> {
    run_to(args, &mut io::stdout().lock()).await
}

/// [`run`] for a reader of its own.
pub(crate) async fn run_to(args: &Args, out: &mut impl Write) -> Result<(), Stop> {
    args.models.iter().chain(&args.guesses.draft).try_for_each(repository::here).map_err(Stop::Failed)?;
    let options = GpuOptions {
        adapter: args.adapter.clone(),
        profile: args.profile,
        pipeline_cache: args.pipelines.clone().map(Into::into),
        // The best there is, the experimental kernels too where they pass their self-test.
        tier: Some(Tier::Matrix),
        ..Default::default()
    };
    let gpu = Gpu::with_options(options).await?;
    let (mut reports, mut lines, mut lines_of_guesses) = (Vec::new(), Vec::new(), Vec::new());
    for model in &args.models {
        match args.several {
            None if args.guesses.any() => lines_of_guesses.push(guesses::run_model(&gpu, model, args, out).await?),
            Some(several) => lines.push(several::run_model(&gpu, model, args, several, out).await?),
            None => reports.push(run_model(&gpu, model, args, out).await?),
        }
    }
    let [weights, cache] = [args.weights, args.kv_dtype].map(|dtype| dtype.unwrap_or(args.dtype));
    writeln!(out, "{}, {weights} weights, {cache} cache", gpu.capabilities().adapter)?;
    if args.several.is_some() {
        return Ok(several::print(out, &lines)?);
    }
    if args.guesses.any() {
        return Ok(guesses::print(out, &lines_of_guesses)?);
    }
    writeln!(out, "        prefill            decode    KV per token             KV in all")?;
    for r in &reports {
        let decode = if r.decode_rate.is_finite() { format!("{:.0} tok/s", r.decode_rate) } else { "-".into() };
        writeln!(
            out,
            "{}  {:>6.0} tok/s ({:>4.0} ms) {:>10}  {:>5} elements {:>5} B  {:>7} B",
            r.variant, r.prefill_rate, r.prefill_ms, decode, r.kv_elements, r.kv_bytes, r.cached_bytes
        )?;
    }
    for r in reports.iter().filter(|r| args.profile && r.decode_rate.is_finite()) {
        let us = 1e6 / r.decode_rate;
        writeln!(
            out,
            "{}  per token: {us:.1} us, {:.1} dispatches ({:.1} per layer) of {:.2} us each, {:.2} submits",
            r.variant,
            r.dispatches,
            (r.dispatches - 3.0) / r.layers as f64,
            us / r.dispatches,
            r.submits
        )?;
        print_profile(out, &r.profile)?;
    }
    Ok(())
}

fn main() -> ExitCode {
    warnings::print_warnings();
    let args = match parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(message) => {
            eprintln!("generate: {message}\n\n{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    match pollster::block_on(run(&args)) {
        Ok(()) | Err(Stop::ReaderGone) => ExitCode::SUCCESS,
        Err(Stop::Failed(message)) => {
            eprintln!("generate: {message}");
            ExitCode::FAILURE
        }
    }
}
