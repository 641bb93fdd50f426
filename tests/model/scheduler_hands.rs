//! A scheduler whose session others had in their hands, and whose callbacks panic: each request ends once, in a bounded
//! number of steps, and only the one concerned fails.

use crate::assert_kind;
use crate::scheduler::{alone, decoder, request, session, All, PAGE};
use latten::model::{Decoder, Event, Finished, Request, RequestId, Scheduler, Session, SessionOptions};
use latten::{DType, ErrorKind, SeqId};
use pollster::block_on;
use std::ops::ControlFlow;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// What comes of the request whose sequence others had.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Becomes {
    Same,
    /// Fails, with an argument named `sequence`.
    Strange,
    /// Fails, since its sequence is not there.
    Unknown,
}
use Becomes::{Same, Strange, Unknown};

/// What others do: with the session, the first request's sequence, and its tokens so far.
type Deed = fn(&mut Session, SeqId, &[u32], &Decoder);

fn feed(session: &mut Session, id: SeqId, tokens: &[u32]) {
    block_on(session.logits(&[(id, tokens)])).unwrap();
}

/// A session whose calls are not begun, or fail.
fn fail(session: &mut Session, id: SeqId) {
    drop(session.logits(&[(id, &[1, 2])]));
    assert!(block_on(session.logits(&[(id, &[1 << 20])])).is_err());
    assert!(block_on(session.logits(&[(id, &[1]), (id, &[1])])).is_err());
}

const DEEDS: [(&str, Becomes, Deed); 20] = [
    ("nothing", Same, |_, _, _, _| ()),
    ("remove", Unknown, |s, id, _, _| s.remove(id).unwrap()),
    ("truncate to nothing", Same, |s, id, _, _| s.truncate(id, 0).unwrap()),
    ("truncate to 3", Same, |s, id, _, _| s.truncate(id, 3).unwrap()),
    ("truncate by 1", Same, |s, id, _, _| s.truncate(id, s.len(id).unwrap() - 1).unwrap()),
    ("feed", Strange, |s, id, _, _| feed(s, id, &[9])),
    ("feed much", Strange, |s, id, _, _| feed(s, id, &[9; 15])),
    ("feed the next token", Strange, |s, id, own, _| feed(s, id, &own[s.len(id).unwrap()..])),
    ("other tokens, as many", Strange, |s, id, own, _| {
        let len = s.len(id).unwrap();
        s.truncate(id, 2).unwrap();
        feed(s, id, &own[2..len].iter().map(|t| t ^ 1).collect::<Vec<_>>());
    }),
    ("other tokens, fewer", Strange, |s, id, _, _| {
        s.truncate(id, 2).unwrap();
        feed(s, id, &[200]);
    }),
    ("its own tokens again", Same, |s, id, own, _| {
        let len = s.len(id).unwrap();
        s.truncate(id, 2).unwrap();
        feed(s, id, &own[2..len]);
    }),
    ("fork", Same, |s, id, _, _| {
        let fork = s.fork(id).unwrap();
        feed(s, fork, &[9; 6]);
        s.remove(fork).unwrap();
    }),
    ("pin", Same, |s, id, _, _| {
        s.pin(id).unwrap();
        s.unpin(id).unwrap();
    }),
    ("calls that fail", Same, |s, id, _, _| fail(s, id)),
    ("a budget for one at a time", Same, |s, _, _, _| {
        s.set_byte_budget(s.stats().used.max(7) as u64 * s.cache().page_bytes()).unwrap();
    }),
    ("rebuild", Same, |s, _, _, decoder| drop(s.rebuild(decoder).unwrap())),
    ("rebuild, and feed all again", Same, |s, _, _, decoder| {
        for emptied in s.rebuild(decoder).unwrap() {
            feed(s, emptied.id, &emptied.tokens.unwrap());
        }
    }),
    ("rebuild, and feed more", Strange, |s, id, own, decoder| {
        s.rebuild(decoder).unwrap();
        feed(s, id, &[own, &[9, 9, 9]].concat());
    }),
    ("rebuild, and remove", Unknown, |s, id, _, decoder| {
        s.rebuild(decoder).unwrap();
        s.remove(id).unwrap();
    }),
    ("rebuild, and feed others", Strange, |s, id, _, decoder| {
        s.rebuild(decoder).unwrap();
        feed(s, id, &[201, 202]);
    }),
];

/// Steps to the end, and checks that every request has one.
fn finish(scheduler: &mut Scheduler, all: &mut All, ids: &[RequestId], what: &str) {
    all.steps(scheduler, 150);
    ids.iter().for_each(|id| assert!(all.0[id].finished.is_some(), "{what}: {id:?} has no end"));
    scheduler.session_mut().set_byte_budget(u64::MAX).unwrap();
    assert_eq!(scheduler.session().stats().used, 0, "{what}");
}

fn check(got: &crate::scheduler::Got, want: &[u32], becomes: Becomes, what: &str) {
    match (&got.finished, becomes) {
        (Some(Finished::Length), Same) => assert_eq!(got.tokens, want, "{what}"),
        (Some(Finished::Failed(error)), Strange) => {
            assert!(matches!(error.kind(), ErrorKind::Argument { name: "sequence", .. }), "{what}: {error}");
        }
        (Some(Finished::Failed(error)), Unknown) => {
            assert!(matches!(error.kind(), ErrorKind::UnknownSequence { .. }), "{what}: {error}");
        }
        (other, _) => panic!("{what}: {other:?}, wanted {becomes:?}"),
    }
    assert!(want.starts_with(&got.tokens), "{what}");
}

/// Three requests, one of which waits; after so many steps others have the session.
#[test]
fn whatever_others_do_concerns_one_request() {
    let decoder = decoder("gqa", "hands");
    let requests: Vec<Request> = [3, 1, 5].map(|i| Request { salt: u64::from(i), ..request(i, 12) }).to_vec();
    let wanted: Vec<Vec<u32>> = requests.iter().map(|request| alone(&decoder, request)).collect();
    for (what, becomes, deed) in DEEDS {
        for steps in [1, 6] {
            let what = format!("{what} after {steps} steps");
            let mut scheduler = Scheduler::new(session(&decoder, 2, 40));
            let ids: Vec<RequestId> = requests.iter().map(|r| scheduler.add(r.clone()).unwrap()).collect();
            let mut all = All::default();
            all.take(block_on(scheduler.step()).unwrap());
            // Ids are kept, and everything is computed again.
            let id = scheduler.session_mut().rebuild(&decoder).unwrap()[0].id;
            for _ in 0..2 + steps {
                all.take(block_on(scheduler.step()).unwrap());
            }
            let own = [&requests[0].prompt[..], &all.0[&ids[0]].tokens].concat();
            deed(scheduler.session_mut(), id, &own, &decoder);
            finish(&mut scheduler, &mut all, &ids, &what);
            for (i, id) in ids.iter().enumerate() {
                check(&all.0[id], &wanted[i], if i == 0 { becomes } else { Same }, &what);
            }
        }
    }
}

/// With a window nobody knows the tokens of a sequence: what was added is not its own, whatever it is.
#[test]
fn the_same_with_a_window() {
    let decoder = decoder("gla", "hands-window");
    let new = || {
        let options = SessionOptions {
            max_batch: 2,
            chunk: 6,
            cache_tokens: 40 * PAGE,
            page_size: PAGE,
            kv_dtype: DType::F32,
            window: Some(9),
            ..Default::default()
        };
        Session::new(&decoder, options).unwrap()
    };
    let requests: Vec<Request> = [3, 1, 5].map(|i| request(i, 25)).to_vec();
    let wanted: Vec<Vec<u32>> = requests
        .iter()
        .map(|r| {
            let all = |_| ControlFlow::Continue(());
            block_on(latten::model::generate(&mut new(), &r.prompt, r.generate, all)).unwrap()
        })
        .collect();
    let deeds: [(&str, Becomes, Deed); 8] = [
        ("remove", Unknown, |s, id, _, _| s.remove(id).unwrap()),
        ("truncate to nothing", Same, |s, id, _, _| drop(s.truncate(id, 0))),
        ("truncate by 1", Same, |s, id, _, _| drop(s.truncate(id, s.len(id).unwrap() - 1))),
        ("feed", Strange, |s, id, _, _| feed(s, id, &[9])),
        ("feed much", Strange, |s, id, _, _| feed(s, id, &[9; 30])),
        ("calls that fail", Same, |s, id, _, _| fail(s, id)),
        ("a call that fails half way", Same, |s, id, _, _| {
            s.set_byte_budget((s.stats().used as u64 + 2) * s.cache().page_bytes()).unwrap();
            assert!(block_on(s.logits(&[(id, &[3; 70])])).is_err());
            s.set_byte_budget(u64::MAX).unwrap();
        }),
        ("rebuild", Same, |s, _, _, decoder| drop(s.rebuild(decoder).unwrap())),
    ];
    for (what, becomes, deed) in deeds {
        let mut scheduler = Scheduler::new(new());
        let ids: Vec<RequestId> = requests.iter().map(|r| scheduler.add(r.clone()).unwrap()).collect();
        let mut all = All::default();
        all.take(block_on(scheduler.step()).unwrap());
        let id = scheduler.session_mut().rebuild(&decoder).unwrap()[0].id;
        (0..14).for_each(|_| all.take(block_on(scheduler.step()).unwrap()));
        deed(scheduler.session_mut(), id, &[], &decoder);
        finish(&mut scheduler, &mut all, &ids, what);
        for (i, id) in ids.iter().enumerate() {
            check(&all.0[id], &wanted[i], if i == 0 { becomes } else { Same }, what);
        }
    }
}

/// Another session in its place: what ran is not there, what waits goes on as far as that session can take it.
#[test]
fn a_session_may_be_exchanged() {
    let decoder = decoder("gqa", "exchanged");
    let options = |max_batch, cache_tokens| SessionOptions {
        max_batch,
        chunk: 6,
        cache_tokens,
        page_size: PAGE,
        kv_dtype: DType::F32,
        ..Default::default()
    };
    for (cache_tokens, fits) in [(160, true), (8, false)] {
        let mut scheduler = Scheduler::new(session(&decoder, 2, 40));
        let requests: Vec<Request> = [3, 1, 5].map(|i| request(i, 12)).to_vec();
        let ids: Vec<RequestId> = requests.iter().map(|r| scheduler.add(r.clone()).unwrap()).collect();
        let mut all = All::default();
        (0..3).for_each(|_| all.take(block_on(scheduler.step()).unwrap()));
        *scheduler.session_mut() = Session::new(&decoder, options(1, cache_tokens)).unwrap();
        finish(&mut scheduler, &mut all, &ids, "exchanged");
        let want = alone(&decoder, &requests[2]);
        if fits {
            check(&all.0[&ids[0]], &alone(&decoder, &requests[0]), Unknown, "exchanged");
        }
        match (&all.0[&ids[2]].finished, fits) {
            (Some(Finished::Length), true) => assert_eq!(all.0[&ids[2]].tokens, want),
            (Some(Finished::Failed(error)), false) => assert!(matches!(error.kind(), ErrorKind::CacheFull { .. })),
            (other, _) => panic!("{other:?}"),
        }
    }
    // A request of it that is cancelled while its sequence is gone has its event.
    let mut scheduler = Scheduler::new(session(&decoder, 2, 40));
    let id = scheduler.add(request(3, 12)).unwrap();
    block_on(scheduler.step()).unwrap();
    let sequence = scheduler.session_mut().rebuild(&decoder).unwrap()[0].id;
    scheduler.session_mut().remove(sequence).unwrap();
    scheduler.cancel(id).unwrap();
    let events = block_on(scheduler.step()).unwrap();
    assert!(matches!(&events[..], [Event { finished: Some(Finished::Cancelled), .. }]), "{events:?}");
    scheduler.add(request(3, 12)).unwrap();
    block_on(scheduler.step()).unwrap();
    let sequence = scheduler.session_mut().rebuild(&decoder).unwrap();
    assert_eq!(sequence.len(), 1);
    scheduler.session_mut().remove(sequence[0].id).unwrap();
    assert_eq!(scheduler.into_session().unwrap().stats().used, 0);
}

/// A callback that panics once is asked again; one that panics at some token ends the request that has it.
#[test]
fn a_callback_that_panics() {
    let decoder = decoder("gqa", "callback");
    let requests: Vec<Request> = (0..4).map(|i| request(i, 10)).collect();
    let wanted: Vec<Vec<u32>> = requests.iter().map(|request| alone(&decoder, request)).collect();
    let run = |scheduler: &mut Scheduler| {
        let ids: Vec<RequestId> = requests.iter().map(|r| scheduler.add(r.clone()).unwrap()).collect();
        let (mut all, mut panics) = (All::default(), 0);
        for _ in 0..150 {
            match catch_unwind(AssertUnwindSafe(|| block_on(scheduler.step()).unwrap())) {
                Ok(events) => all.take(events),
                Err(_) => panics += 1,
            }
        }
        assert!(scheduler.is_idle(), "{} running after 150 steps", scheduler.running());
        (ids, all, panics)
    };
    for once in [0, 2, 3, 17] {
        let calls = AtomicUsize::new(0);
        let bytes = move |_| {
            assert!(calls.fetch_add(1, Relaxed) != once, "once");
            vec![b'a']
        };
        let (ids, all, panics) = run(&mut Scheduler::new(session(&decoder, 3, 60)).with_token_bytes(bytes));
        assert_eq!(panics, 1);
        for (id, want) in ids.iter().zip(&wanted) {
            assert_eq!((&all.0[id].tokens, all.0[id].bytes.len()), (want, 10), "once at {once}");
        }
    }
    // A token that one request alone comes to.
    let bad = wanted[1].iter().position(|t| [0, 2, 3].iter().all(|i| !wanted[*i].contains(t))).unwrap();
    let token = wanted[1][bad];
    let bytes = move |t| {
        assert!(t != token, "always");
        vec![b'a']
    };
    let (ids, all, panics) = run(&mut Scheduler::new(session(&decoder, 3, 60)).with_token_bytes(bytes));
    assert_eq!(panics, 2);
    for (i, (id, want)) in ids.iter().zip(&wanted).enumerate() {
        match (i, &all.0[id].finished) {
            (1, Some(Finished::Failed(error))) => {
                assert!(matches!(error.kind(), ErrorKind::Argument { name: "token_bytes", .. }), "{error}");
                assert_eq!(all.0[id].tokens, want[..bad]);
            }
            (_, Some(Finished::Length)) => assert_eq!(&all.0[id].tokens, want),
            (_, other) => panic!("{other:?}"),
        }
    }

    // Events that a callback has not seen are not lost with those that it panics at.
    let mut scheduler = Scheduler::new(session(&decoder, 3, 60));
    let ids: Vec<RequestId> = requests.iter().map(|r| scheduler.add(r.clone()).unwrap()).collect();
    let (mut all, mut calls) = (All::default(), 0);
    for _ in 0..100 {
        let seen = |event: Event| {
            all.take(vec![event]);
            calls += 1;
            assert!(calls % 5 != 0, "at every fifth");
            ControlFlow::Continue(())
        };
        let _ = catch_unwind(AssertUnwindSafe(|| block_on(scheduler.run(seen)).unwrap()));
    }
    assert!(scheduler.is_idle());
    for (id, want) in ids.iter().zip(&wanted) {
        assert_eq!(&all.0[id].tokens, want);
    }
    assert_kind!(scheduler.cancel(ids[0]), ErrorKind::Argument { name: "id", .. });
}
