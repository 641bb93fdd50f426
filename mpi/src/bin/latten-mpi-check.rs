//! Checks of two ranks that are processes: `./dev test-mpi` runs it by `mpiexec -n 2`, with the name of a check.
#![allow(clippy::unwrap_used, clippy::panic)] // a check that fails ends the program

use latten::cache::SaveSequence;
use latten::model::{follow, generate, Decoder, GenerateOptions, LoadOptions, Session, SessionOptions};
use latten::parallel::{Collective, Shard, Transfer};
use latten::{DType, ErrorKind, Gpu, RankFault, Result, SeqId};
use latten_mpi::{Mpi, MpiRank};
use pollster::block_on;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// Longer than a software GPU compiles a step's kernels.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Of the checks in which a rank does not answer, after the first steps.
const SHORT: Duration = Duration::from_secs(20);

/// What happens to rank 1 at its sum of this number.
#[derive(Clone, Copy, PartialEq)]
enum Mishap {
    None,
    Killed,
    Sleeps,
    Panics,
}

struct Unlucky {
    rank: MpiRank,
    sums: usize,
    mishap: Mishap,
}

impl Collective for Unlucky {
    fn rank(&self) -> usize {
        self.rank.rank()
    }
    fn size(&self) -> usize {
        self.rank.size()
    }
    fn all_reduce(&mut self, values: &mut [f32]) -> Result<()> {
        self.sums += 1;
        // The shipped models have 4 layers of two sums: in the third step.
        if self.sums == 19 {
            match self.mishap {
                Mishap::None => {}
                Mishap::Killed => {
                    drop(std::process::Command::new("kill").args(["-9", &std::process::id().to_string()]).status())
                }
                Mishap::Sleeps => std::thread::sleep(3 * SHORT),
                Mishap::Panics => panic!("an unlucky rank"),
            }
        }
        self.rank.all_reduce(values)
    }
    fn all_gather(&mut self, own: &[f32], all: &mut [f32]) -> Result<()> {
        self.rank.all_gather(own, all)
    }
    fn broadcast(&mut self, bytes: &mut Vec<u8>) -> Result<()> {
        self.rank.broadcast(bytes)
    }
    fn abandon(&mut self, why: &str) {
        self.rank.abandon(why);
    }
}

fn folder(variant: &str) -> String {
    format!("{}/../examples/models/{variant}", env!("CARGO_MANIFEST_DIR"))
}

fn options() -> SessionOptions {
    SessionOptions { kv_dtype: DType::F32, chunk: 32, max_batch: 2, page_size: 8, ..Default::default() }
}

fn prompt() -> Vec<u32> {
    b"ROMEO:\nWhat light through yonder window breaks?\n".iter().map(|b| u32::from(*b)).collect()
}

fn largest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| if a.is_finite() { (a - b).abs() } else { f32::INFINITY }).fold(0.0, f32::max)
}

/// Tokens and logits, of a fork, of what was cut, and of what was saved and loaded, too.
fn life(session: &mut Session, file: &str) -> (Vec<u32>, Vec<Vec<f32>>) {
    let options = GenerateOptions { max_new_tokens: 16, ..Default::default() };
    let tokens = block_on(generate(session, &prompt(), options, |_| ControlFlow::Continue(()))).unwrap();
    let mut log = Vec::new();
    let mut feed = |session: &mut Session, id: SeqId, tokens: &[u32]| {
        log.push(block_on(session.logits(&[(id, tokens)])).unwrap().swap_remove(0));
    };
    let first = session.match_prefix(&prompt(), 0);
    feed(session, first, &prompt());
    let fork = session.fork(first).unwrap();
    feed(session, fork, &[65]);
    feed(session, first, &[66, 67]);
    session.truncate(fork, 21).unwrap();
    feed(session, fork, &[68]);
    let found = session.match_prefix(&prompt(), 0);
    assert_eq!(session.len(found).unwrap(), 40);
    feed(session, found, &prompt()[40..]);
    block_on(session.save_file(&[SaveSequence { id: fork, tokens: &[] }], file, |_| {})).unwrap();
    let loaded = block_on(session.load_file(file, |_| {})).unwrap()[0].id;
    feed(session, loaded, &[69]);
    feed(session, fork, &[69]);
    let ends = &log[log.len() - 2..];
    assert_eq!(ends[0], ends[1], "a loaded sequence goes on as the saved one");
    (tokens, log)
}

fn load(gpu: &Gpu, variant: &str, shard: Shard) -> Decoder {
    Decoder::load_with(gpu, folder(variant), LoadOptions { shard, ..Default::default() }).unwrap()
}

fn tokens(gpu: &Gpu, mpi: &Mpi) {
    let files = std::env::temp_dir().join(format!("latten-mpi-{}", std::process::id()));
    std::fs::create_dir_all(&files).unwrap();
    let by_heads = ["gqa", "gta", "gla", "mla"].map(|variant| (variant, false));
    for (variant, by_context) in by_heads.into_iter().chain([("gqa", true), ("mla", true)]) {
        let rank = mpi.ranks(TIMEOUT);
        let shard = Shard::of(&rank).unwrap();
        let decoder = load(gpu, variant, if by_context { shard.by_context() } else { shard });
        if rank.rank() > 0 {
            follow(&decoder, Box::new(rank)).unwrap();
            continue;
        }
        let mut session = Session::sharded(&decoder, options(), Box::new(rank), Transfer::F32).unwrap();
        let (tokens, logits) = life(&mut session, files.join("ranks").to_str().unwrap());
        drop(session);
        let mut alone = Session::new(&load(gpu, variant, Shard::whole()), options()).unwrap();
        let (want, of_one) = life(&mut alone, files.join("alone").to_str().unwrap());
        assert_eq!(tokens, want, "{variant}");
        let off = logits.iter().zip(&of_one).map(|(a, b)| largest(a, b)).fold(0.0, f32::max);
        assert!(off < 1e-4, "{variant}: {off}");
        let how = if by_context { "by context" } else { "by heads" };
        println!("{variant} {how}: the tokens of one device, logits differ by up to {off:e}");
    }
    let _ = std::fs::remove_dir_all(files);
    passed(mpi, "tokens");
}

/// What `./dev test-mpi` looks for.
fn passed(mpi: &Mpi, check: &str) {
    if mpi.ranks(TIMEOUT).rank() == 0 {
        println!("{check}: passed");
    }
}

fn other(gpu: &Gpu, mpi: &Mpi) {
    let rank = mpi.ranks(TIMEOUT);
    let variant = ["gqa", "gta"][rank.rank()];
    let decoder = load(gpu, variant, Shard::of(&rank).unwrap());
    let error = match rank.rank() {
        0 => Session::sharded(&decoder, options(), Box::new(rank), Transfer::F32).map(drop).unwrap_err(),
        _ => follow(&decoder, Box::new(rank)).unwrap_err(),
    };
    let ErrorKind::Rank { fault: RankFault::Other { rank: 1, .. }, .. } = error.kind() else { panic!("{error}") };
    println!("another model: {error}");
    passed(mpi, "other");
}

/// Steps of two ranks, of which the second has a mishap in the third step.
fn unlucky(gpu: &Gpu, mpi: &Mpi, mishap: Mishap) {
    let rank = mpi.ranks(SHORT);
    let decoder = load(gpu, "gqa", Shard::of(&rank).unwrap());
    let number = rank.rank();
    let mishap = if number == 1 { mishap } else { Mishap::None };
    let rank = Box::new(Unlucky { rank, sums: 0, mishap });
    if number > 0 {
        let error = follow(&decoder, rank).unwrap_err();
        println!("rank 1: {error}");
        std::process::exit(0); // MPI's end waits for the other
    }
    let mut session = Session::sharded(&decoder, options(), rank, Transfer::F32).unwrap();
    let id = session.insert();
    for token in [1, 2] {
        block_on(session.logits(&[(id, &[token])])).unwrap();
    }
    let start = Instant::now();
    let error = block_on(session.logits(&[(id, &[3])])).unwrap_err();
    assert!(start.elapsed() < SHORT + Duration::from_secs(5), "{:?}", start.elapsed());
    assert!(matches!(error.kind(), ErrorKind::Rank { .. }), "{error}");
    assert_eq!(session.len(id).unwrap(), 2);
    let again = block_on(session.logits(&[(id, &[3])])).unwrap_err();
    assert_eq!(again.to_string(), error.to_string());
    println!("rank 0 hears in {:.1} s: {error}", start.elapsed().as_secs_f64());
    println!("{}: passed", std::env::args().nth(1).unwrap());
    std::process::exit(0);
}

fn main() {
    let check = std::env::args().nth(1).unwrap_or_default();
    let mpi = Mpi::start().unwrap();
    let gpu = block_on(Gpu::new()).unwrap();
    match check.as_str() {
        "tokens" => tokens(&gpu, &mpi),
        "other" => other(&gpu, &mpi),
        "killed" => unlucky(&gpu, &mpi, Mishap::Killed),
        "sleeps" => unlucky(&gpu, &mpi, Mishap::Sleeps),
        "panics" => unlucky(&gpu, &mpi, Mishap::Panics),
        _ => panic!("which check: tokens, other, killed, sleeps or panics"),
    }
}
