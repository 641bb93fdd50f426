//! Text from the trained example models, one per variant of attention, with what each costs.
//!
//! `cargo run --release --example generate -- --prompt "ROMEO:" --tokens 200` in a checkout of the repository, which has the
//! models; elsewhere with `--model DIR`.

use latten::cache::{saved_info, LoadedSequence, SaveSequence};
use latten::model::{continue_sequence, Decoder, LoadOptions, PrefillPath, SessionOptions, Tokenizer};
use latten::parallel::local::LocalRank;
use latten::parallel::Shard;
use latten::{Gpu, GpuOptions, SeqId, Tier};
use std::fs::File;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

mod arguments;
#[path = "../shared/arguments.rs"]
mod arguments_of_all;
#[path = "../shared/breakdown.rs"]
mod breakdown;
#[path = "../shared/cold_start.rs"]
mod cold_start;
mod guesses;
pub(crate) mod loading;
mod profile;
#[path = "../shared/ranks.rs"]
mod ranks;
#[path = "../shared/repository.rs"]
mod repository;
mod several;
#[path = "../shared/warnings.rs"]
mod warnings;

pub(crate) use arguments::{parse, Args};
use cold_start::ColdStart;
use profile::{print_profile, profiled, Profile};
use ranks::{Followers, Led};

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
    /// From loading to the first token, where it was asked for.
    cold_start: Option<ColdStart>,
    /// Of some tokens more, where they were asked for.
    profile: Profile,
}

/// A session with the sequence that the text goes on from, and all tokens of it; which may be more than it holds.
struct Opened {
    session: Led,
    sequence: SeqId,
    tokens: Vec<u32>,
    tokenizer: Tokenizer,
    /// With `--profile`, and a prompt.
    cold_start: Option<ColdStart>,
}

async fn open(gpu: &Gpu, folder: &str, args: &Args) -> Result<Opened, Stop> {
    let tokenizer = Tokenizer::from_folder(folder)?;
    let (saved, before) = args.load_session.as_ref().map_or(Ok(Default::default()), |path| saved_tokens(path))?;
    let prompt = match args.prompt().is_empty() {
        true => Vec::new(),
        // What begins a text stands at the beginning of the saved one alone.
        false => tokenizer.encode_after(&before, args.prompt())?,
    };
    let (weights, kv_dtype) = args.types();
    gpu.take_compile_times();
    let begun = Instant::now();
    let (rank, shard, followers) = ranks(folder, args)?;
    let part = LoadOptions { shard, integer_dot: args.integer_dot, ..LoadOptions::of(weights) };
    let decoder = loading::load_part(gpu, folder, part)?;
    let load = begun.elapsed();
    let mut options = SessionOptions {
        kv_dtype,
        cache_tokens: saved + prompt.len() + args.options().max_new_tokens,
        window: args.window,
        keep_first: args.keep_first,
        prefill: if decoder.keeps_explicit() { args.prefill } else { PrefillPath::Auto },
        ..Default::default()
    };
    let each = options.page_size.saturating_mul(2).saturating_add(args.options().max_new_tokens);
    if let Some(several) = args.several() {
        // Each text has its own tokens, in pages of which the first and the last may be part empty.
        options.cache_tokens = options.cache_tokens.saturating_add(several.count().saturating_mul(each));
        options.max_batch = several.count();
    } else if let Some(window) = args.window {
        // What was saved, until the prompt is read; first tokens, window and those of a step, each in pages of its own.
        let seen = args.keep_first.saturating_add(window).saturating_add(options.chunk + 4 * options.page_size);
        options.cache_tokens = options.cache_tokens.min(seen.saturating_add(saved));
    }
    let mut session = Led::new(ranks::session(&decoder, options, rank)?, followers);
    let cold_start = match args.profile && !prompt.is_empty() {
        true => Some(profile::cold_start(&mut session, &prompt, (begun, load)).await?),
        false => None,
    };
    // Before any other timing.
    session.warm_up().await?;

    let (sequence, mut tokens) = match &args.load_session {
        Some(path) => first(session.load_file(path, |_| {}).await?, path)?,
        None => (session.insert(), Vec::new()),
    };
    tokens.extend(prompt);
    Ok(Opened { session, sequence, tokens, tokenizer, cold_start })
}

/// This program's first rank, its part of the model, and the ranks that follow it.
type Started = (Option<LocalRank>, Shard, Option<Followers>);

/// Starts the other ranks, if there are any.
fn ranks(folder: &str, args: &Args) -> Result<Started, Stop> {
    if args.ranks == 1 {
        return Ok((None, Shard::whole(), None));
    }
    let (folder, weights, integer_dot) = (folder.to_string(), args.types().0, args.integer_dot);
    let load = move |gpu: &Gpu, shard| {
        Decoder::load_with(gpu, &folder, LoadOptions { shard, integer_dot, ..LoadOptions::of(weights) })
    };
    let options = GpuOptions { pipeline_cache: None, ..gpu_options(args) };
    let (rank, shard, followers) = ranks::start(args.ranks, args.by_context, &options, Arc::new(load))?;
    Ok((Some(rank), shard, Some(followers)))
}

fn gpu_options(args: &Args) -> GpuOptions {
    GpuOptions {
        adapter: args.adapter.clone(),
        profile: args.profile,
        pipeline_cache: args.pipelines.clone().map(Into::into),
        // The best there is, the experimental kernels too where they pass their self-test.
        tier: Some(Tier::Matrix),
        ..Default::default()
    }
}

async fn run_model(gpu: &Gpu, folder: &str, args: &Args, out: &mut impl Write) -> Result<Report, Stop> {
    let Opened { mut session, sequence, mut tokens, tokenizer, cold_start } = open(gpu, folder, args).await?;
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
    let made = continue_sequence(&mut session, sequence, &input, args.options(), on_token).await?;
    written?;
    writeln!(out, "{}\n", text.finish())?;
    tokens.extend(&made);
    if let Some(path) = &args.save_session {
        session.save_file(&[SaveSequence { id: sequence, tokens: &tokens }], path, |_| {}).await?;
        writeln!(out, "{} tokens kept in {path}\n", tokens.len())?;
    }

    // Where ranks divide sequences, the mean of all tokens.
    let token_bytes = (session.cache().page_bytes() / session.cache().pages().size as u64) as usize;
    // The last token is not fed, and a window holds whole pages.
    let cached_bytes = match args.window {
        None => token_bytes * session.len(sequence)?,
        Some(_) => session.stats().bytes as usize,
    };
    session.remove(sequence)?;
    let profile = if args.profile { profiled(gpu, &mut session, &input, args).await? } else { Default::default() };
    let elements = session.cache().heads().kv_dim() * config.layers;
    let (prefill, decode) = ((first_at - start).as_secs_f64(), (last_at - first_at).as_secs_f64());
    let per_token = |from: u64, to: u64| (to - from) as f64 / (made.len() - 1) as f64;
    Ok(Report {
        variant: config.variant(),
        prefill_ms: 1e3 * prefill,
        prefill_rate: input.len() as f64 / prefill,
        decode_rate: (made.len() - 1) as f64 / decode,
        kv_elements: elements * token_bytes / session.cache().token_bytes(),
        kv_bytes: token_bytes,
        cached_bytes,
        dispatches: per_token(counted[0].dispatches, counted[1].dispatches),
        submits: per_token(counted[0].submits, counted[1].submits),
        layers: config.layers,
        cold_start,
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
    let folders = args.folders();
    folders.iter().chain(&args.draft).try_for_each(repository::here).map_err(Stop::Failed)?;
    let gpu = Gpu::with_options(gpu_options(args)).await?;
    let (mut reports, mut lines, mut lines_of_guesses) = (Vec::new(), Vec::new(), Vec::new());
    for model in &folders {
        match args.several() {
            None if args.guesses_ahead() => lines_of_guesses.push(guesses::run_model(&gpu, model, args, out).await?),
            Some(several) => lines.push(several::run_model(&gpu, model, args, several, out).await?),
            None => reports.push(run_model(&gpu, model, args, out).await?),
        }
    }
    let (weights, cache) = args.types();
    let ranks = if args.ranks > 1 { format!(", each of {} ranks", args.ranks) } else { String::new() };
    writeln!(out, "{}, {weights} weights, {cache} cache{ranks}", gpu.capabilities().adapter)?;
    if args.several().is_some() {
        return Ok(several::print(out, &lines)?);
    }
    if args.guesses_ahead() {
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
    for r in &reports {
        r.cold_start.iter().try_for_each(|cold| write!(out, "{}", r.variant).and_then(|()| cold.print(out)))?;
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
    let args = parse(std::env::args().skip(1)).unwrap_or_else(|error| error.exit());
    match pollster::block_on(run(&args)) {
        Ok(()) | Err(Stop::ReaderGone) => ExitCode::SUCCESS,
        Err(Stop::Failed(message)) => {
            eprintln!("generate: {message}");
            ExitCode::FAILURE
        }
    }
}
