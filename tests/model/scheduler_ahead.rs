//! A scheduler whose steps are with the device before the tokens of the ones before are read, against one that waits for each: the
//! same events in the same steps, and the same left behind, however requests end.

use crate::common::*;
use crate::scheduler::{request, session, PAGE};
use crate::tiny::{Tiny, VARIANTS};
use latten::model::{Decoder, Event, Finished, Request, RequestId, Scheduler, Session, SessionOptions};
use latten::nn::SwiGlu;
use latten::{DType, ErrorKind, Gpu, GpuOptions, Tensor};
use pollster::block_on;
use std::panic::{catch_unwind, AssertUnwindSafe};

fn decoder(gpu: &Gpu, variant: &str, test: &str) -> Decoder {
    Decoder::load(gpu, Tiny::new(variant, 5).write(&format!("{test}-{variant}")).path(), DType::F32).unwrap()
}

/// Five at a time, whose prompts all fit one step.
fn roomy(decoder: &Decoder) -> Session {
    let options = SessionOptions {
        max_batch: 5,
        chunk: 80,
        cache_tokens: 60 * PAGE,
        page_size: PAGE,
        kv_dtype: DType::F32,
        ..Default::default()
    };
    Session::new(decoder, options).unwrap()
}

/// What a step gave, as it can be compared.
fn texts(events: Vec<Event>) -> Vec<String> {
    events.iter().map(|event| format!("{event:?}")).collect()
}

/// One step of a scheduler that waits: who takes the session in hand gives up the step under way.
fn waiting_step(scheduler: &mut Scheduler) -> latten::Result<Vec<Event>> {
    let _ = scheduler.session_mut();
    block_on(scheduler.step())
}

/// What is left, as anyone can see it: pages used and free, and how much of each prompt is found.
fn left(scheduler: &mut Scheduler, requests: &[Request]) -> (usize, usize, Vec<usize>) {
    let session = scheduler.session_mut();
    let (used, free) = (session.stats().used, session.stats().free);
    let found = requests.iter().map(|request| {
        let id = session.match_prefix(&request.prompt, request.salt);
        let len = session.len(id).unwrap();
        session.remove(id).unwrap();
        len
    });
    (used, free, found.collect())
}

/// Both, step by step, with what `between` does to each before a step.
fn compare(
    what: &str,
    mut new: impl FnMut() -> Scheduler,
    requests: &[Request],
    between: impl Fn(&mut Scheduler, &[RequestId], usize),
) -> Vec<String> {
    let mut both = [new(), new()];
    let ids: Vec<Vec<RequestId>> =
        both.iter_mut().map(|s| requests.iter().map(|r| s.add(r.clone()).unwrap()).collect()).collect();
    let mut all = Vec::new();
    for step in 0.. {
        assert!(step < 300, "{what}: no end");
        for (scheduler, ids) in both.iter_mut().zip(&ids) {
            between(scheduler, ids, step);
        }
        let want = texts(waiting_step(&mut both[0]).unwrap());
        let got = texts(block_on(both[1].step()).unwrap());
        assert_eq!(got, want, "{what}, step {step}");
        let counts = both.each_ref().map(|s| (s.running(), s.waiting(), s.preemptions(), s.is_idle()));
        assert_eq!(counts[1], counts[0], "{what}, step {step}");
        all.extend(want);
        if counts[0].3 {
            break;
        }
    }
    let [want, got] = both.each_mut().map(|scheduler| left(scheduler, requests));
    assert_eq!(got, want, "{what}");
    assert_eq!(want.0, 0, "{what}");
    all
}

/// Tokens of a request alone, for stops that are met.
fn tokens(decoder: &Decoder, request: &Request) -> Vec<u32> {
    crate::scheduler::alone(decoder, request)
}

#[test]
fn events_are_those_of_steps_that_wait_however_requests_end() {
    for variant in VARIANTS {
        let decoder = decoder(gpu(), variant, "ahead");
        let plain: Vec<Request> = (0..5).map(|i| request(i, 4 + i as usize * 5 % 11)).collect();
        let new = |batch, pages| Scheduler::new(session(&decoder, batch, pages));
        // By their length, known ahead; with all at once, and with some that wait for a place.
        for batch in [5, 2, 1] {
            let events = compare(&format!("{variant}, {batch} at a time"), || new(batch, 60), &plain, |_, _, _| ());
            assert_eq!(events.iter().filter(|event| event.contains("Length")).count(), 5);
        }
        // A cache that is full: the youngest are put off.
        let long: Vec<Request> = (0..4).map(|i| Request { salt: 1, ..request(i, 20) }).collect();
        compare(&format!("{variant}, full"), || new(4, 11), &long, |_, _, _| ());
        // By a token and by a string, which nobody knows ahead: in the middle, at the first token and at the last.
        let made: Vec<Vec<u32>> = plain.iter().map(|request| tokens(&decoder, request)).collect();
        let mut stopped = plain.clone();
        stopped[1].stop_tokens = vec![made[1][made[1].len() / 2]];
        stopped[2].stop_tokens = vec![made[2][0]];
        stopped[3].stop_tokens = vec![made[3][made[3].len() - 1]];
        let byte = |i: usize, at: usize| (made[i][at] % 256) as u8;
        let bytes = |token: u32| vec![(token % 256) as u8];
        stopped[4].stop_strings = vec![b"never".to_vec(), vec![byte(4, 1), byte(4, 2)]];
        // With room for all prompts: else what one that is stopped leaves of a step goes to a prompt one step later.
        let roomy = || Scheduler::new(roomy(&decoder)).with_token_bytes(bytes);
        let events = compare(&format!("{variant}, stopped"), roomy, &stopped, |_, _, _| ());
        let count = |what: &str| events.iter().filter(|event| event.contains(what)).count();
        assert_eq!((count("StopToken"), count("StopString"), count("Length")), (3, 1, 1), "{events:?}");
        // Cancelled, before and after the first token.
        for (at, which) in [(0, 0), (1, 1), (3, 0), (4, 4)] {
            compare(&format!("{variant}, {which} cancelled at {at}"), roomy, &plain, |scheduler, ids, step| {
                if step == at {
                    scheduler.cancel(ids[which]).unwrap();
                }
            });
        }
    }
}

/// With a window steps are ahead but where a page is given back; the same events, in the pages that the window needs.
#[test]
fn a_window_gives_back_the_same_pages() {
    let decoder = decoder(gpu(), "gla", "ahead-window");
    let new = |pages: usize| {
        let options = SessionOptions {
            max_batch: 3,
            chunk: 6,
            cache_tokens: pages * PAGE,
            page_size: PAGE,
            kv_dtype: DType::F32,
            window: Some(9),
            keep_first: 3,
            ..Default::default()
        };
        Scheduler::new(Session::new(&decoder, options).unwrap())
    };
    let requests: Vec<Request> = (0..4).map(|i| request(i, 30)).collect();
    for pages in [60, 14] {
        compare(&format!("window, {pages} pages"), || new(pages), &requests, |_, _, _| ());
    }
    let gpu = gpu_with(GpuOptions::default());
    let other = self::decoder(&gpu, "gqa", "ahead-window-counters");
    let options = SessionOptions { page_size: PAGE, window: Some(9), ..Default::default() };
    let mut scheduler = Scheduler::new(Session::new(&other, options).unwrap());
    scheduler.add(request(1, 30)).unwrap();
    let mut submits = Vec::new();
    while !scheduler.is_idle() {
        let before = gpu.counters().submits;
        block_on(scheduler.step()).unwrap();
        submits.push(gpu.counters().submits - before);
    }
    // A page of 4 tokens is given back in every fourth step: no step is ahead of that one, and two begin with the next call.
    let calls = |n: u64| submits.iter().filter(|submits| **submits == n).count();
    assert!(calls(1) >= 10 && calls(0) >= 5 && calls(2) >= 5, "{submits:?}");
}

/// A step ahead is one submit and one wait per step in all, and none where no token is to come.
#[test]
fn a_step_ahead_is_no_step_more() {
    let gpu = gpu_with(GpuOptions::default());
    let decoder = decoder(&gpu, "gqa", "ahead-counters");
    let mut scheduler = Scheduler::new(session(&decoder, 3, 60));
    // A scheduler's first step of all rehearses before it compiles, which is a submit each.
    scheduler.add(request(0, 1)).unwrap();
    block_on(scheduler.step()).unwrap();
    assert!(scheduler.is_idle());
    for i in 0..3 {
        scheduler.add(Request { prompt: vec![9], ..request(i, 12 + i as usize) }).unwrap();
    }
    let mut counts = Vec::new();
    while !scheduler.is_idle() {
        let before = gpu.counters();
        block_on(scheduler.step()).unwrap();
        let after = gpu.counters();
        counts.push((after.submits - before.submits, after.readbacks - before.readbacks));
    }
    assert_eq!(counts.len(), 14);
    assert_eq!(counts[0], (2, 2), "the first step and the one behind it");
    assert_eq!(counts[13], (0, 0), "the last is there");
    assert!(counts[1..13].iter().all(|count| *count == (1, 1)), "{counts:?}");
}

/// Whoever comes while steps are under way is taken up within two steps, and gets what it gets alone; whoever waits takes the place
/// of one that is stopped. All get the same as from steps that wait.
#[test]
fn those_that_come_later_get_the_same() {
    for variant in ["gqa", "mla"] {
        let decoder = decoder(gpu(), variant, "ahead-later");
        let greedy = |i: u32| {
            let mut request = request(i, 9);
            request.generate.sampling.temperature = 0.0;
            request
        };
        let requests: Vec<Request> = (0..6).map(greedy).collect();
        let made: Vec<Vec<u32>> = requests.iter().map(|request| tokens(&decoder, request)).collect();
        let mut stopped = requests.clone();
        stopped[0].stop_tokens = vec![made[0][4]];
        stopped[2].stop_tokens = vec![made[2][3]];
        let run = |waits: bool| {
            let mut scheduler = Scheduler::new(session(&decoder, 2, 60));
            let (mut got, mut later) = (vec![String::new(); 6], stopped.iter().enumerate());
            let mut ids = Vec::new();
            for step in 0..200 {
                if step % 3 == 0 {
                    ids.extend(later.next().map(|(_, request)| scheduler.add(request.clone()).unwrap()));
                }
                let events = if waits { waiting_step(&mut scheduler) } else { block_on(scheduler.step()) };
                for event in events.unwrap() {
                    let which = ids.iter().position(|id| *id == event.id).unwrap();
                    got[which] += &format!("{:?} {:?} {:?};", event.token, event.bytes, event.finished);
                }
            }
            assert!(scheduler.is_idle() && scheduler.session().stats().used == 0);
            got
        };
        assert_eq!(run(false), run(true), "{variant}");
    }
}

/// Logits without probabilities end one request, with a step under way that has its token.
#[test]
fn no_token_ends_one_request_as_in_steps_that_wait() {
    let plain: Vec<Request> = (0..3).map(|i| request(i, 10)).collect();
    let mut tiny = Tiny::new("gqa", 5);
    let mut other = tiny.clone();
    other.spoil_logits_after(256);
    let clean = Decoder::load(gpu(), other.write("ahead-clean").path(), DType::F32).unwrap();
    let bad = tokens(&clean, &plain[1])[4];
    tiny.spoil_logits_after(bad);
    let decoder = Decoder::load(gpu(), tiny.write("ahead-spoiled").path(), DType::F32).unwrap();
    let events = compare("no numbers", || Scheduler::new(session(&decoder, 3, 60)), &plain, |_, _, _| ());
    assert!(events.iter().any(|event| event.contains("the model gives no probabilities")), "{events:?}");
}

/// Futures that are dropped, callbacks that panic, commands that are lost: a step is done again, and nothing
/// else has changed.
#[test]
fn steps_that_fail_are_done_again() {
    let gpu = gpu_with(GpuOptions::default());
    let decoder = decoder(&gpu, "gla", "ahead-fail");
    let requests: Vec<Request> = (0..3).map(|i| request(i, 12)).collect();
    let (swiglu, out) = (SwiGlu::new(&gpu).unwrap(), Tensor::zeros(&gpu, &[1, 2], DType::F32).unwrap());
    let wanted: Vec<Vec<u32>> = requests.iter().map(|request| tokens(&decoder, request)).collect();
    let calls = std::sync::atomic::AtomicUsize::new(0);
    let bytes = move |token: u32| {
        assert!(calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 7 != 6, "at every seventh");
        vec![token as u8]
    };
    let mut scheduler = Scheduler::new(session(&decoder, 3, 60)).with_token_bytes(bytes);
    let ids: Vec<RequestId> = requests.iter().map(|r| scheduler.add(r.clone()).unwrap()).collect();
    let (mut got, mut lost, mut panics) = (vec![Vec::new(); 3], 0, 0);
    for step in 0.. {
        assert!(step < 300, "no end");
        match step % 5 {
            1 => drop(scheduler.step()),
            3 => lose_a_batch(&gpu, &swiglu, &out),
            _ => {}
        }
        let events = match catch_unwind(AssertUnwindSafe(|| block_on(scheduler.step()))) {
            Ok(Ok(events)) => events,
            Ok(Err(e)) if matches!(e.kind(), ErrorKind::CommandsLost { .. }) => {
                lost += 1;
                continue;
            }
            Ok(Err(e)) => panic!("{e:?}"),
            Err(_) => {
                panics += 1;
                continue;
            }
        };
        for event in events {
            let which = ids.iter().position(|id| *id == event.id).unwrap();
            got[which].extend(event.token);
            assert!(event.finished.is_none_or(|why| matches!(why, Finished::Length)));
        }
        if scheduler.is_idle() {
            break;
        }
    }
    assert_eq!(got, wanted);
    assert!(panics > 1 && lost > 1, "{panics} panics, {lost} lost");
    assert_eq!(scheduler.session().stats().used, 0);
}
