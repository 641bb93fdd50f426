//! Logits of a model for given tokens, as JSON: for comparison with another implementation.
//!
//! `cargo run --release -p latten-tools -- logits examples/models/gla 72,101,108,108,111` in a checkout of the repository;
//! `.. examples/models/gla 72,101,108,108,111 --chunks 2,3 --all --dtype f16`
//! `.. examples/models/gla 72,101,108,108,111 --greedy 20`

use crate::common::{repository, warnings};
use latten::model::{generate, Decoder, GenerateOptions, Session, SessionOptions};
use latten::{DType, Gpu, GpuOptions};
use std::ops::ControlFlow;
use std::process::ExitCode;

const USAGE: &str = "usage: logits MODEL_DIR TOKEN,TOKEN,.. [--chunks N,N,..] [--all | --greedy N] [--dtype f32|f16]
              [--kv-dtype DTYPE] [--adapter NAME]

Prints the logits after the last token, or with --all after each, as JSON.
  --chunks   feed the tokens in pieces of these sizes (they must add up); default: all at once
  --greedy   print no logits, but the N tokens that follow where each is the most probable
  --dtype    of weights and cache; default f32
  --kv-dtype of the cache alone: f32, f16, bf16, i8 or i4
  --adapter  take the GPU whose description contains this";

pub(crate) struct Args {
    model: String,
    tokens: Vec<u32>,
    chunks: Vec<usize>,
    all: bool,
    greedy: Option<usize>,
    dtype: DType,
    kv_dtype: DType,
    adapter: Option<String>,
}

pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Args, String> {
    let (mut model, mut tokens, mut chunks) = (None, None, None);
    let (mut all, mut greedy, mut dtype, mut kv_dtype, mut adapter) = (false, None, DType::F32, None, None);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} wants a value"));
        match arg.as_str() {
            "--chunks" => chunks = Some(numbers(&value()?)?),
            "--all" => all = true,
            "--greedy" => {
                let count = value()?;
                greedy = Some(count.parse().map_err(|_| format!("--greedy {count}: not a number"))?);
            }
            "--adapter" => adapter = Some(value()?),
            "--kv-dtype" => {
                let name = value()?;
                let known = [DType::F32, DType::F16, DType::BF16, DType::I8, DType::I4];
                let found = known.into_iter().find(|dtype| dtype.to_string() == name);
                kv_dtype = Some(found.ok_or_else(|| format!("--kv-dtype {name}: wanted f32, f16, bf16, i8 or i4"))?);
            }
            "--dtype" => {
                dtype = match value()?.as_str() {
                    "f32" => DType::F32,
                    "f16" => DType::F16,
                    other => return Err(format!("--dtype {other}: wanted f32 or f16")),
                }
            }
            _ if arg.starts_with('-') => return Err(format!("unknown option {arg}")),
            _ if model.is_none() => model = Some(arg),
            _ if tokens.is_none() => tokens = Some(numbers(&arg)?),
            _ => return Err(format!("unexpected argument {arg}")),
        }
    }
    let model = model.ok_or("no model folder given")?;
    let tokens: Vec<u32> = tokens.ok_or("no tokens given")?;
    let chunks = chunks.unwrap_or_else(|| vec![tokens.len()]);
    if chunks.iter().sum::<usize>() != tokens.len() || chunks.contains(&0) {
        return Err(format!("--chunks {chunks:?} do not add up to {} tokens", tokens.len()));
    }
    if greedy.is_some() && (all || chunks.len() > 1) {
        return Err("--greedy prints no logits and feeds all tokens at once: without --all and --chunks".into());
    }
    Ok(Args { model, tokens, chunks, all, greedy, dtype, kv_dtype: kv_dtype.unwrap_or(dtype), adapter })
}

fn numbers<T: std::str::FromStr>(list: &str) -> Result<Vec<T>, String> {
    list.split(',').map(|n| n.trim().parse().map_err(|_| format!("{n:?} is not a number"))).collect()
}

async fn session(args: &Args) -> latten::Result<Session> {
    let gpu = Gpu::with_options(GpuOptions { adapter: args.adapter.clone(), ..Default::default() }).await?;
    let decoder = Decoder::load(&gpu, &args.model, args.dtype)?;
    let cache_tokens = args.tokens.len().saturating_add(args.greedy.unwrap_or(0));
    Session::new(&decoder, SessionOptions { kv_dtype: args.kv_dtype, cache_tokens, ..Default::default() })
}

/// The most probable tokens that follow.
async fn follow(args: &Args, count: usize) -> latten::Result<Vec<u32>> {
    let options = GenerateOptions { max_new_tokens: count, ..Default::default() };
    generate(&mut session(args).await?, &args.tokens, options, |_| ControlFlow::Continue(())).await
}

pub(crate) async fn run(args: &Args) -> latten::Result<Vec<Vec<f32>>> {
    let mut session = session(args).await?;
    let sequence = session.insert();
    let (mut rest, mut rows) = (&args.tokens[..], Vec::new());
    for chunk in &args.chunks {
        let (tokens, after) = rest.split_at(*chunk);
        rest = after;
        let batch = [(sequence, tokens)];
        let fed = if args.all { session.all_logits(&batch).await? } else { session.logits(&batch).await? };
        for logits in fed {
            rows.extend(logits.chunks_exact(session.decoder().config().vocab_size).map(<[f32]>::to_vec));
        }
    }
    if !args.all {
        rows.drain(..rows.len() - 1);
    }
    Ok(rows)
}

/// What is printed.
async fn json(args: &Args) -> Result<String, String> {
    repository::here(&args.model)?;
    let json = match args.greedy {
        Some(count) => serde_json::to_string(&follow(args, count).await.map_err(|e| e.to_string())?),
        None => {
            let rows = run(args).await.map_err(|e| e.to_string())?;
            if args.all {
                serde_json::to_string(&rows)
            } else {
                serde_json::to_string(&rows[0])
            }
        }
    };
    json.map_err(|e| e.to_string())
}

pub(crate) fn main() -> ExitCode {
    warnings::print_warnings();
    let args = match parse(std::env::args().skip(2)) {
        Ok(args) => args,
        Err(message) => {
            eprintln!("logits: {message}\n\n{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    match pollster::block_on(json(&args)) {
        Ok(json) => {
            // A reader that has gone away is no error.
            let _ = std::io::Write::write_all(&mut std::io::stdout(), (json + "\n").as_bytes());
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("logits: {message}");
            ExitCode::FAILURE
        }
    }
}
