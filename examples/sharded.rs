//! Text from a model that several devices compute, each with a part of every layer: docs/sharding.md.
//!
//! `cargo run --release --example sharded -- --ranks 2` in a checkout of the repository, which has the models; with
//! `--model examples/models/mla --by-context` each device has half of the tokens of a sequence. Where there are fewer
//! adapters than ranks, several devices of one are taken: that shows how it is done, and is slower than one.

#[path = "shared/arguments.rs"]
mod arguments;
#[path = "shared/repository.rs"]
mod repository;
#[path = "shared/warnings.rs"]
mod warnings;

use arguments::count;
use clap::Parser;
use latten::model::{follow, generate, Decoder, GenerateOptions, LoadOptions, Session, SessionOptions};
use latten::parallel::{local, Shard, Transfer};
use latten::{ErrorKind, Gpu, GpuOptions, Result};
use pollster::block_on;
use std::io::Write;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Text from a model that several devices compute
#[derive(clap::Parser)]
#[command(name = "sharded")]
struct Args {
    /// The model's folder or GGUF file
    #[arg(long, value_name = "DIR", default_value_t = format!("{}/gla", repository::MODELS))]
    model: String,
    /// Devices
    #[arg(long, value_name = "N", default_value = "2", value_parser = count)]
    ranks: usize,
    /// What the text begins with
    #[arg(long, value_name = "TEXT", default_value = "ROMEO:\n")]
    prompt: String,
    /// Tokens to make
    #[arg(long, value_name = "N", default_value = "100", value_parser = count)]
    tokens: usize,
    /// Divide the attention by the tokens of a sequence, not by heads: for MLA, whose cache is else whole on each device
    #[arg(long)]
    by_context: bool,
    /// Send what is added to the stream in 16 bits
    #[arg(long)]
    halves: bool,
}

/// A rank's device: an adapter of its own, if there are as many.
fn device(rank: usize) -> Result<Gpu> {
    let with = |number| block_on(Gpu::with_options(GpuOptions { number, ..Default::default() }));
    match with(rank) {
        Err(error) if matches!(error.kind(), ErrorKind::NoAdapter { .. }) => with(0),
        device => device,
    }
}

/// What one rank does: the first makes the text, the others follow.
fn run(args: &Args, rank: local::LocalRank) -> Result<()> {
    let shard = Shard::of(&rank)?;
    let shard = if args.by_context { shard.by_context() } else { shard };
    let gpu = device(shard.rank())?;
    let decoder = Decoder::load_with(&gpu, &args.model, LoadOptions { shard, ..Default::default() })?;
    if !shard.is_first() {
        return follow(&decoder, Box::new(rank));
    }
    let transfer = if args.halves { Transfer::F16 } else { Transfer::F32 };
    let mut session = Session::sharded(&decoder, SessionOptions::default(), Box::new(rank), transfer)?;
    let prompt: Vec<u32> = args.prompt.bytes().map(u32::from).collect();
    let options = GenerateOptions { max_new_tokens: args.tokens, ..Default::default() };
    let (start, mut out) = (Instant::now(), std::io::stdout());
    let written = |token: u32| {
        // The shipped models' tokens are bytes. A reader that is gone ends the text.
        let byte = [u8::try_from(token).unwrap_or(b'?')];
        match out.write_all(&byte).and_then(|()| out.flush()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    };
    let tokens = block_on(generate(&mut session, &prompt, options, written))?;
    let seconds = start.elapsed().as_secs_f64();
    let bytes = session.cache().page_bytes() / session.cache().pages().size as u64;
    eprintln!(
        "\n{} ranks: {} tokens in {seconds:.2} s, {bytes} B of cache for a token on each",
        shard.size(),
        tokens.len()
    );
    Ok(())
}

fn main() -> ExitCode {
    warnings::print_warnings();
    let args = Args::parse();
    if let Err(missing) = repository::here(&args.model) {
        eprintln!("sharded: {missing}");
        return ExitCode::FAILURE;
    }
    let ranks = local::run(args.ranks, Duration::from_secs(60), |rank| run(&args, rank));
    let failed = match ranks {
        Ok(ranks) => ranks.into_iter().find_map(Result::err),
        Err(error) => Some(error),
    };
    match failed {
        None => ExitCode::SUCCESS,
        Some(error) => {
            eprintln!("sharded: {error}");
            ExitCode::FAILURE
        }
    }
}
