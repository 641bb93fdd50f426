//! Logits of a model for given tokens, as JSON: for comparison with another implementation.
//!
//! `cargo run --release --example logits -- examples/models/gla 72,101,108,108,111`
//! `.. examples/models/gla 72,101,108,108,111 --chunks 2,3 --all --dtype f16`

use latten::model::{Decoder, Session, SessionOptions, Want};
use latten::{DType, Gpu, GpuOptions};
use std::process::ExitCode;

const USAGE: &str =
    "usage: logits MODEL_DIR TOKEN,TOKEN,.. [--chunks N,N,..] [--all] [--dtype f32|f16] [--kv-dtype DTYPE]
              [--adapter NAME]

Prints the logits after the last token, or with --all after each, as JSON.
  --chunks   feed the tokens in pieces of these sizes (they must add up); default: all at once
  --dtype    of weights and cache; default f32
  --kv-dtype of the cache alone: f32, f16, bf16, i8 or i4
  --adapter  take the GPU whose description contains this";

pub(crate) struct Args {
    model: String,
    tokens: Vec<u32>,
    chunks: Vec<usize>,
    all: bool,
    dtype: DType,
    kv_dtype: DType,
    adapter: Option<String>,
}

pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Args, String> {
    let (mut model, mut tokens, mut chunks) = (None, None, None);
    let (mut all, mut dtype, mut kv_dtype, mut adapter) = (false, DType::F32, None, None);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} wants a value"));
        match arg.as_str() {
            "--chunks" => chunks = Some(numbers(&value()?)?),
            "--all" => all = true,
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
    Ok(Args { model, tokens, chunks, all, dtype, kv_dtype: kv_dtype.unwrap_or(dtype), adapter })
}

fn numbers<T: std::str::FromStr>(list: &str) -> Result<Vec<T>, String> {
    list.split(',').map(|n| n.trim().parse().map_err(|_| format!("{n:?} is not a number"))).collect()
}

pub(crate) async fn run(args: Args) -> latten::Result<Vec<Vec<f32>>> {
    let gpu = Gpu::with_options(GpuOptions { adapter: args.adapter, ..Default::default() }).await?;
    let decoder = Decoder::load(&gpu, &args.model, args.dtype)?;
    let cache_tokens = args.tokens.len();
    let mut session =
        Session::new(&decoder, SessionOptions { kv_dtype: args.kv_dtype, cache_tokens, ..Default::default() })?;
    let sequence = session.insert();
    let want = if args.all { Want::AllLogits } else { Want::Logits };
    let (mut rest, mut rows) = (&args.tokens[..], Vec::new());
    for chunk in args.chunks {
        let (tokens, after) = rest.split_at(chunk);
        rest = after;
        for logits in session.feed(&[(sequence, tokens)], want).await?.logits {
            rows.extend(logits.chunks_exact(decoder.config().vocab_size).map(<[f32]>::to_vec));
        }
    }
    if !args.all {
        rows.drain(..rows.len() - 1);
    }
    Ok(rows)
}

fn main() -> ExitCode {
    let args = match parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(message) => {
            eprintln!("logits: {message}\n\n{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    let all = args.all;
    let printed = pollster::block_on(run(args)).map_err(|e| e.to_string()).and_then(|rows| {
        let json = if all { serde_json::to_string(&rows) } else { serde_json::to_string(&rows[0]) };
        json.map_err(|e| e.to_string())
    });
    match printed {
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
