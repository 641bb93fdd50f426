//! Beam search and best of n, against plain searches in sequences of their own; what they leave behind.

use crate::assert_kind;
use crate::common::*;
use crate::tiny::{Tiny, VARIANTS};
use latten::model::{
    beam_search, best_of, generate, BeamOptions, BestOfOptions, Continuation, Decoder, Draw, GenerateOptions, Session,
    SessionOptions, SplitMix64,
};
use latten::nn::Sampling;
use latten::{DType, ErrorKind, Gpu, GpuOptions, SeqId};
use pollster::block_on;
use std::future::Future;
use std::ops::ControlFlow;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

const PAGE: usize = 8;
const PROMPT: &[u32] = &[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

fn decoder(gpu: &Gpu, variant: &str, test: &str) -> Decoder {
    let folder = Tiny::new(variant, 5).write(&format!("{test}-{variant}"));
    Decoder::load(gpu, folder.path(), DType::F32).unwrap()
}

fn session(decoder: &Decoder, max_batch: usize) -> Session {
    let cache_tokens = (3 + 5 * max_batch) * PAGE; // for the longest sequences there are
    let options = SessionOptions {
        max_batch,
        chunk: 16,
        cache_tokens,
        page_size: PAGE,
        kv_dtype: DType::F32,
        ..Default::default()
    };
    Session::new(decoder, options).unwrap()
}

/// ln(softmax(logits)[token]).
fn log_probability(logits: &[f32], token: u32) -> f64 {
    let max = logits.iter().fold(f64::MIN, |max, l| max.max(f64::from(*l)));
    f64::from(logits[token as usize]) - max - logits.iter().map(|l| (f64::from(*l) - max).exp()).sum::<f64>().ln()
}

/// The logits after each token of `tokens`, from a new sequence.
fn all_logits(session: &mut Session, tokens: &[u32]) -> Vec<Vec<f32>> {
    let id = session.insert();
    let logits = block_on(session.all_logits(&[(id, tokens)])).unwrap().remove(0);
    session.remove(id).unwrap();
    logits.chunks_exact(session.decoder().config().vocab_size).map(<[f32]>::to_vec).collect()
}

/// Of a continuation of the prompt, computed whole.
fn total(session: &mut Session, tokens: &[u32]) -> f64 {
    let logits = all_logits(session, &[PROMPT, tokens].concat());
    tokens.iter().enumerate().map(|(i, token)| log_probability(&logits[PROMPT.len() - 1 + i], *token)).sum()
}

/// The search as `beam_search` documents it, but that it never ends early, and every beam is computed whole in a new
/// sequence at every step.
fn plain_search(session: &mut Session, options: BeamOptions<'_>) -> Vec<(Vec<u32>, f64)> {
    let score = |text: &(Vec<u32>, f64)| text.1 / (text.0.len() as f64).powf(options.length_penalty);
    let (mut live, mut ended) = (vec![(Vec::new(), 0.0)], Vec::new());
    for _ in 0..options.max_new_tokens {
        let mut next = Vec::new();
        for (tokens, before) in &live {
            let row = all_logits(session, &[PROMPT, tokens].concat()).pop().unwrap();
            for token in 0..row.len() as u32 {
                next.push(([&tokens[..], &[token]].concat(), before + log_probability(&row, token)));
            }
        }
        next.sort_by(|a, b| b.1.total_cmp(&a.1));
        let stops = |text: &(Vec<u32>, f64)| text.0.last().is_some_and(|last| options.stop_tokens.contains(last));
        ended.extend(next.iter().take(options.beams).filter(|text| stops(text)).cloned());
        live = next.into_iter().filter(|text| !stops(text)).take(options.beams).collect();
    }
    ended.extend(live);
    ended.sort_by(|a, b| score(b).total_cmp(&score(a)));
    ended.truncate(options.beams);
    ended
}

fn search(session: &mut Session, options: BeamOptions<'_>) -> Vec<Continuation> {
    let id = session.insert();
    let stats = session.stats();
    let found = block_on(beam_search(session, id, PROMPT, options)).unwrap();
    assert_eq!((session.len(id).unwrap(), session.stats()), (0, stats));
    session.remove(id).unwrap();
    found
}

fn check(found: &[Continuation], want: &[(Vec<u32>, f64)], options: BeamOptions<'_>) {
    let tokens: Vec<&[u32]> = found.iter().map(|c| &c.tokens[..]).collect();
    let wanted: Vec<&[u32]> = want.iter().map(|(tokens, _)| &tokens[..]).collect();
    assert_eq!(tokens, wanted, "{options:?}");
    for (got, (tokens, want)) in found.iter().zip(want) {
        assert!((got.log_probability - want).abs() < 1e-4, "{options:?}: {} wanted {want}", got.log_probability);
        let score = want / (tokens.len() as f64).powf(options.length_penalty);
        assert!((got.score - score).abs() < 1e-4, "{options:?}: {} wanted {score}", got.score);
        assert_eq!(got.stopped, tokens.last().is_some_and(|last| options.stop_tokens.contains(last)), "{options:?}");
    }
}

#[test]
fn beams_are_those_of_a_search_without_forks() {
    for variant in VARIANTS {
        let decoder = decoder(gpu(), variant, "beams");
        let mut session = session(&decoder, 4);
        let options = BeamOptions { beams: 4, max_new_tokens: 12, ..Default::default() };
        let found = search(&mut session, options);
        check(&found, &plain_search(&mut session, options), options);
        // Tokens of what was found, so that texts end on the way, some early and some late.
        let mut stopped = [0; 2];
        let stops = [found[0].tokens[1], found[1].tokens[4], found[3].tokens[8]];
        for stop_tokens in [&stops[..1], &stops, &[stops[2], stops[2], 200]] {
            for (beams, length_penalty) in [(4, 1.0), (3, 0.0), (2, -1.0), (4, 2.5), (1, 1.0)] {
                let options = BeamOptions { beams, length_penalty, stop_tokens, ..options };
                let found = search(&mut session, options);
                check(&found, &plain_search(&mut session, options), options);
                found.iter().for_each(|c| stopped[usize::from(c.stopped)] += 1);
            }
        }
        assert!(stopped.iter().all(|n| *n > 4), "{variant}: {stopped:?} went on and stopped");
    }
}

/// As many beams as there are tokens miss nothing of two tokens' length.
#[test]
fn enough_beams_find_the_best_of_all_there_are() {
    let decoder = decoder(gpu(), "gla", "exhaustive");
    let vocab = decoder.config().vocab_size as u32;
    let mut session = session(&decoder, vocab as usize);
    let first = all_logits(&mut session, PROMPT).pop().unwrap();
    let options = BeamOptions { beams: vocab as usize, max_new_tokens: 2, stop_tokens: &[40, 7], length_penalty: 1.0 };
    let mut all: Vec<_> = [40, 7].map(|stop| (vec![stop], log_probability(&first, stop))).into();
    for a in (0..vocab).filter(|a| ![40, 7].contains(a)) {
        let second = all_logits(&mut session, &[PROMPT, &[a]].concat()).pop().unwrap();
        let before = log_probability(&first, a);
        all.extend((0..vocab).map(|b| (vec![a, b], (before + log_probability(&second, b)) / 2.0)));
    }
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    let found = search(&mut session, options);
    assert_eq!(found.len(), vocab as usize);
    for (i, (got, want)) in found.iter().zip(&all).enumerate() {
        assert!((got.score - want.1).abs() < 1e-4, "place {i}: {} wanted {}", got.score, want.1);
        // Which of those nearly as probable comes first is a matter of rounding.
        let own = all.iter().find(|(tokens, _)| *tokens == got.tokens).unwrap();
        assert!((got.score - own.1).abs() < 1e-4, "place {i}: {} wanted {}", got.score, own.1);
    }
    assert_eq!(found[0].tokens, all[0].0);
    let mut tokens: Vec<&Vec<u32>> = found.iter().map(|c| &c.tokens).collect();
    tokens.sort();
    tokens.dedup();
    assert_eq!(tokens.len(), found.len());
}

#[test]
fn one_beam_is_greedy() {
    for variant in VARIANTS {
        let mut session = session(&decoder(gpu(), variant, "greedy"), 1);
        let greedy = GenerateOptions { max_new_tokens: 25, ..Default::default() };
        let want = block_on(generate(&mut session, PROMPT, greedy, |_| ControlFlow::Continue(()))).unwrap();
        let options = BeamOptions { beams: 1, max_new_tokens: 25, ..Default::default() };
        let found = search(&mut session, options);
        assert_eq!(found.len(), 1, "{variant}");
        assert_eq!(found[0].tokens, want, "{variant}");
    }
}

fn samples(session: &mut Session, options: BestOfOptions<'_>) -> Vec<Continuation> {
    let id = session.insert();
    let stats = session.stats();
    let made = block_on(best_of(session, id, PROMPT, options)).unwrap();
    assert_eq!((session.len(id).unwrap(), session.stats()), (0, stats));
    session.remove(id).unwrap();
    made
}

const HOT: Sampling = Sampling::new(1.3, 0.95);

#[test]
fn one_sample_is_what_generate_draws() {
    for variant in VARIANTS {
        let mut session = session(&decoder(gpu(), variant, "sample"), 1);
        for (seed, sampling) in
            [(3, HOT), (4, HOT), (u64::MAX, Sampling { top_p: 1.0, ..HOT }), (6, Sampling::default())]
        {
            let generate_as = GenerateOptions { max_new_tokens: 25, sampling, seed };
            let want = block_on(generate(&mut session, PROMPT, generate_as, |_| ControlFlow::Continue(()))).unwrap();
            let options = BestOfOptions { samples: 1, generate: generate_as, ..Default::default() };
            let [made] = &samples(&mut session, options)[..] else { panic!("{variant}: not one sample") };
            assert_eq!(made.tokens, want, "{variant}, seed {seed}");
            assert!((made.log_probability - total(&mut session, &want)).abs() < 1e-4, "{variant}, seed {seed}");
        }
    }
}

/// Whatever the others do: each has the tokens of its seed up to the stop token, the model's probability, and its
/// place.
#[test]
fn samples_are_what_their_seeds_draw_and_come_in_order() {
    for variant in VARIANTS {
        let mut session = session(&decoder(gpu(), variant, "best"), 5);
        let drawn = GenerateOptions { max_new_tokens: 20, sampling: HOT, seed: 17 };
        let mut seeds = SplitMix64::new(17);
        let seeds: Vec<u64> = [17].into_iter().chain((1..5).map(|_| seeds.next_u64())).collect();
        let mut whole = Vec::new();
        for seed in seeds {
            let options = GenerateOptions { seed, ..drawn };
            whole.push(block_on(generate(&mut session, PROMPT, options, |_| ControlFlow::Continue(()))).unwrap());
        }
        // A token that ends some of them, at different places.
        let stops = [whole[2][7], whole[4][0], whole[1][3]];
        let cases = [(&[][..], 1.0), (&stops[..1], 1.0), (&stops[1..2], 0.0), (&stops[..], 1.0)];
        for (stop_tokens, length_penalty) in cases {
            let cut = |tokens: &Vec<u32>| {
                let end = tokens.iter().position(|token| stop_tokens.contains(token));
                (tokens[..end.map_or(tokens.len(), |end| end + 1)].to_vec(), end.is_some())
            };
            let mut want: Vec<(Vec<u32>, bool, f64)> = Vec::new();
            for (tokens, stopped) in whole.iter().map(cut) {
                let total = total(&mut session, &tokens);
                want.push((tokens, stopped, total));
            }
            let score = |text: &(Vec<u32>, bool, f64)| text.2 / (text.0.len() as f64).powf(length_penalty);
            want.sort_by(|a, b| score(b).total_cmp(&score(a)));
            let options = BestOfOptions { samples: 5, generate: drawn, stop_tokens, length_penalty };
            let made = samples(&mut session, options);
            assert_eq!(made.len(), 5);
            for (got, want) in made.iter().zip(&want) {
                assert_eq!((&got.tokens, got.stopped), (&want.0, want.1), "{variant}, {options:?}");
                assert!(
                    (got.log_probability - want.2).abs() < 1e-4,
                    "{variant}: {} wanted {}",
                    got.log_probability,
                    want.2
                );
                assert!((got.score - score(want)).abs() < 1e-4, "{variant}: {} wanted {}", got.score, score(want));
            }
        }
    }
}

/// What the calls do, step by step and counted: the prompt's full pages are there once, its last one once for each.
#[test]
fn samples_share_the_pages_of_the_prompt() {
    let decoder = decoder(gpu(), "gla", "pages");
    let mut session = session(&decoder, 8);
    let page_bytes = session.cache().page_bytes();
    let prompt: Vec<u32> = (0..3 * PAGE as u32 + 3).collect();
    let root = session.insert();
    block_on(session.logits(&[(root, &prompt)])).unwrap();
    let forks: Vec<SeqId> = (0..8).map(|_| session.fork(root).unwrap()).collect();
    assert_eq!((session.stats().used, session.stats().shared, session.stats().bytes), (4, 4, 4 * page_bytes));
    let batch: Vec<(SeqId, &[u32])> = forks.iter().map(|id| (*id, &[1u32][..])).collect();
    block_on(session.next_tokens(&batch, &[Draw::default(); 8])).unwrap();
    let stats = session.stats();
    assert_eq!((stats.used, stats.shared, stats.bytes), (3 + 1 + 8, 3, 12 * page_bytes));
    forks.into_iter().for_each(|id| session.remove(id).unwrap());
    session.remove(root).unwrap();

    // 5 tokens fit the last page of each, since the fifth is not fed.
    let drawn = GenerateOptions { max_new_tokens: 6, sampling: HOT, seed: 1 };
    let best = BestOfOptions { samples: 8, generate: drawn, ..Default::default() };
    let beams = BeamOptions { beams: 8, max_new_tokens: 6, ..Default::default() };
    for pages in [11, 10] {
        session.set_byte_budget(pages * page_bytes).unwrap();
        let (id, stats) = (session.insert(), session.stats());
        let made = [
            block_on(best_of(&mut session, id, &prompt, best)),
            block_on(beam_search(&mut session, id, &prompt, beams)),
        ];
        for made in made {
            match pages {
                11 => assert_eq!(made.unwrap().len(), 8),
                _ => assert_kind!(made, ErrorKind::CacheFull { needed: 7, free: 6 }),
            }
        }
        assert_eq!((session.len(id).unwrap(), session.stats()), (0, stats));
        session.remove(id).unwrap();
    }
}

/// Bits of what a sequence says next.
fn next_logits(session: &mut Session, id: SeqId) -> Vec<u32> {
    let len = session.len(id).unwrap();
    let logits = block_on(session.logits(&[(id, &[77])])).unwrap();
    session.truncate(id, len).unwrap();
    logits[0].iter().map(|l| l.to_bits()).collect()
}

/// A session with a sequence of a page and a half, and one beside it.
fn busy(decoder: &Decoder) -> (Session, SeqId) {
    let mut session = session(decoder, 4);
    let (id, other) = (session.insert(), session.insert());
    block_on(session.logits(&[(id, PROMPT), (other, &PROMPT[..3])])).unwrap();
    (session, id)
}

const BEAMS: BeamOptions<'_> = BeamOptions { beams: 4, max_new_tokens: 20, stop_tokens: &[], length_penalty: 1.0 };
const SAMPLES: BestOfOptions<'_> = BestOfOptions {
    samples: 4,
    generate: GenerateOptions { max_new_tokens: 20, sampling: HOT, seed: 9 },
    stop_tokens: &[],
    length_penalty: 1.0,
};

#[test]
fn a_cache_that_fills_up_on_the_way_is_left_as_it_was() {
    let (mut session, id) = busy(&decoder(gpu(), "gqa", "fills"));
    let logits = next_logits(&mut session, id);
    let (stats, page_bytes) = (session.stats(), session.cache().page_bytes());
    let (mut failed, mut fits) = (0, false);
    for pages in 3..=stats.total as u64 {
        session.set_byte_budget(pages * page_bytes).unwrap();
        let before = session.stats();
        let beams = block_on(beam_search(&mut session, id, &PROMPT[..2], BEAMS));
        assert_eq!(session.stats(), before, "{pages} pages");
        let samples = block_on(best_of(&mut session, id, &PROMPT[..2], SAMPLES));
        assert_eq!((session.stats(), session.len(id).unwrap()), (before, PROMPT.len()), "{pages} pages");
        fits = beams.is_ok() && samples.is_ok();
        if fits {
            break;
        }
        failed += 1;
        for result in [beams, samples].into_iter().filter(|r| r.is_err()) {
            assert_kind!(result, ErrorKind::CacheFull { .. });
        }
    }
    assert!(fits && failed > 8, "{failed} sizes of the cache were too small");
    session.set_byte_budget(u64::MAX).unwrap();
    assert_eq!((session.stats(), next_logits(&mut session, id)), (stats, logits));
}

/// Polls a future so often, and drops it.
fn stop_after<T>(polls: usize, future: impl Future<Output = T>) -> bool {
    let mut future = pin!(future);
    (0..polls).all(|_| future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending())
}

#[test]
fn a_search_that_is_dropped_leaves_nothing() {
    // A device of its own, so that no step waits for another test's.
    let gpu = gpu_with(GpuOptions::default());
    let (mut session, id) = busy(&decoder(&gpu, "mla", "dropped"));
    let (logits, stats) = (next_logits(&mut session, id), session.stats());
    for polls in [1, 2, 7, 19] {
        assert!(stop_after(polls, beam_search(&mut session, id, &PROMPT[..2], BEAMS)), "{polls} polls");
        assert_eq!((session.stats(), session.len(id).unwrap()), (stats, PROMPT.len()), "beams, {polls} polls");
        assert!(stop_after(polls, best_of(&mut session, id, &PROMPT[..2], SAMPLES)), "{polls} polls");
        assert_eq!((session.stats(), session.len(id).unwrap()), (stats, PROMPT.len()), "samples, {polls} polls");
        assert_eq!(next_logits(&mut session, id), logits, "{polls} polls");
    }
    let mut whole = pin!(beam_search(&mut session, id, &PROMPT[..2], BEAMS));
    let mut context = Context::from_waker(Waker::noop());
    let found = (0..20).find_map(|_| match whole.as_mut().poll(&mut context) {
        Poll::Ready(found) => Some(found.unwrap()),
        Poll::Pending => None,
    });
    assert_eq!(found.unwrap().len(), 4, "a pause for every step but the last");
}

#[test]
fn bad_options_are_typed_errors_and_change_nothing() {
    let (mut session, id) = busy(&decoder(gpu(), "gta", "options"));
    let gone = session.insert();
    session.remove(gone).unwrap();
    let stats = session.stats();
    let mut beams = |id, input: &[u32], options: BeamOptions<'_>| {
        let result = block_on(beam_search(&mut session, id, input, options));
        assert_eq!(session.stats(), stats, "{options:?}");
        result
    };
    let input = &PROMPT[..2];
    assert_kind!(beams(id, input, BeamOptions { beams: 0, ..BEAMS }), ErrorKind::Argument { name: "beams", .. });
    let text = message(beams(id, input, BeamOptions { beams: 5, ..BEAMS }));
    assert_eq!(text, "beams: 5, wanted 1..=4, the session's max_batch");
    let none = BeamOptions { max_new_tokens: 0, ..BEAMS };
    assert_kind!(beams(id, input, none), ErrorKind::Argument { name: "max_new_tokens", .. });
    // 11 and 2 tokens are there; the last of the new ones is not fed.
    let text = message(beams(id, input, BeamOptions { max_new_tokens: 29, ..BEAMS }));
    assert_eq!(text, "max_new_tokens: 29 after a prompt of 13 exceed the model's max_position_embeddings, 40");
    assert_kind!(beams(id, &[], BEAMS), ErrorKind::Argument { name: "batch", .. });
    assert_kind!(beams(id, &[257], BEAMS), ErrorKind::Argument { .. });
    assert_kind!(beams(gone, input, BEAMS), ErrorKind::UnknownSequence { .. });
    let text = message(beams(id, input, BeamOptions { stop_tokens: &[3, 257], ..BEAMS }));
    assert_eq!(text, "stop_tokens: 257 is not in the vocabulary of 257");
    for length_penalty in [f64::NAN, f64::INFINITY, 10.5, -11.0] {
        let options = BeamOptions { length_penalty, ..BEAMS };
        assert_kind!(beams(id, input, options), ErrorKind::Argument { name: "length_penalty", .. });
    }

    let mut samples = |id, input: &[u32], options: BestOfOptions<'_>| {
        let result = block_on(best_of(&mut session, id, input, options));
        assert_eq!(session.stats(), stats, "{options:?}");
        result
    };
    for n in [0, 5] {
        let options = BestOfOptions { samples: n, ..SAMPLES };
        assert_kind!(samples(id, input, options), ErrorKind::Argument { name: "samples", .. });
    }
    let drawn = |max_new_tokens, temperature| {
        let sampling = Sampling::new(temperature, 1.0);
        BestOfOptions { generate: GenerateOptions { max_new_tokens, sampling, seed: 0 }, ..SAMPLES }
    };
    for n in [0, 29] {
        assert_kind!(samples(id, input, drawn(n, 1.0)), ErrorKind::Argument { name: "max_new_tokens", .. });
    }
    assert_kind!(samples(id, input, drawn(3, -1.0)), ErrorKind::Argument { name: "temperature", .. });
    assert_kind!(samples(id, &[], SAMPLES), ErrorKind::Argument { name: "batch", .. });
    assert_kind!(samples(gone, input, SAMPLES), ErrorKind::UnknownSequence { .. });
    assert_eq!(samples(id, input, drawn(28, 1.0)).unwrap().len(), 4);
}

/// Once each size of batch has been seen.
#[test]
fn a_second_search_creates_nothing() {
    let gpu = gpu_with(GpuOptions::default());
    for variant in VARIANTS {
        let mut session = session(&decoder(&gpu, variant, "created"), 4);
        let stop_tokens = &search(&mut session, BEAMS)[0].tokens[9..11];
        let run = |session: &mut Session| {
            search(session, BeamOptions { stop_tokens, ..BEAMS });
            samples(session, SAMPLES);
        };
        run(&mut session);
        let before = gpu.counters();
        run(&mut session);
        let after = gpu.counters();
        assert!(after.dispatches > before.dispatches + 100, "{variant}");
        assert_eq!(after.pipelines, before.pipelines, "{variant}");
        assert_eq!(after.bind_groups, before.bind_groups, "{variant}");
        assert_eq!(after.buffers, before.buffers, "{variant}");
    }
}
