//! Token streams, whose steps are with the device before the tokens of the ones before are read: tokens and what is left behind
//! are those of the plain loop, bit for bit, however a stream ends.

use crate::common::*;
use crate::tiny::{Tiny, MAX_POSITIONS, VARIANTS};
use latten::model::{Decoder, Draw, Session, SessionOptions, TokenStream};
use latten::nn::{Sampling, SwiGlu};
use latten::{DType, ErrorKind, Gpu, GpuOptions, Result, SeqId, Tensor};
use pollster::block_on;

const PAGE: usize = 4;
const PROMPTS: [&[u32]; 3] = [&[5, 6, 7, 8, 9], &[100], &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]];

fn decoder(gpu: &Gpu, variant: &str, test: &str) -> Decoder {
    let folder = Tiny::new(variant, 5).write(&format!("{test}-{variant}"));
    Decoder::load(gpu, folder.path(), DType::F32).unwrap()
}

fn options(chunk: usize, pages: usize, window: Option<usize>) -> SessionOptions {
    SessionOptions {
        max_batch: 3,
        chunk,
        cache_tokens: pages * PAGE,
        page_size: PAGE,
        kv_dtype: DType::F32,
        window,
        ..Default::default()
    }
}

/// How token `step` of a sequence is drawn: greedily, or from a nucleus.
fn draw(greedy: bool, sequence: usize, step: usize) -> Draw {
    let u = ((sequence * 31 + step * 17 + 5) % 97) as f32 / 97.0;
    match greedy {
        true => Draw::default(),
        false => Draw { sampling: Sampling::new(1.2, 0.9), u },
    }
}

/// Draws of a stream, which asks for all sequences of a step in turn.
fn draws(greedy: bool, sequences: usize) -> impl FnMut(usize) -> Draw {
    let mut asked = 0;
    move |sequence| {
        asked += 1;
        draw(greedy, sequence, (asked - 1) / sequences)
    }
}

fn prompts(session: &mut Session, count: usize) -> Vec<(SeqId, &'static [u32])> {
    PROMPTS[..count].iter().map(|prompt| (session.match_prefix(prompt, 3), *prompt)).collect()
}

/// The same in sequences that give pages back to a window, if there is one.
fn prompts_with(session: &mut Session, window: Option<usize>, count: usize) -> Vec<(SeqId, &'static [u32])> {
    match window {
        Some(_) => PROMPTS[..count].iter().map(|prompt| (session.insert(), *prompt)).collect(),
        None => prompts(session, count),
    }
}

/// So many tokens of each sequence by the plain loop.
fn plain(session: &mut Session, batch: &[(SeqId, &[u32])], greedy: bool, steps: usize) -> Vec<Vec<u32>> {
    let mut next: Vec<(SeqId, Vec<u32>)> = batch.iter().map(|(id, tokens)| (*id, tokens.to_vec())).collect();
    (0..steps)
        .map(|step| {
            let fed: Vec<(SeqId, &[u32])> = next.iter().map(|(id, tokens)| (*id, &tokens[..])).collect();
            let draws: Vec<Draw> = (0..fed.len()).map(|sequence| draw(greedy, sequence, step)).collect();
            let tokens = block_on(session.next_tokens(&fed, &draws)).unwrap();
            next = next.iter().zip(&tokens).map(|((id, _), token)| (*id, vec![*token])).collect();
            tokens
        })
        .collect()
}

/// What is left behind, as anyone can see it.
#[derive(Debug, PartialEq)]
struct State {
    lengths: Vec<usize>,
    /// Used and free.
    pages: [usize; 2],
    /// Those that are known by their sequences.
    tokens: Vec<Option<Vec<u32>>>,
    /// Bits of the logits after one token more.
    logits: Vec<u32>,
}

fn state(session: &mut Session, ids: &[SeqId]) -> State {
    let lengths = ids.iter().map(|id| session.len(*id).unwrap()).collect();
    let pages = [session.stats().used, session.stats().free];
    let tokens = ids.iter().map(|id| session.cache().tokens(*id).unwrap()).collect();
    let batch: Vec<(SeqId, &[u32])> = ids.iter().map(|id| (*id, &[42][..])).collect();
    let logits = block_on(session.logits(&batch)).unwrap().concat();
    State { lengths, pages, tokens, logits: logits.iter().map(|l| l.to_bits()).collect() }
}

fn take<D: FnMut(usize) -> Draw>(stream: &mut TokenStream<'_, D>, more: bool) -> Result<Vec<u32>> {
    block_on(stream.next(more))
}

/// Prompts of one step and of several, one sequence and three, and streams that end after any token: with a step under way, which
/// is rolled back, or without.
#[test]
fn streams_equal_the_plain_loop_however_they_end() {
    for variant in VARIANTS {
        let decoder = decoder(gpu(), variant, "streams");
        for (count, chunk, greedy, window) in
            [(1, 64, true, None), (3, 64, false, None), (3, 4, false, None), (2, 3, true, None), (1, 64, true, Some(6))]
        {
            let what = format!("{variant}, {count} sequences, chunks of {chunk}, greedy {greedy}, window {window:?}");
            for (steps, ahead) in [(1, true), (1, false), (4, true), (9, true), (9, false)] {
                let mut session = Session::new(&decoder, options(chunk, 60, window)).unwrap();
                let batch = prompts_with(&mut session, window, count);
                let want = plain(&mut session, &batch, greedy, steps);
                let ids: Vec<SeqId> = batch.iter().map(|(id, _)| *id).collect();
                let left = state(&mut session, &ids);

                let mut session = Session::new(&decoder, options(chunk, 60, window)).unwrap();
                let batch = prompts_with(&mut session, window, count);
                let mut stream = session.stream(&batch, draws(greedy, count)).unwrap();
                let got: Vec<_> =
                    (0..steps).map(|step| take(&mut stream, ahead || step + 1 < steps).unwrap()).collect();
                drop(stream);
                assert_eq!(got, want, "{what}, {steps} steps");
                let ids: Vec<SeqId> = batch.iter().map(|(id, _)| *id).collect();
                assert_eq!(state(&mut session, &ids), left, "{what}, {steps} steps, ahead {ahead}");
            }
        }
    }
}

/// A stream that begins is not fed before its first token is asked for; a future that is dropped has changed nothing.
#[test]
fn what_is_not_asked_for_is_not_fed() {
    let decoder = decoder(gpu(), "gla", "streams-unasked");
    let mut session = Session::new(&decoder, options(64, 60, None)).unwrap();
    let batch = prompts(&mut session, 2);
    drop(session.stream(&batch, draws(true, 2)).unwrap());
    let mut stream = session.stream(&batch, draws(true, 2)).unwrap();
    drop(stream.next(true));
    let first = take(&mut stream, true).unwrap();
    drop(stream.next(true));
    let second = take(&mut stream, true).unwrap();
    drop(stream);
    assert_eq!([session.len(batch[0].0).unwrap(), session.len(batch[1].0).unwrap()], [6, 2]);
    let mut other = Session::new(&decoder, options(64, 60, None)).unwrap();
    let batch = prompts(&mut other, 2);
    assert_eq!(plain(&mut other, &batch, true, 2), [first, second]);
}

/// One submit and one wait for each step, and nothing made, though a step is under way while the last is read.
#[test]
fn a_stream_creates_nothing_and_waits_once_per_step() {
    let gpu = gpu_with(GpuOptions::default());
    for variant in VARIANTS {
        let decoder = decoder(&gpu, variant, "streams-counters");
        let mut session = Session::new(&decoder, options(64, 60, None)).unwrap();
        let batch = prompts(&mut session, 2);
        let mut stream = session.stream(&batch, draws(false, 2)).unwrap();
        (0..3).for_each(|_| drop(take(&mut stream, true).unwrap()));
        let before = gpu.counters();
        (0..12).for_each(|_| drop(take(&mut stream, true).unwrap()));
        let after = gpu.counters();
        let made = |c: &latten::gpu::Counters| (c.buffers, c.pipelines, c.bind_groups);
        assert_eq!(made(&after), made(&before), "{variant}");
        assert_eq!((after.submits - before.submits, after.readbacks - before.readbacks), (12, 12), "{variant}");
    }
}

/// A token of which no probabilities come: the tokens before it are handed out, then the error comes, and comes again. With a window,
/// too, in a step whose commit gives a page back.
#[test]
fn logits_without_probabilities_end_a_stream_where_they_end_the_loop() {
    for window in [None, Some(6)] {
        let mut tiny = Tiny::new("gqa", 5);
        // The same but for the token: one that is not drawn.
        let mut other = tiny.clone();
        other.spoil_logits_after(256);
        let clean = Decoder::load(gpu(), other.write("streams-clean").path(), DType::F32).unwrap();
        let mut session = Session::new(&clean, options(64, 60, window)).unwrap();
        let batch = prompts_with(&mut session, window, 1);
        let tokens: Vec<u32> = plain(&mut session, &batch, false, 24).concat();
        // After it there are 9 tokens, or 4 more, of which a window of 6 hides a page.
        let first = |at: &usize| !tokens[..*at].contains(&tokens[*at]);
        let at = (3..tokens.len()).step_by(PAGE).find(first).unwrap();
        tiny.spoil_logits_after(tokens[at]);
        let decoder = Decoder::load(gpu(), tiny.write("streams-spoiled").path(), DType::F32).unwrap();
        let mut session = Session::new(&decoder, options(64, 60, window)).unwrap();
        let batch = prompts_with(&mut session, window, 1);
        let mut stream = session.stream(&batch, draws(false, 1)).unwrap();
        (0..=at).for_each(|step| assert_eq!(take(&mut stream, true).unwrap(), [tokens[step]], "step {step}"));
        for _ in 0..2 {
            let error = take(&mut stream, true).unwrap_err();
            assert!(error.to_string().contains(&format!("after its token {}:", PROMPTS[0].len() + at)), "{error}");
        }
        drop(stream);
        assert_eq!(session.len(batch[0].0).unwrap(), PROMPTS[0].len() + at, "{window:?}");
    }
}

/// A cache that is full, and the last position: heard of when that token is asked for, not before.
#[test]
fn limits_end_a_stream_where_they_end_the_loop() {
    let decoder = decoder(gpu(), "mla", "streams-limits");
    // Three pages hold the prompt of 5 and 7 tokens after it.
    let mut session = Session::new(&decoder, options(64, 3, None)).unwrap();
    let batch = prompts(&mut session, 1);
    let mut stream = session.stream(&batch, draws(true, 1)).unwrap();
    (0..8).for_each(|_| drop(take(&mut stream, true).unwrap()));
    for _ in 0..2 {
        let error = take(&mut stream, true).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::CacheFull { .. }), "{error}");
    }
    drop(stream);
    assert_eq!(session.len(batch[0].0).unwrap(), 12);

    let mut session = Session::new(&decoder, options(64, 60, None)).unwrap();
    let prompt: Vec<u32> = (0..MAX_POSITIONS as u32 - 2).collect();
    let id = session.insert();
    let mut stream = session.stream(&[(id, &prompt)], draws(true, 1)).unwrap();
    (0..3).for_each(|_| drop(take(&mut stream, true).unwrap()));
    let error = take(&mut stream, true).unwrap_err();
    assert!(error.to_string().contains("max_position_embeddings"), "{error}");
    drop(stream);
    assert_eq!(session.len(id).unwrap(), MAX_POSITIONS);
    assert!(session.stream(&[(id, &[1])], draws(true, 1)).is_err());
    assert!(session.stream(&[], draws(true, 1)).is_err());
    assert!(session.stream(&[(id, &[])], draws(true, 1)).is_err());
}

/// Commands of another caller that are lost beside a stream, between two of its tokens: the error says so, the step is done
/// again, and all tokens are those of a session alone. With a window, too, whose pages cannot be had back.
#[test]
fn lost_commands_are_heard_of_and_the_step_is_done_again() {
    let gpu = gpu_with(GpuOptions::default());
    let decoder = decoder(&gpu, "gqa", "streams-lost");
    let swiglu = SwiGlu::new(&gpu).unwrap();
    let out = Tensor::zeros(&gpu, &[1, 2], DType::F32).unwrap();
    for window in [None, Some(6)] {
        let mut session = Session::new(&decoder, options(64, 60, window)).unwrap();
        let batch = prompts_with(&mut session, window, 2);
        let want = plain(&mut session, &batch, false, 14);
        let mut session = Session::new(&decoder, options(64, 60, window)).unwrap();
        let batch = prompts_with(&mut session, window, 2);
        let mut stream = session.stream(&batch, draws(false, 2)).unwrap();
        let (mut got, mut heard) = (Vec::new(), 0);
        for step in 0.. {
            if step % 3 == 2 {
                lose_a_batch(&gpu, &swiglu, &out);
            }
            match take(&mut stream, true) {
                Ok(tokens) => got.push(tokens),
                Err(e) if matches!(e.kind(), ErrorKind::CommandsLost { .. }) => heard += 1,
                Err(e) => panic!("{e:?}"),
            }
            if got.len() == want.len() {
                break;
            }
        }
        assert_eq!(got, want);
        assert!(heard > 1, "{heard}");
    }
}

/// What the host spent on steps is no more than the time they took, and each step is one submit of one pass.
#[test]
fn submit_times_are_those_of_steps_and_off_until_asked_for() {
    let gpu = gpu_with(GpuOptions::default());
    let decoder = decoder(&gpu, "gqa", "streams-times");
    let mut session = Session::new(&decoder, options(64, 60, None)).unwrap();
    let batch = prompts(&mut session, 1);
    let error = block_on(gpu.take_submit_times()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Argument { name: "submit_times", .. }), "{error}");
    let mut stream = session.stream(&batch, draws(true, 1)).unwrap();
    (0..3).for_each(|_| drop(take(&mut stream, true).unwrap()));
    let before = gpu.counters();
    gpu.start_submit_times().unwrap();
    let start = std::time::Instant::now();
    (0..10).for_each(|_| drop(take(&mut stream, true).unwrap()));
    let took = start.elapsed();
    let times = block_on(gpu.take_submit_times()).unwrap();
    assert_eq!((times.submits, times.dispatches), (10, gpu.counters().dispatches - before.dispatches));
    let parts = [times.record, times.finish, times.submit, times.wait];
    assert!(parts.iter().all(|part| !part.is_zero()) && parts.iter().sum::<std::time::Duration>() <= took, "{times:?}");
    if gpu.capabilities().timestamps {
        assert_eq!(times.passes.len(), 10);
        assert!(times.passes.windows(2).all(|pair| pair[0].from_us <= pair[1].from_us), "{times:?}");
        assert!(times.passes[0].from_us == 0.0 && times.passes.iter().all(|pass| pass.us > 0.0), "{times:?}");
    }
    assert!(block_on(gpu.take_submit_times()).is_err());
    drop(take(&mut stream, true).unwrap());
}
