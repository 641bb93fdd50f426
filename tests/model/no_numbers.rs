//! Logits that are no numbers: an error with the sequence and the place, and nothing else is touched.

use crate::assert_kind;
use crate::common::*;
use crate::scheduler::{request, All, PAGE};
use crate::tiny::Tiny;
use latten::model::{
    beam_search, best_of, continue_sequence, generate, generate_speculative, BeamOptions, BestOfOptions, Decoder,
    Drafter, Draw, Finished, GenerateOptions, Request, Scheduler, Session, SessionOptions, SpeculativeOptions,
};
use latten::nn::Sample;
use latten::{DType, Error, ErrorKind};
use pollster::block_on;
use std::ops::ControlFlow;

/// The token after which there are no numbers.
const BAD: u32 = 77;

fn decoder(variant: &str, test: &str) -> Decoder {
    let mut tiny = Tiny::new(variant, 5);
    tiny.spoil_logits_after(BAD);
    Decoder::load(gpu(), tiny.write(&format!("{test}-{variant}")).path(), DType::F32).unwrap()
}

fn session(decoder: &Decoder, window: Option<usize>) -> Session {
    let options = SessionOptions {
        max_batch: 3,
        chunk: 6,
        cache_tokens: 40 * PAGE,
        page_size: PAGE,
        kv_dtype: DType::F32,
        window,
        ..Default::default()
    };
    Session::new(decoder, options).unwrap()
}

fn text(error: &Error) -> String {
    assert!(matches!(error.kind(), ErrorKind::Argument { name: "logits", .. }), "{error}");
    error.to_string()
}

fn go_on(_: u32) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Every way to a token, greedy and drawn; with prompts of one step and of several.
#[test]
fn no_token_comes_of_logits_that_are_no_numbers() {
    for (variant, window) in [("gqa", None), ("gla", None), ("gla", Some(5))] {
        let decoder = decoder(variant, "no-numbers");
        for (temperature, before) in [(0.0, 0), (0.9, 3), (0.0, 20)] {
            let mut session = session(&decoder, window);
            let prompt: Vec<u32> = (0..before).map(|i| 100 + i).chain([BAD]).collect();
            let mut options = GenerateOptions { max_new_tokens: 4, ..Default::default() };
            options.sampling.temperature = temperature;
            let error = block_on(generate(&mut session, &prompt, options, go_on)).unwrap_err();
            let wanted = format!("after its token {before}: a NaN, +infinity or none finite");
            assert!(text(&error).contains(&wanted), "{variant}: {error}");
            assert_eq!(session.stats().used, 0);

            // The sequence is as it was; what others were fed in the same call is undone with it.
            let (id, other) = (session.match_prefix(&[1], 7), session.insert());
            let good: Vec<u32> = (30..41).collect();
            let draw = [Draw { sampling: options.sampling, u: 0.5 }; 2];
            block_on(session.next_tokens(&[(id, &good), (other, &[5])], &draw)).unwrap();
            let (used, len) = (session.stats().used, session.len(id).unwrap());
            let batch: [(latten::SeqId, &[u32]); 2] = [(other, &[6]), (id, &prompt)];
            for with_logits in [false, true] {
                let error = match with_logits {
                    false => block_on(session.next_tokens(&batch, &draw)).unwrap_err(),
                    true => block_on(session.next_tokens_and_logits(&batch, &draw)).unwrap_err(),
                };
                assert!(
                    text(&error).contains(&format!("of sequence {id}, after its token {}:", len + prompt.len() - 1))
                );
                assert_eq!(
                    (session.stats().used, session.len(id).unwrap(), session.len(other).unwrap()),
                    (used, len, 1)
                );
            }
            // Nor is what was computed on the way found by others.
            let found = session.match_prefix(&[&good[..], &prompt, &[1]].concat(), 7);
            assert_eq!(session.len(found).unwrap(), 8);
            let next = block_on(session.next_tokens(&[(id, &[9]), (other, &[6])], &draw)).unwrap();
            let (fresh, second) = (session.insert(), session.insert());
            block_on(session.next_tokens(&[(fresh, &good), (second, &[5])], &draw)).unwrap();
            assert_eq!(block_on(session.next_tokens(&[(fresh, &[9]), (second, &[6])], &draw)).unwrap(), next);

            // Whoever asks for logits gets them.
            let logits = block_on(session.logits(&[(id, &[BAD])])).unwrap().remove(0);
            assert!(logits.iter().any(|logit| !logit.is_finite()));
            let tokens = block_on(session.all_tokens(&[(id, &[9, BAD])])).unwrap().remove(0);
            assert!(tokens[0] < 128 && tokens[1] == Sample::NO_TOKEN, "{tokens:?}");
            let error = block_on(continue_sequence(&mut session, id, &[BAD], options, go_on)).unwrap_err();
            text(&error);
            if window.is_none() {
                let options = SpeculativeOptions { generate: options, max_draft: 2 };
                let drafter = Drafter::Lookup { max_ngram: 2, min_ngram: 1 };
                text(&block_on(generate_speculative(&mut session, drafter, &prompt, options, go_on)).unwrap_err());
            }
            let beams = BeamOptions { beams: 2, max_new_tokens: 4, ..Default::default() };
            text(&block_on(beam_search(&mut session, id, &[BAD], beams)).unwrap_err());
            let samples = BestOfOptions { samples: 2, generate: options, ..Default::default() };
            text(&block_on(best_of(&mut session, id, &[BAD], samples)).unwrap_err());
        }
    }
}

/// A drafter that comes to no numbers: the error is its own, whether it is one wait with the target's step or read before that.
#[test]
fn a_drafters_logits_that_are_no_numbers_are_told() {
    let [gpu, elsewhere] = [(); 2].map(|()| gpu_with(latten::GpuOptions::default()));
    let decoder = Decoder::load(&gpu, Tiny::new("gqa", 5).write("no-numbers-target").path(), DType::F32).unwrap();
    let prompt: Vec<u32> = (100..107).collect();
    let options = |temperature: f32| {
        let mut options = SpeculativeOptions::default();
        (options.generate.max_new_tokens, options.generate.sampling.temperature) = (12, temperature);
        options
    };
    let mut target = session(&decoder, None);
    let first = block_on(generate(&mut target, &prompt, options(0.0).generate, go_on)).unwrap()[0];
    let mut tiny = Tiny::new("gqa", 5);
    tiny.spoil_logits_after(first);
    for (on, wanted) in [(&gpu, ", after its token 7:"), (&elsewhere, ", after its token 7:")] {
        let drafts = Decoder::load(on, tiny.write("no-numbers-drafter").path(), DType::F32).unwrap();
        let mut drafts = session(&drafts, None);
        let drafter = Drafter::Model(&mut drafts);
        let error = block_on(generate_speculative(&mut target, drafter, &prompt, options(0.0), go_on)).unwrap_err();
        assert!(text(&error).contains(wanted), "{error}");
        assert_eq!((target.stats().used, drafts.stats().used), (0, 0));
    }
}

/// Of three requests one comes to no numbers, with its prompt or later: the others get what they get without it.
#[test]
fn only_the_request_without_numbers_fails() {
    for (variant, window) in [("gqa", None), ("mla", Some(7))] {
        let decoder = decoder(variant, "one-fails");
        let alone = |request: &Request| {
            let mut session = session(&decoder, window);
            block_on(generate(&mut session, &request.prompt, request.generate, go_on))
        };
        // Bad in the middle of a prompt does nothing: its logits are not asked for.
        let with_bad = |i: u32, at: usize| {
            let mut request = request(i, 9);
            let at = at.min(request.prompt.len());
            request.prompt.insert(at, BAD);
            request
        };
        for bad in [with_bad(1, 99), with_bad(4, 99), with_bad(4, 5), Request { prompt: vec![BAD], ..request(0, 3) }] {
            let requests = [request(0, 12), bad, request(2, 12), request(5, 6)];
            let mut scheduler = Scheduler::new(session(&decoder, window));
            let ids = requests.each_ref().map(|request| scheduler.add(request.clone()).unwrap());
            let mut all = All::default();
            all.steps(&mut scheduler, 100);
            for (id, request) in ids.iter().zip(&requests) {
                let got = &all.0[id];
                match (alone(request), &got.finished) {
                    (Ok(want), Some(Finished::Length)) => assert_eq!(got.tokens, want, "{variant} {id:?}"),
                    (Err(_), Some(Finished::Failed(error))) => {
                        let last = request.prompt.len() + got.tokens.len() - 1;
                        assert!(text(error).contains(&format!("after its token {last}:")), "{error}");
                    }
                    other => panic!("{variant} {id:?}: {other:?}"),
                }
            }
            let failed = ids.iter().filter(|id| matches!(all.0[id].finished, Some(Finished::Failed(_)))).count();
            assert_eq!(failed, usize::from(requests[1].prompt.last() == Some(&BAD)));
            let stats = scheduler.session().stats();
            assert_eq!(stats.used, 0);
        }
    }
    // Rehearsing does not mind.
    let mut zero = Tiny::new("gqa", 5);
    zero.spoil_logits_after(0);
    let zero = Decoder::load(gpu(), zero.write("rehearsed").path(), DType::F32).unwrap();
    block_on(session(&zero, None).warm_up()).unwrap();
    // What the prompt of a failed request computed is not kept for others.
    let decoder = decoder("gqa", "not-kept");
    let mut scheduler = Scheduler::new(session(&decoder, None));
    let prompt: Vec<u32> = (40..58).chain([BAD]).collect();
    scheduler.add(Request { prompt, ..request(0, 3) }).unwrap();
    let mut all = All::default();
    all.steps(&mut scheduler, 20);
    let stats = scheduler.session().stats();
    assert_eq!((stats.used, stats.evictable), (0, 0));
    let refused = block_on(generate(scheduler.session_mut(), &[BAD], request(0, 3).generate, go_on));
    assert_kind!(refused, ErrorKind::Argument { name: "logits", .. });
}
