//! Speculative decoding: the tokens of plain generation, in fewer steps; and what it leaves behind.

use crate::assert_kind;
use crate::common::checkout::checkout;
use crate::common::*;
use crate::tiny::{Tiny, MAX_POSITIONS, VARIANTS};
use latten::model::{
    generate, generate_speculative, Decoder, Drafter, GenerateOptions, Session, SessionOptions, Speculated,
    SpeculativeOptions,
};
use latten::nn::{Sampling, SwiGlu};
use latten::{DType, ErrorKind, Gpu, GpuOptions, Tensor};
use pollster::block_on;
use std::future::Future;
use std::ops::ControlFlow;
use std::pin::pin;
use std::task::{Context, Waker};

const PROMPT: &[u32] = &[5, 6, 7, 8, 5, 6, 7];
const LOOKUP: Drafter<'_> = Drafter::Lookup { max_ngram: 3, min_ngram: 1 };

fn decoder(gpu: &Gpu, variant: &str, seed: u64) -> Decoder {
    let folder = Tiny::new(variant, seed).write(&format!("speculative-{seed}-{variant}"));
    Decoder::load(gpu, folder.path(), DType::F32).unwrap()
}

fn session(decoder: &Decoder, cache_tokens: usize) -> Session {
    let options = SessionOptions {
        max_batch: 1,
        chunk: 16,
        cache_tokens,
        page_size: 4,
        kv_dtype: DType::F32,
        ..Default::default()
    };
    Session::new(decoder, options).unwrap()
}

fn options(max_new_tokens: usize, max_draft: usize) -> SpeculativeOptions {
    SpeculativeOptions { generate: GenerateOptions { max_new_tokens, ..Default::default() }, max_draft }
}

fn go_on(_: u32) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn plain(session: &mut Session, options: SpeculativeOptions) -> Vec<u32> {
    block_on(generate(session, PROMPT, options.generate, go_on)).unwrap()
}

fn run(target: &mut Session, drafter: Drafter<'_>, options: SpeculativeOptions) -> Speculated {
    let made = block_on(generate_speculative(target, drafter, PROMPT, options, go_on)).unwrap();
    // A step gives what stood and one more; it is judged with the drafts that it was asked about.
    assert_eq!(made.tokens.len(), made.steps + made.accepted, "{made:?}");
    assert!(made.accepted <= made.drafted && made.drafted <= made.steps * options.max_draft, "{made:?}");
    assert_eq!(target.stats().used, 0);
    made
}

/// The whole of the model's positions: what is fed ends exactly there.
#[test]
fn greedy_tokens_are_those_of_plain_generation() {
    let all = MAX_POSITIONS - PROMPT.len() + 1;
    for variant in VARIANTS {
        let [target, other] = [5, 6].map(|seed| decoder(gpu(), variant, seed));
        let (mut target_session, mut same, mut other) =
            (session(&target, 40), session(&target, 40), session(&other, 40));
        for (tokens, max_draft) in [(all, 4), (all, 1), (all, 9), (1, 4), (2, 4)] {
            let options = options(tokens, max_draft);
            let want = plain(&mut target_session, options);
            let found = run(&mut target_session, LOOKUP, options);
            assert_eq!(found.tokens, want, "{variant}, lookup of {max_draft}");
            let own = run(&mut target_session, Drafter::Model(&mut same), options);
            assert_eq!(own.tokens, want, "{variant}, {max_draft} by the model itself");
            assert_eq!(own.accepted, own.drafted, "{variant}: the model disagrees with itself");
            let least = 1 + (tokens - 1).div_ceil(max_draft + 1);
            assert_eq!(own.steps, least, "{variant}, {max_draft} of {tokens}");
            let strange = run(&mut target_session, Drafter::Model(&mut other), options);
            assert_eq!(strange.tokens, want, "{variant}, {max_draft} by a strange model");
            assert!(tokens < 9 || strange.accepted < strange.drafted, "{variant}: {strange:?}");
            // However often they are wrong, a step is asked about one at least; but for the prompt's and the last.
            assert!(strange.drafted + 2 >= strange.steps, "{variant}: {strange:?}");
            assert_eq!((same.stats().used, other.stats().used), (0, 0));
        }
    }
}

/// Guesses and their judgement are with the device before the host reads any of them. A drafter on another device is read first.
#[test]
fn a_step_and_its_guesses_are_one_wait() {
    // Devices of their own: the counters are per device, and tests run side by side.
    let [gpu, elsewhere] = [(); 2].map(|()| gpu_with(GpuOptions::default()));
    for variant in VARIANTS {
        let mut target = session(&decoder(&gpu, variant, 5), 40);
        let want = plain(&mut target, options(20, 4));
        let mut beside = session(&decoder(&gpu, variant, 5), 40);
        for _ in 0..2 {
            let before = gpu.counters();
            let made = run(&mut target, Drafter::Model(&mut beside), options(20, 4));
            let after = gpu.counters();
            assert_eq!((made.tokens, made.accepted), (want.clone(), made.drafted), "{variant}");
            assert_eq!(after.readbacks - before.readbacks, made.steps as u64, "{variant}");
            assert_eq!(after.submits - before.submits, (made.steps + made.drafted) as u64, "{variant}");
        }
        let mut elsewhere = session(&decoder(&elsewhere, variant, 5), 40);
        let before = gpu.counters();
        let made = run(&mut target, Drafter::Model(&mut elsewhere), options(20, 4));
        assert_eq!((made.tokens, made.accepted), (want, made.drafted), "{variant}");
        assert_eq!(gpu.counters().readbacks - before.readbacks, made.steps as u64, "{variant}");
    }
}

/// Commands of another caller that are lost with the drafter's: that is told, and the next call is as it should be.
#[test]
fn lost_commands_are_told() {
    let gpu = gpu_with(GpuOptions::default());
    let swiglu = SwiGlu::new(&gpu).unwrap();
    let out = Tensor::zeros(&gpu, &[1, 2], DType::F32).unwrap();
    let [mut target, mut draft] = [(); 2].map(|()| session(&decoder(&gpu, "gqa", 5), 40));
    let want = plain(&mut target, options(20, 4));
    let mut heard = 0;
    for lost_at in 0..6 {
        let mut count = 0;
        let on_token = |_| {
            if count == lost_at {
                let _ = record_doomed(&gpu, &swiglu, &out);
            }
            count += 1;
            ControlFlow::Continue(())
        };
        let drafter = Drafter::Model(&mut draft);
        match block_on(generate_speculative(&mut target, drafter, PROMPT, options(20, 4), on_token)) {
            Ok(made) => assert_eq!(made.tokens, want),
            Err(e) => {
                assert_kind!(Err::<(), _>(e), ErrorKind::CommandsLost { .. });
                heard += 1;
            }
        }
        assert_eq!((target.stats().used, draft.stats().used), (0, 0));
        assert_eq!(run(&mut target, Drafter::Model(&mut draft), options(20, 4)).tokens, want);
    }
    assert!(heard > 0);
}

/// A drafter whose chunk is shorter than the prompt, a target whose chunk is just one more than the guesses.
#[test]
fn chunks_of_any_size_will_do() {
    let prompt: Vec<u32> = PROMPT.iter().chain(PROMPT).chain(PROMPT).copied().collect();
    for variant in ["gqa", "gla"] {
        let [decoder, other] = [5, 6].map(|seed| decoder(gpu(), variant, seed));
        let session = |decoder: &Decoder, chunk| {
            let options = SessionOptions { chunk, max_batch: 1, cache_tokens: 60, page_size: 4, ..Default::default() };
            Session::new(decoder, options).unwrap()
        };
        let want = block_on(generate(&mut session(&decoder, 16), &prompt, options(12, 4).generate, go_on)).unwrap();
        for (target, draft) in [(3, 1), (3, 4), (5, 2), (16, 1)] {
            let (mut target, mut draft) = (session(&decoder, target), session(&other, draft));
            let drafter = Drafter::Model(&mut draft);
            let made = block_on(generate_speculative(&mut target, drafter, &prompt, options(12, 4), go_on)).unwrap();
            assert_eq!(made.tokens, want, "{variant}");
            assert!(made.drafted > 0, "{variant}: {made:?}");
        }
    }
}

/// The second token's probabilities, over what the first may be. That of looked-up guesses is tested at the rule itself.
#[test]
fn drawn_tokens_repeat_with_their_seed_and_have_the_models_probabilities() {
    let [target, draft] = [5, 6].map(|seed| decoder(gpu(), "gla", seed));
    let (mut target, mut draft) = (session(&target, 80), session(&draft, 80));
    let mut options = options(2, 3);
    options.generate.sampling = Sampling::new(0.35, 0.9);
    let logits = |session: &mut Session, tokens: &[u32]| {
        let id = session.insert();
        let logits = block_on(session.logits(&[(id, tokens)])).unwrap().remove(0);
        session.remove(id).unwrap();
        logits
    };
    let mut of = |tokens: &[u32]| {
        let row = f64s(&logits(&mut target, tokens));
        let mut share = vec![0.0; row.len()];
        for i in 0..2000 {
            let u = (f64::from(i) + 0.5) / 2000.0;
            share[latten::reference::sample(&row, 0.35f32.into(), 0.9f32.into(), u).unwrap()] += 5e-4;
        }
        share
    };
    let first = of(PROMPT);
    let mut wanted = vec![0.0; first.len()];
    for (token, p) in first.iter().enumerate().filter(|(_, p)| **p > 0.0) {
        let next = of(&[PROMPT, &[token as u32]].concat());
        wanted.iter_mut().zip(next).for_each(|(sum, next)| *sum += p * next);
    }
    const RUNS: u64 = 1500;
    let (mut seen, mut rejected) = (vec![0.0; wanted.len()], 0);
    // A third token makes room for a guess of the second.
    options.generate.max_new_tokens = 3;
    for seed in 0..RUNS {
        options.generate.seed = seed * 77;
        let made = run(&mut target, Drafter::Model(&mut draft), options);
        seen[made.tokens[1] as usize] += 1.0 / RUNS as f64;
        rejected += made.drafted - made.accepted;
        if seed < 3 {
            assert_eq!(run(&mut target, Drafter::Model(&mut draft), options), made, "the same seed gave others");
        }
    }
    assert!(rejected > 100, "{rejected} guesses did not stand");
    for (token, (seen, p)) in seen.iter().zip(&wanted).enumerate() {
        // Five standard deviations, and the grid that the shares were counted on.
        let bound = 5.0 * (p * (1.0 - p) / RUNS as f64).sqrt() + 2e-3;
        assert!((seen - p).abs() < bound, "token {token}: {seen}, wanted {p}");
    }
}

/// Pages of guesses that did not stand are never found as those of what did.
#[test]
fn a_cut_sequence_that_others_may_share_holds_the_text_that_stood() {
    let decoder = decoder(gpu(), "gqa", 5);
    let mut session = session(&decoder, 64);
    let text: Vec<u32> = (20..29).collect();
    let feed =
        |session: &mut Session, id, tokens: &[u32]| block_on(session.all_logits(&[(id, tokens)])).unwrap().remove(0);
    for cut in 1..9 {
        let id = session.match_prefix(&[0], cut as u64);
        feed(&mut session, id, &[&text[..cut], &[90, 91, 92, 93, 94, 95]].concat());
        session.truncate(id, cut).unwrap();
        feed(&mut session, id, &text[cut..]);
        let long = [&text[..], &[60]].concat();
        let found = session.match_prefix(&long, cut as u64);
        assert_eq!(session.len(found).unwrap(), 8, "{cut}");
        let whole = session.insert();
        let want = feed(&mut session, whole, &long);
        let got = feed(&mut session, found, &long[8..]);
        assert_close(&format!("cut at {cut}"), &got, &f64s(&want[want.len() - got.len()..]), 1e-5, 1e-10);
        [id, found, whole].into_iter().for_each(|id| session.remove(id).unwrap());
    }
}

#[test]
fn without_room_for_guesses_there_are_none() {
    let decoder = decoder(gpu(), "mla", 5);
    let options = options(18, 4);
    let want = plain(&mut session(&decoder, 40), options);
    // 7 + 18 - 1 tokens are all that fits, in the target or in the drafter.
    let (mut tight, mut wide, mut small) = (session(&decoder, 24), session(&decoder, 40), session(&decoder, 12));
    let made = run(&mut tight, Drafter::Model(&mut wide), options);
    assert_eq!(made.tokens, want);
    let made = run(&mut wide, Drafter::Model(&mut small), options);
    assert_eq!(made.tokens, want);
    assert!(made.drafted > 0 && made.steps > 10, "{made:?}");
    // The last guess is not fed to its drafter: 8 tokens and 4 of 5 guesses are its three pages.
    let made = run(&mut wide, Drafter::Model(&mut small), SpeculativeOptions { max_draft: 5, ..options });
    assert_eq!((made.tokens, made.drafted, made.accepted), (want, 5, 5));
    // Too little for the text itself is an error, and leaves nothing.
    let mut less = session(&decoder, 20);
    let result = block_on(generate_speculative(&mut less, LOOKUP, PROMPT, options, go_on));
    assert_kind!(result, ErrorKind::CacheFull { .. });
    assert_eq!(less.stats().used, 0);
}

#[test]
fn a_stop_or_a_drop_leaves_no_sequence_and_bad_options_are_refused() {
    let decoder = decoder(gpu(), "gta", 5);
    let (mut target, mut draft) = (session(&decoder, 40), session(&decoder, 40));
    let options = options(20, 4);
    let want = plain(&mut target, options);
    for stop in 1..8 {
        let mut seen = Vec::new();
        let on_token = |token| {
            seen.push(token);
            if seen.len() == stop {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let drafter = Drafter::Model(&mut draft);
        let made = block_on(generate_speculative(&mut target, drafter, PROMPT, options, on_token)).unwrap();
        assert_eq!((&made.tokens[..], &seen[..]), (&want[..stop], &want[..stop]));
        assert_eq!((target.stats().used, draft.stats().used), (0, 0));
    }
    {
        let drafter = Drafter::Model(&mut draft);
        let mut half = pin!(generate_speculative(&mut target, drafter, PROMPT, options, go_on));
        assert!(half.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    assert_eq!((target.stats().used, draft.stats().used), (0, 0));
    assert_eq!(run(&mut target, LOOKUP, options).tokens, want);

    let mut refused = |drafter, prompt: &[u32], change: &dyn Fn(&mut SpeculativeOptions)| {
        let mut options = options;
        change(&mut options);
        let result = block_on(generate_speculative(&mut target, drafter, prompt, options, go_on));
        assert_eq!(target.stats().used, 0);
        result
    };
    let same = |_: &mut SpeculativeOptions| {};
    assert_kind!(refused(LOOKUP, PROMPT, &|o| o.max_draft = 0), ErrorKind::Argument { name: "max_draft", .. });
    let hot = |o: &mut SpeculativeOptions| o.generate.sampling.temperature = f32::NAN;
    assert_kind!(refused(LOOKUP, PROMPT, &hot), ErrorKind::Argument { name: "temperature", .. });
    for (max_ngram, min_ngram) in [(2, 0), (2, 3), (0, 0)] {
        let drafter = Drafter::Lookup { max_ngram, min_ngram };
        assert_kind!(refused(drafter, PROMPT, &same), ErrorKind::Argument { name: "min_ngram", .. });
    }
    assert_kind!(refused(LOOKUP, &[], &same), ErrorKind::Argument { name: "prompt", .. });
    assert_kind!(refused(LOOKUP, &[3; 30], &same), ErrorKind::Argument { name: "max_new_tokens", .. });
    let mut other = session(&padded("gla", 5, 1025, 0.0), 40);
    assert_kind!(refused(Drafter::Model(&mut other), PROMPT, &same), ErrorKind::Argument { name: "drafter", .. });
}

/// A model with so many more rows in its vocabulary.
fn padded(variant: &str, seed: u64, rows: usize, bias: f32) -> Decoder {
    let mut tiny = Tiny::new(variant, seed);
    tiny.pad_vocabulary(rows, bias);
    Decoder::load(gpu(), tiny.write(&format!("padded-{variant}-{seed}-{rows}-{bias}")).path(), DType::F32).unwrap()
}

/// The same tokens with other padding, on either side: what comes out is what the target makes alone, though the drafter
/// holds its padding for the likeliest of all, or the text has tokens that it does not know.
#[test]
fn vocabularies_may_be_padded_to_other_sizes() {
    for (variant, rows) in [("gla", 128), ("gla", 1), ("gqa", 1024)] {
        let (bare, bare_draft) = (decoder(gpu(), variant, 5), decoder(gpu(), variant, 6));
        // The head of GLA has a bias: padding that nothing comes near, and padding that is never seen.
        let (likely, unlikely) = (padded(variant, 5, rows, 60.0), padded(variant, 5, rows, -60.0));
        for temperature in [0.0, 0.7] {
            let mut options = options(20, 3);
            options.generate.sampling.temperature = temperature;
            let mut target = session(&bare, 40);
            let greedy = temperature == 0.0;
            let want = plain(&mut target, options);
            let made = run(&mut target, Drafter::Model(&mut session(&likely, 40)), options);
            assert!(!greedy || made.tokens == want, "{variant}, a larger drafter");
            // But for the padding it is the same model, and no token of that has any probability.
            assert_eq!((made.accepted, made.drafted > 10), (made.drafted, true), "{variant}, {made:?}");
            let strange = run(&mut target, Drafter::Model(&mut session(&padded(variant, 6, rows, 60.0), 40)), options);
            assert!(!greedy || strange.tokens == want, "{variant}, a larger and strange drafter");

            let mut target = session(&unlikely, 40);
            let want = plain(&mut target, options);
            let made = run(&mut target, Drafter::Model(&mut session(&bare, 40)), options);
            assert!(!greedy || made.tokens == want, "{variant}, a smaller drafter");
            let strange = run(&mut target, Drafter::Model(&mut session(&bare_draft, 40)), options);
            assert!(!greedy || strange.tokens == want, "{variant}, a smaller and strange drafter");
        }
        // A text of tokens that only the target has: by its prompt, and by what it says.
        let vocab = bare.config().vocab_size as u32;
        for target in [&likely, &unlikely] {
            let (mut target, mut draft) = (session(target, 40), session(&bare, 40));
            let prompt = [5, vocab, 6, vocab + rows as u32 - 1, 7];
            let options = options(20, 3);
            let want = block_on(generate(&mut target, &prompt, options.generate, go_on)).unwrap();
            let drafter = Drafter::Model(&mut draft);
            let made = block_on(generate_speculative(&mut target, drafter, &prompt, options, go_on)).unwrap();
            assert_eq!(made.tokens, want, "{variant}");
            assert!(made.drafted > 0);
        }
        let said = plain(&mut session(&likely, 40), options(3, 1));
        assert_eq!(said.iter().all(|token| *token >= vocab), variant == "gla", "{said:?}");
    }
}

#[test]
fn a_second_text_creates_nothing() {
    let gpu = gpu_with(GpuOptions::default());
    let [target, draft] = [5, 6].map(|seed| decoder(&gpu, "gla", seed));
    let (mut target, mut draft) = (session(&target, 40), session(&draft, 40));
    let mut counted = || {
        run(&mut target, Drafter::Model(&mut draft), options(25, 3));
        gpu.counters()
    };
    let (before, after) = (counted(), counted());
    assert_eq!((after.buffers, after.pipelines), (before.buffers, before.pipelines));
    assert_eq!(after.bind_groups, before.bind_groups);
}

/// The trained models, the draft beside them.
#[test]
fn the_shipped_draft_changes_no_token() {
    let load = |name: &str| {
        let folder = checkout(&format!("examples/models/{name}"));
        Session::new(&Decoder::load(gpu(), folder, DType::F16).unwrap(), SessionOptions::default()).unwrap()
    };
    let (mut target, mut draft) = (load("gla"), load("draft"));
    let prompt: Vec<u32> = b"ROMEO:\n".iter().map(|byte| u32::from(*byte)).collect();
    let options = options(80, 4);
    let want = block_on(generate(&mut target, &prompt, options.generate, go_on)).unwrap();
    // The model's guesses mostly stand; a text of 80 bytes hardly repeats.
    for (drafter, least) in [(Drafter::Model(&mut draft), 30), (LOOKUP, 1)] {
        let made = block_on(generate_speculative(&mut target, drafter, &prompt, options, go_on)).unwrap();
        assert_eq!(made.tokens, want);
        println!("{} of {} guesses stood, {} steps for 80 tokens", made.accepted, made.drafted, made.steps);
        assert!(made.accepted >= least, "{made:?}");
    }
}

/// What a window has freed cannot come back when guesses are cut off: said before the first token, not in the middle.
#[test]
fn sessions_with_a_window_are_refused() {
    let decoder = decoder(gpu(), "gla", 3);
    let windowed = || {
        let options = SessionOptions { cache_tokens: 200, page_size: 4, window: Some(8), ..Default::default() };
        Session::new(&decoder, options).unwrap()
    };
    let (mut plain, mut target, mut draft) = (session(&decoder, 200), windowed(), windowed());
    let prompt: Vec<u32> = (0..40).map(|i| i % 3).collect();
    let count = std::cell::Cell::new(0);
    let on_token = |_| {
        count.set(count.get() + 1);
        ControlFlow::Continue(())
    };
    let refused = block_on(generate_speculative(&mut target, LOOKUP, &prompt, options(40, 6), on_token));
    assert_kind!(refused, ErrorKind::Argument { name: "window", .. });
    let refused = generate_speculative(&mut plain, Drafter::Model(&mut draft), &prompt, options(40, 6), on_token);
    assert_kind!(block_on(refused), ErrorKind::Argument { name: "window", .. });
    assert_eq!((count.get(), target.stats().used, draft.stats().used), (0, 0, 0));
}
