//! A session whose kernels are not compiled yet: what it computes, and what it compiles.

use crate::common::*;
use crate::tiny::{Tiny, VARIANTS};
use latten::model::{Decoder, Draw, GenerateOptions, Request, Scheduler, Session, SessionOptions};
use latten::{DType, Gpu, GpuOptions};
use pollster::block_on;

fn decoder(gpu: &Gpu, variant: &str, test: &str) -> Decoder {
    Decoder::load(gpu, Tiny::new(variant, 5).write(&format!("{test}-{variant}")).path(), DType::F16).unwrap()
}

fn session(decoder: &Decoder) -> Session {
    let options = SessionOptions { max_batch: 2, chunk: 12, cache_tokens: 200, page_size: 8, ..Default::default() };
    Session::new(decoder, options).unwrap()
}

const PROMPT: [u32; 11] = [5, 6, 7, 8, 9, 10, 11, 100, 3, 4, 1];

/// Tokens and logits of a prompt and of some tokens more.
fn fed(session: &mut Session) -> (Vec<u32>, Vec<Vec<f32>>) {
    let id = session.insert();
    let (mut tokens, mut logits, mut next) = (Vec::new(), Vec::new(), PROMPT.to_vec());
    for _ in 0..6 {
        let mut got = block_on(session.next_tokens_and_logits(&[(id, &next)], &[Draw::default()])).unwrap();
        next = got.tokens.clone();
        tokens.append(&mut got.tokens);
        logits.append(&mut got.logits);
    }
    session.remove(id).unwrap();
    (tokens, logits)
}

#[test]
fn a_cold_session_computes_what_a_warm_one_does() {
    for variant in VARIANTS {
        let (cold, warm) = (gpu_with(GpuOptions::default()), gpu_with(GpuOptions::default()));
        let mut first = session(&decoder(&cold, variant, "cold"));
        let mut second = session(&decoder(&warm, variant, "cold-warm"));
        block_on(second.warm_up()).unwrap();
        let got = fed(&mut first);
        assert_eq!(got, fed(&mut second), "{variant}");
        assert_eq!(got, fed(&mut first), "{variant}, again");
        assert!(cold.counters().pipelines < warm.counters().pipelines, "{variant}");
    }
}

/// A stream's first token waits for no kernel of the step behind it: those are compiled together with its own.
#[test]
fn a_stream_compiles_once() {
    for variant in VARIANTS {
        let gpu = gpu_with(GpuOptions::default());
        let decoder = decoder(&gpu, variant, "streams");
        let mut one_by_one = session(&decoder);
        let want = fed(&mut one_by_one).0;
        let other = gpu_with(GpuOptions::default());
        let mut session = session(&self::decoder(&other, variant, "streams-cold"));
        let (id, stats) = (session.insert(), session.stats());
        let mut stream = session.stream(&[(id, &PROMPT)], |_| Draw::default()).unwrap();
        assert_eq!(other.counters().pipelines, 0, "{variant}");
        let mut tokens = block_on(stream.next(false)).unwrap();
        let compiled = other.counters().pipelines;
        assert_eq!(stream.session().stats().used, stats.used + PROMPT.len().div_ceil(8), "{variant}");
        for _ in 1..want.len() {
            tokens.extend(block_on(stream.next(true)).unwrap());
        }
        assert_eq!(tokens, want, "{variant}");
        assert_eq!(other.counters().pipelines, compiled, "{variant}: behind the first token");
        assert_eq!(gpu.counters().pipelines, compiled, "{variant}: no more than one by one");
    }
}

/// Nor does a scheduler's: its first step compiles what those of single tokens need, too.
#[test]
fn a_scheduler_compiles_once() {
    for variant in VARIANTS {
        let gpu = gpu_with(GpuOptions::default());
        let mut scheduler = Scheduler::new(session(&decoder(&gpu, variant, "scheduler-cold")));
        let generate = GenerateOptions { max_new_tokens: 6, ..Default::default() };
        scheduler.add(Request { prompt: PROMPT.to_vec(), generate, ..Default::default() }).unwrap();
        let mut events = block_on(scheduler.step()).unwrap();
        let compiled = gpu.counters().pipelines;
        while !scheduler.is_idle() {
            events.extend(block_on(scheduler.step()).unwrap());
        }
        assert_eq!(gpu.counters().pipelines, compiled, "{variant}: behind the first token");
        assert_eq!(scheduler.session().stats().used, 0);
        let other = gpu_with(GpuOptions::default());
        let want = fed(&mut session(&decoder(&other, variant, "scheduler-cold-alone"))).0;
        assert_eq!(events.into_iter().filter_map(|event| event.token).collect::<Vec<_>>(), want, "{variant}");
        assert_eq!(other.counters().pipelines, compiled, "{variant}: no more than one by one");
    }
}

#[test]
fn loading_compiles_nothing_and_a_step_what_it_dispatches() {
    for variant in VARIANTS {
        let gpu = gpu_with(GpuOptions::default());
        let decoder = decoder(&gpu, variant, "compiles");
        let mut first = session(&decoder);
        assert_eq!(gpu.counters().pipelines, 0, "{variant}");
        fed(&mut first);
        let compiled = gpu.counters().pipelines;
        let names: Vec<&str> = gpu.take_compile_times().iter().map(|time| time.kernel).collect();
        assert_eq!(names.len() as u64, compiled, "{variant}");
        for kernel in ["embedding", "sample", "linear_rows"] {
            assert!(names.contains(&kernel), "{variant}: {names:?}");
        }
        // Nobody copies pages.
        assert!(!names.contains(&"copy_pages"), "{variant}: {names:?}");
        // Kernels that are there, of this session or of another of the same decoder, are not compiled again.
        fed(&mut first);
        fed(&mut session(&decoder));
        assert_eq!((gpu.counters().pipelines, gpu.take_compile_times()), (compiled, Vec::new()), "{variant}");
    }
}
