//! Logits of a model for given tokens, as JSON: for comparison with another implementation.
//!
//! `cargo run --release -p latten-tools -- logits examples/models/gla 72,101,108,108,111` in a checkout of the repository;
//! `.. examples/models/gla 72,101,108,108,111 --chunks 2,3 --all --dtype f16`
//! `.. examples/models/gla 72,101,108,108,111 --greedy 20`

use crate::common::arguments::{count, dtypes, Checked, CACHE_DTYPES};
use crate::common::repository;
use latten::model::{generate, Decoder, GenerateOptions, Session, SessionOptions};
use latten::{DType, Gpu, GpuOptions};
use std::ops::ControlFlow;

/// The logits after the last token, or with --all after each, as JSON
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Its folder
    #[arg(value_name = "MODEL_DIR")]
    model: String,
    /// With commas between
    #[arg(value_delimiter = ',', required = true, value_name = "TOKEN,TOKEN,..")]
    tokens: Vec<u32>,
    /// Feed the tokens in pieces of these sizes, which must add up; without it all at once
    #[arg(long, value_delimiter = ',', value_name = "N,N,..", value_parser = count)]
    chunks: Vec<usize>,
    /// Logits after each token
    #[arg(long)]
    all: bool,
    /// Print no logits, but the N tokens that follow where each is the most probable
    #[arg(long, value_name = "N", conflicts_with_all = ["all", "chunks"])]
    greedy: Option<usize>,
    /// Of weights and cache
    #[arg(long, default_value = "f32", value_parser = dtypes(["f32", "f16"]))]
    dtype: DType,
    /// Of the cache alone; without it as --dtype
    #[arg(long, value_name = "DTYPE", value_parser = dtypes(CACHE_DTYPES))]
    kv_dtype: Option<DType>,
    /// Take the GPU whose description contains this
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
}

impl Checked for Args {
    fn check(&self) -> Result<(), String> {
        let (chunks, tokens) = (&self.chunks, self.tokens.len());
        if !chunks.is_empty() && chunks.iter().fold(0, |sum: usize, n| sum.saturating_add(*n)) != tokens {
            return Err(format!("--chunks {chunks:?} do not add up to {tokens} tokens"));
        }
        Ok(())
    }
}

async fn session(args: &Args) -> latten::Result<Session> {
    let gpu = Gpu::with_options(GpuOptions { adapter: args.adapter.clone(), ..Default::default() }).await?;
    let decoder = Decoder::load(&gpu, &args.model, args.dtype)?;
    let cache_tokens = args.tokens.len().saturating_add(args.greedy.unwrap_or(0));
    Session::new(
        &decoder,
        SessionOptions { kv_dtype: args.kv_dtype.unwrap_or(args.dtype), cache_tokens, ..Default::default() },
    )
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
    let whole = [args.tokens.len()];
    for chunk in if args.chunks.is_empty() { &whole[..] } else { &args.chunks } {
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

pub(crate) fn main(args: &Args) -> Result<(), String> {
    let json = pollster::block_on(json(args)).map_err(|e| e.to_string())?;
    // A reader that has gone away is no error.
    let _ = std::io::Write::write_all(&mut std::io::stdout(), (json + "\n").as_bytes());
    Ok(())
}
