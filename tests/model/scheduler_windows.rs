//! Requests in sessions with a window: what `generate` takes and gives, in the pages that the window needs.

use crate::assert_kind;
use crate::common::*;
use crate::scheduler::{request, All, PAGE};
use crate::tiny::Tiny;
use latten::model::{generate, Decoder, Finished, GenerateOptions, Request, Scheduler, Session, SessionOptions};
use latten::{DType, ErrorKind, SplitPolicy};
use pollster::block_on;
use std::ops::ControlFlow;

const WINDOW: usize = 10;
const CHUNK: usize = 6;

fn decoder(variant: &str, own: Option<usize>, test: &str) -> Decoder {
    let mut tiny = Tiny::new(variant, 5);
    own.map(|window| tiny.config.insert("sliding_window".into(), window.into()));
    Decoder::load(gpu(), tiny.write(&format!("{test}-{variant}")).path(), DType::F32).unwrap()
}

fn session(decoder: &Decoder, pages: usize, window: Option<usize>, keep_first: usize) -> Session {
    let options = SessionOptions {
        max_batch: 3,
        chunk: CHUNK,
        cache_tokens: pages * PAGE,
        page_size: PAGE,
        kv_dtype: DType::F32,
        window,
        keep_first,
        ..Default::default()
    };
    Session::new(decoder, options).unwrap().with_policy(SplitPolicy::FixedTokens(8))
}

/// Of so many tokens, and as many to make.
fn long(i: u32, prompt: usize, max_new_tokens: usize) -> Request {
    let mut request = request(i, max_new_tokens);
    request.prompt = (0..prompt as u32).map(|j| 3 + (7 * i + 11 * j) % 200).collect();
    request
}

fn alone(mut session: Session, request: &Request) -> Result<Vec<u32>, latten::Error> {
    block_on(generate(&mut session, &request.prompt, request.generate, |_| ControlFlow::Continue(())))
}

/// Pages of a step of so many tokens, wherever it begins: what its first token sees, and the step; and the first tokens.
fn most_pages(step: usize, keep_first: usize) -> usize {
    keep_first.div_ceil(PAGE) + (step + WINDOW - 2).div_ceil(PAGE) + 1
}

/// Three at once, prompts longer than the window and than the whole cache among them, in the room of three windows.
#[test]
fn requests_give_back_what_a_window_hides() {
    let cases = [("gqa", None, Some(WINDOW), 0), ("gla", None, Some(WINDOW), 5), ("gta", Some(WINDOW), None, 0)];
    for (variant, own, window, keep_first) in cases {
        let decoder = decoder(variant, own, "scheduler-window");
        let pages = 3 * most_pages(CHUNK, keep_first);
        let requests = [long(0, 3, 60), long(1, 33, 20), long(2, pages * PAGE + 9, 30), long(4, 8, 50)];
        let mut scheduler = Scheduler::new(session(&decoder, pages, window, keep_first));
        let ids = requests.each_ref().map(|request| scheduler.add(request.clone()).unwrap());
        let mut all = All::default();
        let mut steps = 0;
        while !scheduler.is_idle() {
            all.take(block_on(scheduler.step()).unwrap());
            steps += 1;
            let (used, running) = (scheduler.session().stats().used, scheduler.running());
            assert!(used <= running * most_pages(1, keep_first), "{used} pages of {running} after step {steps}");
            assert!(steps < 200, "no end");
        }
        assert_eq!((scheduler.preemptions(), scheduler.session().stats().used), (0, 0), "{variant}");
        for (id, request) in ids.iter().zip(&requests) {
            assert_eq!(
                all.0[id].tokens,
                alone(session(&decoder, pages, window, keep_first), request).unwrap(),
                "{variant}"
            );
            assert!(matches!(all.0[id].finished, Some(Finished::Length)));
        }
    }
}

/// Whatever the cache has room for: `add` takes exactly what `generate` can make, and gives the same.
#[test]
fn add_takes_what_generate_takes() {
    let decoder = decoder("gqa", None, "scheduler-takes");
    let (mut taken, mut refused) = (0, 0);
    for keep_first in [0, 5] {
        for (prompt, new) in [(1, 30), (5, 3), (5, 16), (13, 1), (14, 20), (30, 1), (31, 12)] {
            let request = long(prompt as u32, prompt, new);
            for pages in 2..=8 {
                let new = || session(&decoder, pages, Some(WINDOW), keep_first);
                let mut scheduler = Scheduler::new(new());
                match (alone(new(), &request), scheduler.add(request.clone())) {
                    (Ok(want), Ok(id)) => {
                        let mut all = All::default();
                        all.steps(&mut scheduler, 100);
                        assert_eq!(all.0[&id].tokens, want, "{prompt} and {new:?} in {pages} pages", new = want.len());
                        taken += 1;
                    }
                    (Err(alone), Err(error)) => {
                        assert!(matches!(alone.kind(), ErrorKind::CacheFull { .. }), "{alone}");
                        assert_kind!(Err::<(), _>(error), ErrorKind::CacheFull { .. });
                        refused += 1;
                    }
                    (alone, added) => panic!("{prompt} in {pages} pages: {alone:?}, and {added:?}"),
                }
            }
        }
    }
    assert!(taken > 30 && refused > 20, "{taken} taken, {refused} refused");
}

/// Two run side by side in the room of two windows and wait in less, but none is put off for what it needs no more.
#[test]
fn who_fits_by_its_window_runs() {
    let decoder = decoder("gqa", None, "scheduler-fits");
    let request = long(0, 40, 30);
    let one = most_pages(CHUNK, 0);
    for (pages, both) in [(2 * one, true), (2 * one - 1, false), (one, false)] {
        let mut scheduler = Scheduler::new(session(&decoder, pages, Some(WINDOW), 0));
        let ids = [1, 2].map(|salt| scheduler.add(Request { salt, ..request.clone() }).unwrap());
        let mut all = All::default();
        all.take(block_on(scheduler.step()).unwrap());
        assert_eq!(scheduler.running(), if both { 2 } else { 1 }, "{pages} pages");
        let mut together = 0;
        while !scheduler.is_idle() {
            together += usize::from(scheduler.running() == 2);
            all.take(block_on(scheduler.step()).unwrap());
        }
        // Past its prompt the first needs less, and the second is taken up beside it.
        assert!(pages == one || together > 10, "{together} steps together in {pages} pages");
        assert_eq!(scheduler.preemptions(), 0, "{pages} pages");
        for id in ids {
            assert_eq!(all.0[&id].tokens, alone(session(&decoder, pages, Some(WINDOW), 0), &request).unwrap());
        }
    }
}

/// What never becomes so long that pages are given back shares what it begins with, as without a window.
#[test]
fn short_requests_share_their_prompts_in_spite_of_a_window() {
    let decoder = decoder("gqa", None, "scheduler-short");
    for (new, hits) in [(4, 2), (5, 0)] {
        // 9 tokens, and 3 or 4 of those made: the next would see all from the first page on, or from the second.
        let request = long(3, 9, new);
        let mut scheduler = Scheduler::new(session(&decoder, 20, Some(WINDOW), 0));
        let mut all = All::default();
        for _ in 0..2 {
            let id = scheduler.add(request.clone()).unwrap();
            all.steps(&mut scheduler, 30);
            assert_eq!(all.0[&id].tokens, alone(session(&decoder, 20, Some(WINDOW), 0), &request).unwrap());
        }
        assert_eq!(scheduler.session().stats().hits, hits, "{new} tokens");
    }
}

/// Alone beside the caller's own sequences it takes steps as large as there is room for.
#[test]
fn a_request_alone_takes_smaller_steps_where_there_is_less_room() {
    let decoder = decoder("gqa", None, "scheduler-smaller");
    let request = long(2, 40, 5);
    for room in [most_pages(1, 0), most_pages(1, 0) - 1] {
        let mut scheduler = Scheduler::new(session(&decoder, 12, Some(WINDOW), 0));
        let own = scheduler.session_mut().match_prefix(&[1], 5);
        let tokens = vec![8; (12 - room) * PAGE];
        block_on(scheduler.session_mut().logits(&[(own, &tokens)])).unwrap();
        let id = scheduler.add(request.clone()).unwrap();
        let mut all = All::default();
        let steps = all.steps(&mut scheduler, 100);
        match (&all.0[&id].finished, room == most_pages(1, 0)) {
            (Some(Finished::Length), true) => {
                let want = alone(session(&decoder, 12, Some(WINDOW), 0), &request).unwrap();
                assert_eq!(all.0[&id].tokens, want);
                assert!(steps > 12, "{steps} steps");
            }
            (Some(Finished::Failed(error)), false) => assert!(matches!(error.kind(), ErrorKind::CacheFull { .. })),
            (other, _) => panic!("{other:?} in {room} pages"),
        }
    }
    let endless = GenerateOptions { max_new_tokens: 1 << 24, ..Default::default() };
    let mut scheduler = Scheduler::new(session(&decoder, 12, Some(WINDOW), 0));
    let add =
        |scheduler: &mut Scheduler, prompt: usize| scheduler.add(Request { generate: endless, ..long(0, prompt, 1) });
    assert_kind!(add(&mut scheduler, 2), ErrorKind::Argument { name: "max_new_tokens", .. });
    let id = add(&mut scheduler, 1).unwrap();
    (0..50).for_each(|_| drop(block_on(scheduler.step()).unwrap()));
    scheduler.cancel(id).unwrap();
}
