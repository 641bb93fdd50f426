//! The load of `load.py` on the scheduler itself, without a server: what the server costs is the difference.
//!
//! `cargo run --release -p latten-server --example scheduler -- --model gla --concurrency 1,16 --prompt 128 --answer 64`; all other
//! arguments are the server's.

#![allow(dead_code)] // not all of the server is used

#[path = "../src/args.rs"]
mod args;
#[path = "../src/errors.rs"]
mod errors;
#[path = "../src/model.rs"]
mod model;
#[path = "../../shared/random_models.rs"]
mod random_models;
#[path = "../../shared/ranks.rs"]
mod ranks;
#[path = "../../shared/arguments.rs"]
mod shared_arguments;
#[path = "../../shared/repository.rs"]
mod shared_repository;

use clap::Parser;
use latten::model::{GenerateOptions, Request, RequestId, Scheduler};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Instant;

/// The load of load.py on the scheduler itself
#[derive(Debug, Parser)]
struct Load {
    /// Requests at once, several with commas
    #[arg(long, value_delimiter = ',', default_value = "1,4,16")]
    concurrency: Vec<usize>,
    /// Tokens of a prompt
    #[arg(long, default_value_t = 512)]
    prompt: usize,
    /// Tokens of an answer
    #[arg(long, default_value_t = 128)]
    answer: usize,
    #[arg(long, default_value_t = 2)]
    requests_per_client: usize,
    #[command(flatten)]
    args: args::Args,
}

/// An answer under way.
struct Under {
    begun: Instant,
    first: Option<Instant>,
    last: Instant,
    tokens: usize,
}

/// What is told of an answer: seconds to its first token, between tokens, and to its end.
type Times = [f64; 3];

fn main() -> Result<(), String> {
    let load = Load::parse();
    let (_followers, served, mut scheduler) = model::load(&load.args)?;
    let mut random = fastrand::Rng::with_seed(1);
    let vocab = served.vocab.min(256) as u32;
    let mut prompt = || (0..load.prompt).map(|_| random.u32(0..vocab)).collect::<Vec<u32>>();
    run(&mut scheduler, 1, 1, &mut prompt, 8)?;
    for concurrency in &load.concurrency {
        let count = concurrency * load.requests_per_client;
        let begun = Instant::now();
        let times = run(&mut scheduler, *concurrency, count, &mut prompt, load.answer)?;
        let seconds = begun.elapsed().as_secs_f64();
        let median = |which: usize| {
            let mut all: Vec<f64> = times.iter().map(|times| times[which]).collect();
            all.sort_by(f64::total_cmp);
            (all[(all.len() - 1) / 2] + all[all.len() / 2]) / 2.0
        };
        let row = json!({
            "concurrency": concurrency, "requests": times.len(), "seconds": seconds,
            "ttft_ms": 1e3 * median(0), "itl_ms": 1e3 * median(1), "e2e_s": median(2),
            "output_tokens_per_s": (times.len() * load.answer) as f64 / seconds,
        });
        println!("{row}");
    }
    Ok(())
}

/// So many answers, so many at once.
fn run(
    scheduler: &mut Scheduler,
    concurrency: usize,
    count: usize,
    mut prompt: impl FnMut() -> Vec<u32>,
    max_new_tokens: usize,
) -> Result<Vec<Times>, String> {
    let (mut under, mut times, mut added) = (BTreeMap::<RequestId, Under>::new(), Vec::new(), 0);
    while times.len() < count {
        while under.len() < concurrency && added < count {
            let begun = Instant::now();
            let generate = GenerateOptions { max_new_tokens, ..Default::default() };
            let request = Request { prompt: prompt(), generate, ..Default::default() };
            let id = scheduler.add(request).map_err(|e| e.to_string())?;
            under.insert(id, Under { begun, first: None, last: begun, tokens: 0 });
            added += 1;
        }
        let events = pollster::block_on(scheduler.step()).map_err(|e| e.to_string())?;
        let now = Instant::now();
        for event in events {
            let Some(answer) = under.get_mut(&event.id) else { continue };
            answer.first.get_or_insert(now);
            answer.last = now;
            answer.tokens += 1;
            if event.finished.is_some() {
                let Under { begun, first, last, tokens } = *answer;
                let first = first.unwrap_or(last);
                let between = (last - first).as_secs_f64() / (tokens.max(2) - 1) as f64;
                times.push([(first - begun).as_secs_f64(), between, (last - begun).as_secs_f64()]);
                under.remove(&event.id);
            }
        }
    }
    Ok(times)
}
