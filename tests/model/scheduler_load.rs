//! Many requests of all kinds at once: nobody stalls, nobody is put off for ever, and each gets what it gets alone.

use crate::common::*;
use crate::scheduler::{All, PAGE};
use crate::tiny::Tiny;
use latten::model::{
    generate, Decoder, Finished, GenerateOptions, Request, RequestId, Scheduler, Session, SessionOptions, SplitMix64,
};
use latten::{DType, SplitPolicy};
use pollster::block_on;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

const CHUNK: usize = 6;
const MAX_POSITIONS: usize = 128;

fn decoder(variant: &str, test: &str) -> Decoder {
    let mut tiny = Tiny::new(variant, 5);
    tiny.config.insert("max_position_embeddings".into(), MAX_POSITIONS.into());
    Decoder::load(gpu(), tiny.write(&format!("{test}-{variant}")).path(), DType::F32).unwrap()
}

fn session(decoder: &Decoder, max_batch: usize, pages: usize) -> Session {
    let options = SessionOptions {
        max_batch,
        chunk: CHUNK,
        cache_tokens: pages * PAGE,
        page_size: PAGE,
        kv_dtype: DType::F32,
        ..Default::default()
    };
    Session::new(decoder, options).unwrap().with_policy(SplitPolicy::FixedTokens(8))
}

fn request(seed: u32, prompt: usize, max_new_tokens: usize) -> Request {
    Request {
        prompt: (0..prompt as u32).map(|j| 3 + (7 * seed + 11 * j) % 200).collect(),
        generate: GenerateOptions { max_new_tokens, ..Default::default() },
        ..Default::default()
    }
}

/// Greedy.
fn alone(decoder: &Decoder, request: &Request) -> Vec<u32> {
    let mut session = session(decoder, 1, MAX_POSITIONS.div_ceil(PAGE));
    block_on(generate(&mut session, &request.prompt, request.generate, |_| ControlFlow::Continue(()))).unwrap()
}

/// How each is meant to end, whatever the others do.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Ends {
    ByLength,
    Cancelled,
    Late,
}

/// Sixty requests that come and go over steps, in a cache that is too small for those that run.
#[test]
fn greedy_answers_under_load_are_those_alone() {
    for (variant, seed) in [("gqa", 1), ("gta", 2), ("gla", 3), ("mla", 4)] {
        let decoder = decoder(variant, "load");
        let mut random = SplitMix64::new(seed);
        let mut below = |n: u64| (random.next_u64() % n) as usize;
        let mut scheduler = Scheduler::new(session(&decoder, 5, 24));
        let (mut all, mut added) = (All::default(), BTreeMap::<RequestId, (Request, Ends)>::new());
        let (mut to_add, mut steps) = (60, 0);
        while to_add > 0 || !scheduler.is_idle() {
            for _ in 0..below(4).min(to_add) {
                let ends = [Ends::ByLength, Ends::ByLength, Ends::Cancelled, Ends::Late][below(4)];
                let mut request = request(below(9) as u32, 1 + below(40), 1 + below(20));
                request.salt = below(2) as u64;
                // In the past: the next step ends it, wherever it is by then.
                let given_up = ends == Ends::Late && below(2) == 0;
                request.deadline = given_up.then(Instant::now);
                let id = scheduler.add(request.clone()).unwrap();
                added.insert(id, (request, if given_up || ends != Ends::Late { ends } else { Ends::ByLength }));
                to_add -= 1;
            }
            let under_way = |(id, _): &(&RequestId, _)| all.0.get(*id).is_none_or(|got| got.finished.is_none());
            let cancelled = added.iter().filter(under_way).find(|(_, (_, ends))| *ends == Ends::Cancelled);
            if let Some((id, _)) = cancelled.filter(|_| below(3) == 0) {
                // One that has ended, but is not yet told, is no longer there.
                let _ = scheduler.cancel(*id);
            }
            all.take(block_on(scheduler.step()).unwrap());
            steps += 1;
            assert!(steps < 3000, "no end");
        }
        assert!(scheduler.preemptions() > 0, "{variant}: there was room for all");
        assert_eq!(scheduler.session().stats().used, 0, "{variant}");
        let (mut cancelled, mut late) = (0, 0);
        for (id, (request, ends)) in &added {
            let (got, want) = (&all.0[id], alone(&decoder, request));
            match (&got.finished, ends) {
                (Some(Finished::Length), Ends::ByLength | Ends::Cancelled) => assert_eq!(got.tokens, want, "{variant}"),
                (Some(Finished::Cancelled), Ends::Cancelled) => {
                    assert!(want.starts_with(&got.tokens), "{variant}: {got:?}, wanted the beginning of {want:?}");
                    cancelled += 1;
                }
                (Some(Finished::Deadline), Ends::Late) => {
                    assert!(got.tokens.is_empty(), "{variant}: {got:?}");
                    late += 1;
                }
                other => panic!("{variant}, {id:?}: {other:?}"),
            }
        }
        assert!(cancelled > 1 && late > 1, "{variant}: {cancelled} cancelled, {late} late");
    }
}

/// While a long prompt is fed, whoever decodes has a token of every step, and no step is larger than a chunk.
#[test]
fn a_long_prompt_stalls_nobody_for_more_than_a_chunk() {
    let decoder = decoder("gla", "stalls");
    let mut scheduler = Scheduler::new(session(&decoder, 4, 60));
    let short = [request(1, 3, 40), request(2, 2, 40)];
    let ids = short.each_ref().map(|request| scheduler.add(request.clone()).unwrap());
    let mut all = All::default();
    while all.0.len() < 2 {
        all.take(block_on(scheduler.step()).unwrap());
    }
    let long = request(3, 90, 3);
    let long_id = scheduler.add(long.clone()).unwrap();
    let mut steps = 0;
    while !all.0.contains_key(&long_id) {
        let events = block_on(scheduler.step()).unwrap();
        let got: Vec<RequestId> = events.iter().map(|event| event.id).filter(|id| *id != long_id).collect();
        assert_eq!(got, ids, "step {steps}");
        all.take(events);
        steps += 1;
        assert!(steps < 60, "no end");
    }
    // Two of each step's six tokens are of those that decode.
    assert!((90 / (CHUNK - 2)..=90 / (CHUNK - 2) + 3).contains(&steps), "{steps} steps");
    all.steps(&mut scheduler, 100);
    for (id, request) in ids.iter().zip(&short).chain([(&long_id, &long)]) {
        assert_eq!(all.0[id].tokens, alone(&decoder, request));
    }
}

/// A short prompt behind a long one has its first token before the long one has, and a long one behind an endless row of short ones
/// has its own, too.
#[test]
fn short_prompts_pass_long_ones_and_long_ones_come_to_an_end() {
    let decoder = decoder("gqa", "passes");
    let mut scheduler = Scheduler::new(session(&decoder, 3, 60));
    let (first, long) = (request(1, 60, 2), request(2, 60, 2));
    let ids = [first, long].map(|request| scheduler.add(request).unwrap());
    let (mut all, mut short, mut order, mut steps) = (All::default(), 0, Vec::new(), 0);
    while !ids.iter().all(|id| all.0.get(id).is_some_and(|got| got.finished.is_some())) {
        if scheduler.running() + scheduler.waiting() < 3 + usize::from(short == 0) {
            scheduler.add(request(10 + short, 4, 1)).unwrap();
            short += 1;
        }
        let events = block_on(scheduler.step()).unwrap();
        order.extend(events.iter().filter(|event| event.finished.is_some()).map(|event| event.id));
        all.take(events);
        steps += 1;
        assert!(steps < 200, "no end: {order:?}");
    }
    let place = |id| order.iter().position(|other| *other == id).unwrap();
    assert!(place(ids[0]) >= 5 && place(ids[0]) < place(ids[1]), "{ids:?} in {order:?}");
    assert!(short > 10, "{short} short ones");
}

#[test]
fn a_deadline_ends_a_request_with_what_it_has() {
    let decoder = decoder("gla", "deadline");
    let mut scheduler = Scheduler::new(session(&decoder, 2, 60));
    let other = scheduler.add(request(1, 5, 30)).unwrap();
    let mut late = request(2, 5, 60);
    late.deadline = Some(Instant::now() + Duration::from_secs(3600));
    let id = scheduler.add(late.clone()).unwrap();
    // It waits for a place, and is late there.
    let waits = scheduler.add(Request { deadline: Some(Instant::now()), ..request(3, 5, 5) }).unwrap();
    let mut all = All::default();
    (0..6).for_each(|_| all.take(block_on(scheduler.step()).unwrap()));
    assert!(matches!(all.0[&waits].finished, Some(Finished::Deadline)), "{:?}", all.0[&waits]);
    assert!(all.0[&waits].tokens.is_empty() && all.0[&id].finished.is_none());

    let mut brief = request(4, 3, 100);
    brief.deadline = Some(Instant::now() + Duration::from_millis(1));
    scheduler.cancel(id).unwrap();
    let brief_id = scheduler.add(brief.clone()).unwrap();
    all.steps(&mut scheduler, 200);
    let got = &all.0[&brief_id];
    let ended = matches!(got.finished, Some(Finished::Deadline)) || got.tokens.len() == 100;
    assert!(ended && alone(&decoder, &brief).starts_with(&got.tokens), "{got:?}");
    assert_eq!(all.0[&other].tokens, alone(&decoder, &request(1, 5, 30)));
    assert_eq!(scheduler.session().stats().used, 0);
}
