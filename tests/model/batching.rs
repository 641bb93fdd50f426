//! The same tokens however a prompt is cut and whatever shares its batch; errors that change nothing.

use crate::assert_kind;
use crate::common::checkout::checkout;
use crate::common::*;
use crate::tiny::{Tiny, MAX_POSITIONS, VARIANTS};
use latten::model::{generate, Decoder, Draw, GenerateOptions, Session, SessionOptions};
use latten::nn::Sampling;
use latten::{DType, ErrorKind, Gpu, GpuOptions, Tier};
use pollster::block_on;
use std::ops::ControlFlow;

fn decoder(gpu: &Gpu, variant: &str, test: &str) -> Decoder {
    let folder = Tiny::new(variant, 5).write(&format!("{test}-{variant}"));
    Decoder::load(gpu, folder.path(), DType::F16).unwrap()
}

fn session(decoder: &Decoder, max_batch: usize, chunk: usize) -> Session {
    let options = SessionOptions {
        max_batch,
        chunk,
        cache_tokens: 200,
        page_size: 8,
        kv_dtype: DType::F32,
        ..Default::default()
    };
    Session::new(decoder, options).unwrap()
}

const PROMPTS: [&[u32]; 3] = [&[5, 6, 7, 8, 9, 10, 11], &[100], &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]];
const NEW: usize = 16;

/// Greedy tokens of all prompts as one ragged batch.
fn batched(decoder: &Decoder, prompts: &[&[u32]], chunk: usize) -> Vec<Vec<u32>> {
    let mut session = session(decoder, prompts.len(), chunk);
    let ids: Vec<_> = prompts.iter().map(|_| session.insert()).collect();
    let mut next: Vec<Vec<u32>> = prompts.iter().map(|p| p.to_vec()).collect();
    let mut made = vec![Vec::new(); prompts.len()];
    for _ in 0..NEW {
        let batch: Vec<_> = ids.iter().copied().zip(next.iter().map(Vec::as_slice)).collect();
        let draws = vec![Draw::default(); prompts.len()];
        let tokens = block_on(session.next_tokens(&batch, &draws)).unwrap();
        made.iter_mut().zip(&tokens).for_each(|(made, token)| made.push(*token));
        next = tokens.into_iter().map(|token| vec![token]).collect();
    }
    made
}

fn greedy(decoder: &Decoder, prompt: &[u32], chunk: usize) -> Vec<u32> {
    let options = GenerateOptions { max_new_tokens: NEW, ..Default::default() };
    block_on(generate(&mut session(decoder, 1, chunk), prompt, options, |_| ControlFlow::Continue(()))).unwrap()
}

#[test]
fn greedy_tokens_do_not_depend_on_chunks_or_batch() {
    for variant in VARIANTS {
        let decoder = decoder(gpu(), variant, "batching");
        let alone: Vec<Vec<u32>> = PROMPTS.iter().map(|p| greedy(&decoder, p, 64)).collect();
        assert!(alone.iter().any(|t| t.iter().any(|token| *token != t[0])), "{variant}: nothing but repetition");
        for chunk in [1, 4] {
            let chunked: Vec<Vec<u32>> = PROMPTS.iter().map(|p| greedy(&decoder, p, chunk)).collect();
            assert_eq!(chunked, alone, "{variant}, chunks of {chunk}");
        }
        for chunk in [3, 10, 64] {
            assert_eq!(batched(&decoder, &PROMPTS, chunk), alone, "{variant}, batched in chunks of {chunk}");
        }
        let last_first: Vec<&[u32]> = PROMPTS.iter().rev().copied().collect();
        let reversed: Vec<Vec<u32>> = batched(&decoder, &last_first, 64).into_iter().rev().collect();
        assert_eq!(reversed, alone, "{variant}, reversed");
    }
}

#[test]
fn tokens_logits_and_all_logits_agree_in_a_ragged_batch() {
    let decoder = decoder(gpu(), "gla", "wants");
    let vocab = decoder.config().vocab_size;
    let draws = [Draw::default(); 3];
    let fresh = |chunk| {
        let mut session = session(&decoder, 3, chunk);
        let batch: Vec<_> = PROMPTS.iter().map(|p| (session.insert(), *p)).collect();
        (session, batch)
    };
    // All logits at once are a product of many rows, whose input cooperative matrices round to f16, by 2^-12 on the mean:
    // of logits of about 1.
    let (tolerance, nmse) = if gpu().capabilities().tier == Tier::Matrix { (1e-3, 1e-6) } else { (1e-5, 1e-10) };
    for chunk in [4, 64] {
        let (mut session, batch) = fresh(chunk);
        let tokens = block_on(session.next_tokens(&batch, &draws)).unwrap();
        let (mut session, batch) = fresh(chunk);
        let last = block_on(session.logits(&batch)).unwrap();
        let (mut session, batch) = fresh(chunk);
        let both = block_on(session.next_tokens_and_logits(&batch, &draws)).unwrap();
        assert_eq!((&both.tokens, &both.logits), (&tokens, &last), "chunks of {chunk}");
        let (mut session, batch) = fresh(chunk);
        let all = block_on(session.all_logits(&batch)).unwrap();
        for i in 0..3 {
            assert_eq!(all[i].len(), PROMPTS[i].len() * vocab);
            let end = f64s(&all[i][all[i].len() - vocab..]);
            assert_close(&format!("sequence {i}, chunks of {chunk}"), &last[i], &end, tolerance, nmse);
            let best = (0..vocab).fold(0, |best, t| if last[i][t] > last[i][best] { t } else { best });
            assert_eq!(tokens[i] as usize, best, "sequence {i}, chunks of {chunk}");
        }
        let (mut session, batch) = fresh(chunk);
        let most_likely = block_on(session.all_tokens(&batch)).unwrap();
        for (i, (found, logits)) in most_likely.iter().zip(&all).enumerate() {
            let first_best = |row: &[f32]| (0..vocab).fold(0, |best, t| if row[t] > row[best] { t } else { best });
            let best: Vec<u32> = logits.chunks_exact(vocab).map(|row| first_best(row) as u32).collect();
            assert_eq!(*found, best, "sequence {i}, chunks of {chunk}");
        }
        // Both leave what a plain step does.
        let ids: Vec<_> = batch.iter().map(|(id, _)| (*id, &[9][..])).collect();
        let next = block_on(session.next_tokens(&ids, &draws)).unwrap();
        let (mut session, batch) = fresh(chunk);
        block_on(session.next_tokens(&batch, &draws)).unwrap();
        let ids: Vec<_> = batch.iter().map(|(id, _)| (*id, &[9][..])).collect();
        assert_eq!(next, block_on(session.next_tokens(&ids, &draws)).unwrap());
    }
}

#[test]
fn a_decode_loop_creates_nothing_and_waits_once_per_step() {
    // A device of its own: the counters are per device, and tests run side by side.
    let gpu = gpu_with(GpuOptions::default());
    for variant in VARIANTS {
        let mut session = session(&decoder(&gpu, variant, "counters"), 2, 16);
        let ids = [session.insert(), session.insert()];
        let step = |session: &mut Session, token: u32| {
            let (t, draws) = ([token], [Draw { sampling: Sampling::new(1.0, 0.9), u: 0.3 }; 2]);
            block_on(session.next_tokens(&[(ids[0], &t), (ids[1], &t)], &draws)).unwrap()
        };
        step(&mut session, 1);
        let before = gpu.counters();
        (0..20).for_each(|token| drop(step(&mut session, token)));
        let after = gpu.counters();
        assert_eq!(after.buffers, before.buffers, "{variant}");
        assert_eq!(after.pipelines, before.pipelines, "{variant}");
        assert_eq!(after.bind_groups, before.bind_groups, "{variant}");
        assert_eq!(after.submits - before.submits, 20, "{variant}");
        assert_eq!(after.readbacks - before.readbacks, 20, "{variant}");
    }
}

#[test]
fn after_a_warm_up_the_first_token_makes_nothing() {
    let gpu = gpu_with(GpuOptions::default());
    for variant in VARIANTS {
        let mut session = session(&decoder(&gpu, variant, "warm"), 3, 12);
        let free = session.stats().free;
        block_on(session.warm_up()).unwrap();
        assert_eq!(session.stats().free, free, "{variant}");
        let before = gpu.counters();
        let ids = [session.insert(), session.insert(), session.insert()];
        for tokens in [PROMPTS[0], PROMPTS[1], &[4, 4]] {
            block_on(session.next_tokens(&[(ids[0], tokens)], &[Draw::default()])).unwrap();
        }
        let batch: Vec<_> = ids.iter().map(|id| (*id, PROMPTS[1])).collect();
        block_on(session.next_tokens(&batch, &[Draw::default(); 3])).unwrap();
        let after = gpu.counters();
        assert_eq!(after.pipelines, before.pipelines, "{variant}");
        assert_eq!(after.bind_groups, before.bind_groups, "{variant}");
        assert_eq!(after.buffers, before.buffers, "{variant}");
    }
}

/// The head over several rows, with a batch of one.
#[test]
fn after_a_warm_up_logits_of_all_tokens_compile_nothing() {
    let gpu = gpu_with(GpuOptions::default());
    for variant in VARIANTS {
        let mut session = session(&decoder(&gpu, variant, "warm-logits"), 1, 12);
        block_on(session.warm_up()).unwrap();
        let before = gpu.counters().pipelines;
        let id = session.insert();
        for tokens in [12, 1, 2, 3, 4, 5] {
            block_on(session.all_logits(&[(id, &vec![3; tokens])])).unwrap();
        }
        assert_eq!(gpu.counters().pipelines, before, "{variant}");
    }
}

#[test]
fn after_a_warm_up_the_first_merge_makes_nothing() {
    // As a discrete GPU plans it: split, and so merged, from 256 tokens on.
    let options = GpuOptions { target_workgroups: Some(1024), ..Default::default() };
    let gpu = gpu_with(options);
    for variant in ["gqa", "gla"] {
        let folder = checkout(&format!("examples/models/{variant}"));
        let decoder = Decoder::load(&gpu, folder, DType::F16).unwrap();
        let options = SessionOptions { max_batch: 2, chunk: 48, ..SessionOptions::default() };
        let mut session = Session::new(&decoder, options).unwrap();
        block_on(session.warm_up()).unwrap();
        let before = gpu.counters();
        let ids = [session.insert(), session.insert()];
        block_on(session.next_tokens(&[(ids[0], &[32; 400])], &[Draw::default()])).unwrap();
        // A decode step and a prompt in one step, both of them split.
        for prompt in [400, 3, 1] {
            let batch: [(_, &[u32]); 2] = [(ids[0], &[32]), (ids[1], &vec![32; prompt])];
            block_on(session.next_tokens(&batch, &[Draw::default(); 2])).unwrap();
        }
        let after = gpu.counters();
        let layers = decoder.config().layers as u64;
        assert!(after.dispatches - before.dispatches > 12 * layers * 8, "{variant}");
        assert_eq!(after.pipelines, before.pipelines, "{variant}");
        assert_eq!(after.bind_groups, before.bind_groups, "{variant}");
        assert_eq!(after.buffers, before.buffers, "{variant}");
    }
}

#[test]
fn a_layer_is_at_most_nine_dispatches() {
    // As a discrete GPU plans it: split, and so merged, from 256 tokens on.
    let options = GpuOptions { target_workgroups: Some(1024), ..Default::default() };
    let gpu = gpu_with(options);
    for (variant, most) in [("gqa", 5), ("gta", 5), ("gla", 8), ("mla", 8)] {
        let folder = checkout(&format!("examples/models/{variant}"));
        let decoder = Decoder::load(&gpu, folder, DType::F16).unwrap();
        let mut session = Session::new(&decoder, SessionOptions::default()).unwrap();
        let id = session.insert();
        let mut dispatches = |tokens: &[u32]| {
            let before = gpu.counters().dispatches;
            block_on(session.next_tokens(&[(id, tokens)], &[Draw::default()])).unwrap();
            (gpu.counters().dispatches - before) as usize
        };
        // Beside the layers: embedding, head with its norm, sampling.
        let layers = decoder.config().layers;
        dispatches(&[32; 8]);
        assert_eq!(dispatches(&[32]), 3 + layers * most, "{variant}");
        dispatches(&[32; 900]);
        assert_eq!(dispatches(&[32]), 3 + layers * (most + 1), "{variant} with a merge");
    }
}

#[test]
fn bad_calls_are_typed_errors_and_change_nothing() {
    let decoder = decoder(gpu(), "gta", "errors");
    let options = SessionOptions {
        max_batch: 2,
        chunk: 4,
        cache_tokens: 64,
        page_size: 8,
        kv_dtype: DType::F32,
        ..Default::default()
    };
    let mut session = Session::new(&decoder, options).unwrap();
    let (a, b, gone) = (session.insert(), session.insert(), session.insert());
    session.remove(gone).unwrap();
    let mut reference = Session::new(&decoder, options).unwrap();
    let r = reference.insert();
    let start: &[u32] = &[9, 8, 7, 6, 5];
    block_on(session.logits(&[(a, start)])).unwrap();
    block_on(reference.logits(&[(r, start)])).unwrap();
    let state = (5, 0, session.stats());
    let (one, greedy) = ([1u32], [Draw::default()]);
    let long = vec![1; MAX_POSITIONS];
    macro_rules! fails {
        ($call:ident, $($argument:expr),+) => {{
            let result = block_on(session.$call($($argument),+)).map(drop);
            assert_eq!((session.len(a).unwrap(), session.len(b).unwrap(), session.stats()), state);
            result
        }};
    }
    assert_kind!(fails!(logits, &[]), ErrorKind::Argument { .. });
    assert_kind!(fails!(logits, &[(a, &one), (b, &one), (a, &one)]), ErrorKind::Argument { .. });
    assert_kind!(fails!(logits, &[(a, &one), (a, &one)]), ErrorKind::RepeatedSequence { .. });
    assert_kind!(fails!(logits, &[(a, &one), (gone, &one)]), ErrorKind::UnknownSequence { .. });
    assert_kind!(fails!(logits, &[(a, &one), (b, &[])]), ErrorKind::Argument { .. });
    assert_kind!(fails!(logits, &[(a, &one), (b, &[1, 257])]), ErrorKind::Argument { .. });
    assert_kind!(fails!(next_tokens, &[(a, &one)], &[]), ErrorKind::Shape { .. });
    assert_kind!(fails!(next_tokens_and_logits, &[(a, &one)], &[]), ErrorKind::Shape { .. });
    let hot = [Draw { sampling: Sampling::new(f32::NAN, 1.0), u: 0.0 }];
    assert_kind!(fails!(next_tokens, &[(a, &one)], &hot), ErrorKind::Argument { .. });
    assert_kind!(fails!(next_tokens, &[(a, &one)], &[Draw { u: 1.0, ..greedy[0] }]), ErrorKind::Argument { .. });
    let too_long = message(fails!(next_tokens, &[(a, &long)], &greedy));
    let wanted = format!("batch: sequence {a} has 5 tokens and gets 40, the model's max_position_embeddings is 40");
    assert_eq!(too_long, wanted);
    // 5 + 35 and 40 tokens are five pages each, of eight in all.
    assert_kind!(fails!(logits, &[(a, &long[..35]), (b, &long)]), ErrorKind::CacheFull { needed: 9, free: 7 });
    let after = block_on(session.logits(&[(a, &one)])).unwrap();
    assert_eq!(after, block_on(reference.logits(&[(r, &one)])).unwrap());

    for bad in [
        SessionOptions { max_batch: 0, ..options },
        SessionOptions { chunk: 0, ..options },
        SessionOptions { cache_tokens: 0, ..options },
        SessionOptions { page_size: 3, ..options },
        SessionOptions { page_size: 0, ..options },
        SessionOptions { chunk: usize::MAX, ..options },
    ] {
        assert_kind!(Session::new(&decoder, bad), ErrorKind::Argument { .. });
    }
    assert_kind!(Session::new(&decoder, SessionOptions { kv_dtype: DType::U32, ..options }), ErrorKind::DType { .. });
}

#[test]
fn a_lost_device_is_an_error_and_the_sequences_stay_as_they_were() {
    let gpu = gpu_with(GpuOptions::default());
    let mut session = session(&decoder(&gpu, "mla", "lost"), 1, 4);
    let a = session.insert();
    block_on(session.logits(&[(a, &[1, 2, 3, 4, 5, 6])])).unwrap();
    gpu.device().destroy();
    for _ in 0..2 {
        let result = block_on(session.next_tokens(&[(a, &[7, 8, 9, 10, 11])], &[Draw::default()]));
        assert_kind!(result, ErrorKind::DeviceLost { .. });
        assert_eq!(session.len(a).unwrap(), 6);
    }
}

#[test]
fn generation_stops_where_it_should_and_repeats_with_its_seed() {
    let decoder = decoder(gpu(), "gqa", "generate");
    let mut session = session(&decoder, 1, 64);
    let all = |_| ControlFlow::Continue(());
    let sampling = Sampling::new(1.5, 1.0);
    let options = GenerateOptions { max_new_tokens: 30, sampling, seed: 42 };
    let mut run = |options, prompt: &[u32]| block_on(generate(&mut session, prompt, options, all));
    let tokens = run(options, &[1, 2, 3]).unwrap();
    assert_eq!(tokens.len(), 30);
    assert_eq!(run(options, &[1, 2, 3]).unwrap(), tokens);
    assert_ne!(run(GenerateOptions { seed: 43, ..options }, &[1, 2, 3]).unwrap(), tokens);
    // The last token is not fed, so 40 positions hold a prompt of 11 and 30 new tokens.
    assert_eq!(run(options, &[7; 11]).unwrap().len(), 30);
    assert_kind!(run(options, &[7; 12]), ErrorKind::Argument { name: "max_new_tokens", .. });
    assert_kind!(run(options, &[]), ErrorKind::Argument { .. });
    let mut seen = Vec::new();
    let stop_at_five = |token| {
        seen.push(token);
        if seen.len() == 5 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let few = block_on(generate(&mut session, &[1, 2, 3], options, stop_at_five)).unwrap();
    assert_eq!(few, tokens[..5]);
    assert_eq!(seen, few);
    assert_eq!(session.stats().used, 0);
}
