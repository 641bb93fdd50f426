//! Requests that share steps: each gets what it would get alone, whatever comes, goes, waits or stops beside it.

use crate::assert_kind;
use crate::common::*;
use crate::tiny::{Tiny, MAX_POSITIONS, VARIANTS};
use latten::model::{
    generate, Decoder, Draw, Event, Finished, GenerateOptions, Request, RequestId, Scheduler, Session, SessionOptions,
};
use latten::nn::Sampling;
use latten::{DType, ErrorKind, GpuOptions};
use pollster::block_on;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

pub const PAGE: usize = 4;

pub fn decoder(variant: &str, test: &str) -> Decoder {
    Decoder::load(gpu(), Tiny::new(variant, 5).write(&format!("{test}-{variant}")).path(), DType::F32).unwrap()
}

pub fn session(decoder: &Decoder, max_batch: usize, pages: usize) -> Session {
    let options = SessionOptions {
        max_batch,
        chunk: 6,
        cache_tokens: pages * PAGE,
        page_size: PAGE,
        kv_dtype: DType::F32,
        ..Default::default()
    };
    Session::new(decoder, options).unwrap()
}

pub fn request(i: u32, max_new_tokens: usize) -> Request {
    let sampling = Sampling::new([0.0, 0.8, 1.3][i as usize % 3], [1.0, 0.9][i as usize % 2]);
    Request {
        prompt: (0..2 + i * 5 % 13).map(|j| 3 + (7 * i + 11 * j) % 200).collect(),
        generate: GenerateOptions { max_new_tokens, sampling, seed: 90 + u64::from(i) },
        ..Default::default()
    }
}

/// What `generate` makes of it, in a session of its own.
pub fn alone(decoder: &Decoder, request: &Request) -> Vec<u32> {
    let mut session = session(decoder, 1, MAX_POSITIONS.div_ceil(PAGE));
    block_on(generate(&mut session, &request.prompt, request.generate, |_| ControlFlow::Continue(()))).unwrap()
}

#[derive(Default, Debug)]
pub struct Got {
    pub tokens: Vec<u32>,
    pub bytes: Vec<u8>,
    pub finished: Option<Finished>,
}

#[derive(Default)]
pub struct All(pub BTreeMap<RequestId, Got>);

impl All {
    pub fn take(&mut self, events: Vec<Event>) {
        for event in events {
            let got = self.0.entry(event.id).or_default();
            assert!(got.finished.is_none(), "an event after the last");
            got.tokens.extend(event.token);
            got.bytes.extend(event.bytes);
            got.finished = event.finished;
        }
    }

    pub fn steps(&mut self, scheduler: &mut Scheduler, most: usize) -> usize {
        let mut steps = 0;
        while !scheduler.is_idle() {
            assert!(
                steps < most,
                "{} running, {} waiting after {most} steps",
                scheduler.running(),
                scheduler.waiting()
            );
            self.take(block_on(scheduler.step()).unwrap());
            steps += 1;
        }
        steps
    }
}

#[test]
fn each_request_gets_what_it_gets_alone_however_they_come_and_go() {
    for variant in VARIANTS {
        let decoder = decoder(variant, "come-and-go");
        let mut scheduler = Scheduler::new(session(&decoder, 3, 60));
        let (mut all, mut wanted) = (All::default(), Vec::new());
        for i in 0..9 {
            let request = request(i, 3 + i as usize * 7 % 17);
            let want = alone(&decoder, &request);
            wanted.push((scheduler.add(request).unwrap(), want));
            if i % 2 == 0 {
                all.take(block_on(scheduler.step()).unwrap());
            }
            assert!(scheduler.running() <= 3);
        }
        all.steps(&mut scheduler, 200);
        for (id, want) in wanted {
            let got = &all.0[&id];
            assert_eq!(got.tokens, want, "{variant}, {id:?}");
            assert!(matches!(got.finished, Some(Finished::Length)), "{variant}, {id:?}: {got:?}");
            let bytes: Vec<u8> = want.iter().filter_map(|token| u8::try_from(*token).ok()).collect();
            assert_eq!(got.bytes, bytes, "{variant}, {id:?}");
        }
        assert_eq!((scheduler.session().stats().used, scheduler.preemptions()), (0, 0), "{variant}");
    }
}

/// Four requests that want seven to nine pages each, of eleven: the youngest wait, are put off, and get all the same.
#[test]
fn a_full_cache_puts_off_the_youngest_and_loses_nothing() {
    for variant in ["gqa", "gla"] {
        let decoder = decoder(variant, "full-cache");
        let mut scheduler = Scheduler::new(session(&decoder, 4, 11));
        let requests: Vec<Request> = (0..4).map(|i| Request { salt: 1, ..request(i, 24) }).collect();
        let ids: Vec<RequestId> = requests.iter().map(|r| scheduler.add(r.clone()).unwrap()).collect();
        let mut all = All::default();
        let (mut order, mut seen) = (Vec::new(), 0);
        while !scheduler.is_idle() {
            let events = block_on(scheduler.step()).unwrap();
            order.extend(events.iter().filter(|event| event.finished.is_some()).map(|event| event.id));
            all.take(events);
            seen += 1;
            assert!(seen < 300, "no end");
        }
        assert!(scheduler.preemptions() > 0, "{variant}: there was room for all");
        assert_eq!(order, ids, "{variant}: the oldest is done first");
        for (id, request) in ids.iter().zip(&requests) {
            assert_eq!(all.0[id].tokens, alone(&decoder, request), "{variant}, {id:?}");
        }
        assert_eq!(scheduler.session().stats().used, 0);
    }
}

/// Who has room for all tokens and one more beside those that run is taken up; who has not waits, instead of being put off
/// later.
#[test]
fn who_fits_runs_and_who_does_not_waits() {
    let decoder = decoder("gqa", "fits");
    // Pages, tokens of two prompts, and whether both run: 2 + 2 pages of 4; of 3; 7, of which a step makes 2, + 4 of 8.
    for (pages, prompts, both) in [(4, [4, 4], true), (3, [4, 4], false), (8, [24, 12], false)] {
        let mut scheduler = Scheduler::new(session(&decoder, 2, pages));
        let requests = prompts.map(|tokens| Request { prompt: vec![9; tokens], ..request(0, 2) });
        // Salts of their own: neither finds the other's pages.
        let add = |(salt, request): (u64, &Request)| scheduler.add(Request { salt, ..request.clone() }).unwrap();
        let ids: Vec<RequestId> = (1..).zip(&requests).map(add).collect();
        let mut all = All::default();
        all.take(block_on(scheduler.step()).unwrap());
        assert_eq!(scheduler.running(), if both { 2 } else { 1 }, "{pages} pages");
        all.steps(&mut scheduler, 40);
        assert_eq!((scheduler.preemptions(), scheduler.session().stats().used), (0, 0), "{pages} pages");
        for (id, request) in ids.iter().zip(&requests) {
            assert_eq!(all.0[id].tokens, alone(&decoder, request), "{pages} pages");
        }
    }
}

/// A step is one submit of at most the session's chunk, which may be made in the call before, and its events come by age: here of a prompt in two parts, and of
/// one of a single token, which is fed with the first part.
#[test]
fn a_step_is_one_chunk_and_its_events_come_by_age() {
    let gpu = gpu_with(GpuOptions::default());
    let folder = Tiny::new("gqa", 5).write("one-chunk");
    let decoder = Decoder::load(&gpu, folder.path(), DType::F32).unwrap();
    let mut scheduler = Scheduler::new(session(&decoder, 3, 30));
    let with = |tokens: usize| Request { prompt: vec![9; tokens], ..request(0, 3) };
    // A scheduler's first step of all rehearses before it compiles, which is a submit each.
    scheduler.add(with(1)).unwrap();
    All::default().steps(&mut scheduler, 9);
    let ids = [8, 1, 20].map(|tokens| scheduler.add(with(tokens)).unwrap());
    let (mut order, first) = (Vec::new(), gpu.counters().submits);
    while !scheduler.is_idle() {
        let before = gpu.counters().submits;
        let events = block_on(scheduler.step()).unwrap();
        assert!(gpu.counters().submits - before <= 2, "after {} steps", order.len());
        order.push(events.iter().map(|event| event.id).collect::<Vec<_>>());
    }
    assert_eq!(gpu.counters().submits - first, order.len() as u64);
    // 3 + 1 + 2 tokens, then 3 + 1 + 2, 2 + 1 + 3, 1 + 5 (the second has ended), 1 + 5, 3.
    let [a, b, c] = ids;
    assert_eq!(order, [vec![b], vec![b], vec![a, b], vec![a], vec![a], vec![c], vec![c], vec![c]]);
}

#[test]
fn prompts_are_shared_within_a_salt() {
    let decoder = decoder("gta", "salts");
    let mut scheduler = Scheduler::new(session(&decoder, 2, 30));
    let prompt: Vec<u32> = (40..40 + 3 * PAGE as u32).collect();
    let mut all = All::default();
    for (salt, hits) in [(7, 0), (7, 2), (8, 2)] {
        let request = Request { prompt: prompt.clone(), salt, ..request(1, 6) };
        let (want, id) = (alone(&decoder, &request), scheduler.add(request).unwrap());
        all.steps(&mut scheduler, 50);
        assert_eq!(all.0[&id].tokens, want);
        assert_eq!(scheduler.session().stats().hits, hits, "salt {salt}");
    }
}

#[test]
fn stops_end_a_request_and_are_not_in_its_text() {
    let decoder = decoder("mla", "stops");
    // A base of six letters, so that strings begin often and cross tokens, of one to three bytes each.
    let bytes = |token: u32| (0..=token % 3).map(|i| b'a' + ((token + i) % 6) as u8).collect::<Vec<u8>>();
    let base = request(1, 25);
    let tokens = alone(&decoder, &base);
    let text: Vec<u8> = tokens.iter().flat_map(|token| bytes(*token)).collect();
    let mut scheduler = Scheduler::new(session(&decoder, 4, 60)).with_token_bytes(bytes);
    let mut all = All::default();
    for (first, length) in [(3, 2), (8, 5), (20, 3), (0, 1), (17, 9)] {
        let stop = text[first..first + length].to_vec();
        let at = text.windows(length).position(|window| window == stop).unwrap();
        let strings = vec![b"never".to_vec(), stop];
        let id = scheduler.add(Request { stop_strings: strings, ..base.clone() }).unwrap();
        all.steps(&mut scheduler, 60);
        let got = &all.0[&id];
        assert!(matches!(got.finished, Some(Finished::StopString(1))), "{got:?}");
        assert_eq!(got.bytes, text[..at]);
        assert!(tokens.starts_with(&got.tokens));
        let with: usize = got.tokens.iter().map(|token| bytes(*token).len()).sum();
        let before = with - bytes(*got.tokens.last().unwrap()).len();
        assert!(before < at + length && at + length <= with, "stopped at another token");
    }
    let stop = tokens[9];
    let place = tokens.iter().position(|token| *token == stop).unwrap();
    // A string that only begins at the end: held back, then given.
    let begins = [&text[text.len() - 2..], b"zz"].concat();
    let stopped = scheduler.add(Request { stop_tokens: vec![256, stop], ..base.clone() }).unwrap();
    let whole = scheduler.add(Request { stop_strings: vec![begins], ..base.clone() }).unwrap();
    all.steps(&mut scheduler, 60);
    assert!(matches!(all.0[&stopped].finished, Some(Finished::StopToken)));
    assert_eq!(all.0[&stopped].tokens, tokens[..=place]);
    assert_eq!(all.0[&stopped].bytes, tokens[..place].iter().flat_map(|token| bytes(*token)).collect::<Vec<u8>>());
    assert!(matches!(all.0[&whole].finished, Some(Finished::Length)));
    assert_eq!(all.0[&whole].bytes, text);
}

#[test]
fn a_cancelled_request_ends_with_what_it_has_and_changes_nothing_for_the_others() {
    let decoder = decoder("gla", "cancelled");
    let requests: Vec<Request> = (0..4).map(|i| request(i, 12)).collect();
    let mut scheduler = Scheduler::new(session(&decoder, 3, 40));
    let ids: Vec<RequestId> = requests.iter().map(|r| scheduler.add(r.clone()).unwrap()).collect();
    let mut all = All::default();
    (0..6).for_each(|_| all.take(block_on(scheduler.step()).unwrap()));
    // A step that is never begun.
    drop(scheduler.step());
    assert_eq!((scheduler.running(), scheduler.waiting()), (3, 1));
    scheduler.cancel(ids[1]).unwrap();
    assert_kind!(scheduler.cancel(ids[1]), ErrorKind::Argument { name: "id", .. });
    assert_eq!((scheduler.running(), scheduler.waiting()), (2, 1));
    all.steps(&mut scheduler, 100);
    for (i, (id, request)) in ids.iter().zip(&requests).enumerate() {
        let (got, want) = (&all.0[id], alone(&decoder, request));
        match i {
            1 => {
                assert!(matches!(got.finished, Some(Finished::Cancelled)), "{got:?}");
                assert!(got.tokens.len() < want.len() && want.starts_with(&got.tokens));
            }
            _ => assert_eq!(got.tokens, want, "{id:?}"),
        }
    }
    assert_eq!(scheduler.session().stats().used, 0);
}

#[test]
fn a_lost_device_keeps_the_requests_and_a_new_one_goes_on() {
    let gpu = gpu_with(GpuOptions::default());
    let folder = Tiny::new("gqa", 5).write("scheduler-lost");
    let lost = Decoder::load(&gpu, folder.path(), DType::F32).unwrap();
    let there = Decoder::load(self::gpu(), folder.path(), DType::F32).unwrap();
    let mut scheduler = Scheduler::new(session(&lost, 2, 30));
    let requests: Vec<Request> = (0..3).map(|i| request(i, 10)).collect();
    let ids: Vec<RequestId> = requests.iter().map(|r| scheduler.add(r.clone()).unwrap()).collect();
    let mut all = All::default();
    (0..5).for_each(|_| all.take(block_on(scheduler.step()).unwrap()));
    gpu.device().destroy();
    (0..2).for_each(|_| assert_kind!(block_on(scheduler.step()), ErrorKind::DeviceLost { .. }));
    scheduler.session_mut().rebuild(&there).unwrap();
    all.steps(&mut scheduler, 100);
    for (id, request) in ids.iter().zip(&requests) {
        assert_eq!(all.0[id].tokens, alone(&there, request), "{id:?}");
    }
}

#[test]
fn what_cannot_run_is_refused_and_what_has_no_room_alone_ends_with_an_error() {
    let decoder = decoder("gqa", "refused");
    let mut scheduler = Scheduler::new(session(&decoder, 2, 6));
    let good = request(1, 4);
    let with = |change: &dyn Fn(&mut Request)| {
        let mut request = good.clone();
        change(&mut request);
        request
    };
    let mut refused = |change: &dyn Fn(&mut Request)| scheduler.add(with(change)).map(drop);
    assert_kind!(refused(&|r| r.prompt.clear()), ErrorKind::Argument { name: "prompt", .. });
    assert_kind!(refused(&|r| r.generate.max_new_tokens = 0), ErrorKind::Argument { name: "prompt", .. });
    assert_kind!(refused(&|r| r.prompt.push(257)), ErrorKind::Argument { name: "prompt", .. });
    assert_kind!(refused(&|r| r.stop_tokens.push(257)), ErrorKind::Argument { name: "stop_tokens", .. });
    assert_kind!(refused(&|r| r.stop_strings.push(Vec::new())), ErrorKind::Argument { name: "stop_strings", .. });
    assert_kind!(refused(&|r| r.generate.sampling.top_p = 0.0), ErrorKind::Argument { name: "top_p", .. });
    let all_new = |r: &mut Request| r.generate.max_new_tokens = usize::MAX;
    assert_kind!(refused(&all_new), ErrorKind::Argument { name: "max_new_tokens", .. });
    // 7 + 18 - 1 are the six pages; one more is not.
    assert_eq!(good.prompt.len(), 7);
    assert_kind!(refused(&|r| r.generate.max_new_tokens = 19), ErrorKind::CacheFull { needed: 7, free: 6 });
    assert!(scheduler.is_idle());
    // The caller's own sequence has the room.
    let own = scheduler.session_mut().insert();
    let tokens = [5; 4 * PAGE];
    block_on(scheduler.session_mut().next_tokens(&[(own, &tokens)], &[Draw::default()])).unwrap();
    let (long, short) = (with(&|r| r.generate.max_new_tokens = 18), with(&|r| r.generate.max_new_tokens = 2));
    let ids = [long, short.clone()].map(|request| scheduler.add(request).unwrap());
    let mut all = All::default();
    all.steps(&mut scheduler, 60);
    match &all.0[&ids[0]].finished {
        Some(Finished::Failed(error)) => assert!(matches!(error.kind(), ErrorKind::CacheFull { needed: 1, free: 0 })),
        other => panic!("{other:?}"),
    }
    assert_eq!(all.0[&ids[1]].tokens, alone(&decoder, &short));
    assert_eq!(scheduler.session().len(own).unwrap(), 4 * PAGE);

    // A callback that stops leaves the rest for later.
    let id = scheduler.add(short.clone()).unwrap();
    block_on(scheduler.run(|_| ControlFlow::Break(()))).unwrap();
    assert!(!scheduler.is_idle());
    let mut rest = Vec::new();
    let seen = |event: Event| {
        rest.extend(event.token);
        ControlFlow::Continue(())
    };
    block_on(scheduler.run(seen)).unwrap();
    assert_eq!(rest, alone(&decoder, &short)[1..], "{id:?}");
    scheduler.add(short).unwrap();
    block_on(scheduler.step()).unwrap();
    let session = scheduler.into_session().unwrap();
    assert_eq!(session.stats().used, 4);
}
