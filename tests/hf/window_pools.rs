//! Sessions whose layers with a window have pools of their own, against those whose layers hold all: the same logits however tokens are
//! fed, in less memory, and errors where a window has given up what would be seen.

use crate::assert_kind;
use crate::model::{Logits, Model};
use latten::cache::SaveSequence;
use latten::model::{
    generate, generate_speculative, Drafter, GenerateOptions, Request, Scheduler, Session, SessionOptions,
    SpeculativeOptions,
};
use latten::{DType, ErrorKind, SeqId};
use pollster::block_on;
use serde_json::json;

const PAGE: usize = 8;
/// Of each sequence 13 pages (those of a window of 8 and of 64 tokens before it, and 4 that are cut or copied), and 2 of a step.
const PLACES: usize = 13 + 2;
const LONG: usize = 40 * PAGE;

/// A case whose sequences may be long: windows in six of seven layers, or in one of two beside sinks.
fn model(case: &str) -> Model {
    Model::of(case, |config| config["max_position_embeddings"] = json!(1024), DType::F32).unwrap()
}

fn session(model: &Model, window_pools: bool, max_batch: usize) -> Session {
    let options = SessionOptions {
        max_batch,
        chunk: 16,
        cache_tokens: 2048,
        page_size: PAGE,
        window_pools,
        ..Default::default()
    };
    Session::new(model.decoder(), SessionOptions { kv_dtype: DType::F32, ..options }).unwrap()
}

fn tokens(first: u32, count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (i * i * 7 + i * 3 + 31 * first) % 300).collect()
}

fn feed(session: &mut Session, id: SeqId, tokens: &[u32]) -> Logits {
    block_on(session.all_logits(&[(id, tokens)])).unwrap().concat()
}

/// Differences are those of sums in another order.
fn assert_same(what: &str, got: &[f32], want: &[f32]) {
    let rms = (want.iter().map(|l| l * l).sum::<f32>() / want.len() as f32).sqrt();
    assert!(got.len() == want.len() && rms > 0.1, "{what}: {} of {} logits, rms {rms}", got.len(), want.len());
    let off = got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max) / rms;
    assert!(off <= 1e-4, "{what}: {off:e} of the logits' rms off");
}

#[test]
fn logits_are_the_same_in_less_memory() {
    for case in ["gemma3", "gpt_oss"] {
        let model = model(case);
        let [mut all, mut few] = [false, true].map(|pools| session(&model, pools, 1));
        let layers = model.config.layers;
        let windows = model.config.layer_kinds.iter().filter(|kind| kind.window.is_some()).count();
        let layer_page = all.cache().pool_bytes() / layers / 256;
        // Two pages more are of zeros, and of rows that nobody wants.
        let want = layer_page * ((layers - windows) * 256 + windows * (PLACES + 2));
        assert_eq!(few.cache().pool_bytes(), want, "{case}");

        let (tokens, ids) = (tokens(0, LONG), [all.insert(), few.insert()]);
        let mut at = 0;
        for count in [100, 37, 5, 5, 1, 1, 1, 90, 1, 16, 16, 7, 1, 1] {
            let piece = &tokens[at..at + count];
            let [want, got] = [(&mut all, ids[0]), (&mut few, ids[1])].map(|(s, id)| feed(s, id, piece));
            assert_same(&format!("{case} at {at}"), &got, &want);
            at += count;
        }
        let used = (few.stats().bytes, all.stats().bytes);
        let pages = at.div_ceil(PAGE);
        assert_eq!(used.1, (pages * layers * layer_page) as u64);
        assert!(used.0 <= (layer_page * ((layers - windows) * pages + windows * PLACES)) as u64, "{case}: {used:?}");

        // A fork goes another way; both are what they would be without.
        let forks = [all.fork(ids[0]).unwrap(), few.fork(ids[1]).unwrap()];
        let others = self::tokens(5, 60);
        let [want, got] = [(&mut all, forks[0]), (&mut few, forks[1])].map(|(s, id)| {
            s.remove(id).unwrap();
            let id = s.insert();
            let logits = feed(s, id, &others);
            s.remove(id).unwrap();
            logits
        });
        assert_same(&format!("{case}, another sequence"), &got, &want);
        let [want, got] = [(&mut all, ids[0]), (&mut few, ids[1])].map(|(s, id)| feed(s, id, &tokens[at..at + 9]));
        assert_same(&format!("{case}, after another sequence"), &got, &want);
    }
}

/// Several sequences in one call, forks of a sequence that is in the midst of a page, removals.
#[test]
fn sequences_share_pages_as_elsewhere() {
    let model = model("gemma3");
    let [mut all, mut few] = [false, true].map(|pools| session(&model, pools, 3));
    let run = |s: &mut Session| {
        let (a, b) = (tokens(1, 260), tokens(2, 150));
        let first = s.insert();
        let mut logits = feed(s, first, &a[..123]);
        let fork = s.fork(first).unwrap();
        let other = s.insert();
        for step in 0..12 {
            let range = |from: usize| from + 11 * step..from + 11 * (step + 1);
            let batch = [(first, &a[range(123)]), (fork, &b[range(0)]), (other, &a[range(0)])];
            logits.extend(block_on(s.all_logits(&batch)).unwrap().into_iter().flatten());
        }
        s.remove(first).unwrap();
        s.remove(other).unwrap();
        logits.extend(feed(s, fork, &a[..50]));
        logits
    };
    let want = run(&mut all);
    assert_same("three sequences", &run(&mut few), &want);
}

#[test]
fn a_cut_goes_as_far_as_the_windows_see() {
    let model = model("gpt_oss");
    let [mut all, mut few] = [false, true].map(|pools| session(&model, pools, 1));
    let tokens = tokens(3, LONG);
    let ids = [all.insert(), few.insert()];
    for (s, id) in [(&mut all, ids[0]), (&mut few, ids[1])] {
        feed(s, id, &tokens[..300]);
    }
    // Whatever came in between, 64 tokens can be cut off.
    for back in [1, 63] {
        let len = few.len(ids[1]).unwrap() - back;
        for (s, id) in [(&mut all, ids[0]), (&mut few, ids[1])] {
            s.truncate(id, len).unwrap();
        }
        let [want, got] = [(&mut all, ids[0]), (&mut few, ids[1])].map(|(s, id)| feed(s, id, &tokens[len..len + back]));
        assert_same(&format!("{back} cut off"), &got, &want);
    }
    // Farther back it is told, and nothing changes.
    let (before, error) = (few.len(ids[1]).unwrap(), few.truncate(ids[1], 100).unwrap_err());
    assert!(matches!(error.kind(), ErrorKind::Argument { name: "len", .. }), "{error}");
    let text = error.to_string();
    assert!(["100", "300", "window of 8 tokens"].iter().all(|word| text.contains(word)), "{text}");
    assert_eq!(few.len(ids[1]).unwrap(), before);
    let [want, got] = [(&mut all, ids[0]), (&mut few, ids[1])].map(|(s, id)| feed(s, id, &tokens[300..310]));
    assert_same("after a cut that was refused", &got, &want);
    assert_kind!(few.truncate(ids[1], 311), ErrorKind::Argument { name: "len", .. });
    // To nothing a sequence can always be cut.
    few.truncate(ids[1], 0).unwrap();
    let again = feed(&mut few, ids[1], &tokens[..20]);
    all.truncate(ids[0], 0).unwrap();
    assert_same("from the first token", &again, &feed(&mut all, ids[0], &tokens[..20]));
}

#[test]
fn prefixes_are_found_as_far_as_they_can_go_on() {
    let model = model("gpt_oss");
    let [mut all, mut few] = [false, true].map(|pools| session(&model, pools, 1));
    let tokens = tokens(4, LONG);
    let go_on = |s: &mut Session, length: usize| {
        let id = s.match_prefix(&tokens[..length], 7);
        let found = s.len(id).unwrap();
        let logits = feed(s, id, &tokens[found..length]);
        s.remove(id).unwrap();
        (found, logits)
    };
    for (length, found) in [(200, 0), (230, 200 / PAGE * PAGE), (201, 200)] {
        let [want, got] = [&mut all, &mut few].map(|s| go_on(s, length));
        assert_eq!((got.0, want.0), (found, found), "{length} tokens");
        assert_same(&format!("{length} tokens"), &got.1, &want.1);
    }
    // A shorter one ends where the windows have moved on: it is computed anew, and right.
    let hits = few.stats().hits;
    let [want, got] = [&mut all, &mut few].map(|s| go_on(s, 60));
    assert!(want.0 == 56 && got.0 < 56, "{} and {}", want.0, got.0);
    assert_eq!(few.stats().hits - hits, (got.0 / PAGE) as u64);
    let behind = want.1.len();
    assert_same("a prefix computed anew", &got.1[got.1.len() - behind..], &want.1);
    // Equal tokens are one page in the end, whoever wrote it: both sequences go on.
    let ids = [few.match_prefix(&[], 9), few.match_prefix(&[], 9)];
    let want = all.match_prefix(&[], 9);
    let want = feed(&mut all, want, &tokens[..45]);
    for at in [0..17, 17..45] {
        for id in ids {
            let got = feed(&mut few, id, &tokens[at.clone()]);
            assert_same("one of two", &got, &want[at.start * 300..at.end * 300]);
        }
    }
}

#[test]
fn pins_keep_what_a_prefix_needs() {
    let model = model("gpt_oss");
    let mut few = session(&model, true, 1);
    let prompt = tokens(6, 100);
    let id = few.match_prefix(&prompt, 1);
    feed(&mut few, id, &prompt);
    few.pin(id).unwrap();
    few.remove(id).unwrap();
    for round in 0..3 {
        let other = few.insert();
        feed(&mut few, other, &tokens(10 + round, 200));
        few.remove(other).unwrap();
    }
    let again = few.match_prefix(&[&prompt[..], &[1, 2, 3]].concat(), 1);
    assert_eq!(few.len(again).unwrap(), 100 / PAGE * PAGE);
}

#[test]
fn saved_sequences_go_on() {
    let model = model("gpt_oss");
    let [mut all, mut few] = [false, true].map(|pools| session(&model, pools, 1));
    let tokens = tokens(7, LONG);
    let ids = [all.insert(), few.insert()];
    for (s, id) in [(&mut all, ids[0]), (&mut few, ids[1])] {
        feed(s, id, &tokens[..301]);
    }
    let mut file = Vec::new();
    block_on(few.save(&[SaveSequence { id: ids[1], tokens: &tokens[..301] }], &mut file, |_| {})).unwrap();
    let mut other = session(&model, true, 1);
    // What was there before is not in the way.
    let before = other.insert();
    feed(&mut other, before, &tokens[100..170]);
    other.remove(before).unwrap();
    let loaded = block_on(other.load(&file[..], |_| {})).unwrap();
    assert_eq!((loaded[0].tokens.len(), other.len(loaded[0].id).unwrap()), (301, 301));
    let [want, got] = [(&mut all, ids[0]), (&mut other, loaded[0].id)].map(|(s, id)| feed(s, id, &tokens[301..LONG]));
    assert_same("loaded", &got, &want);
    assert_kind!(other.truncate(loaded[0].id, 150), ErrorKind::Argument { name: "len", .. });
    // A session that holds all does not take a file in which rows are missing.
    let error = block_on(all.load(&file[..], |_| {})).unwrap_err().to_string();
    assert!(error.contains("window_pools"), "{error}");
    // Nor has the file rows of other sequences: it is the same whatever the pools held.
    let mut again = Vec::new();
    let id = other.insert();
    other.remove(loaded[0].id).unwrap();
    feed(&mut other, id, &tokens[..301]);
    block_on(other.save(&[SaveSequence { id, tokens: &tokens[..301] }], &mut again, |_| {})).unwrap();
    assert_eq!(again.len(), file.len());
}

#[test]
fn speculation_and_generation_are_the_same() {
    let model = model("gemma3");
    let [mut all, mut few] = [false, true].map(|pools| session(&model, pools, 1));
    let prompt = [tokens(8, 30), tokens(8, 30), tokens(8, 120)].concat();
    let options = GenerateOptions { max_new_tokens: 60, ..Default::default() };
    let run =
        |s: &mut Session| block_on(generate(s, &prompt, options, |_| std::ops::ControlFlow::Continue(()))).unwrap();
    let want = run(&mut all);
    assert_eq!(run(&mut few), want);
    let options = SpeculativeOptions { generate: options, ..Default::default() };
    let guessed = block_on(generate_speculative(
        &mut few,
        Drafter::Lookup { max_ngram: 3, min_ngram: 1 },
        &prompt,
        options,
        |_| std::ops::ControlFlow::Continue(()),
    ));
    assert_eq!(guessed.unwrap().tokens, want);
}

/// More requests than the session takes at once, of which some wait: each gets what it would get alone.
#[test]
fn requests_are_served_as_elsewhere() {
    let model = model("gpt_oss");
    let [want, got] = [false, true].map(|pools| {
        let mut scheduler = Scheduler::new(session(&model, pools, 2));
        let ids: Vec<_> = (0..5u32)
            .map(|i| {
                let generate = GenerateOptions { max_new_tokens: 70, ..Default::default() };
                let request = Request { prompt: tokens(i / 2, 90 + i as usize), generate, ..Default::default() };
                scheduler.add(request).unwrap()
            })
            .collect();
        let mut made = vec![Vec::new(); ids.len()];
        while !scheduler.is_idle() {
            for event in block_on(scheduler.step()).unwrap() {
                let at = ids.iter().position(|id| *id == event.id).unwrap();
                made[at].extend(event.token);
            }
        }
        made
    });
    assert!(want.iter().all(|tokens| tokens.len() == 70));
    assert_eq!(got, want);
}

#[test]
fn too_little_room_is_told_and_undone() {
    let model = model("gpt_oss");
    let mut few = session(&model, true, 1);
    let tokens = tokens(9, 60);
    let first = few.insert();
    let want = feed(&mut few, first, &tokens);
    // Others find room as long as windows alone need it, not what they may be cut back to.
    let mut others = Vec::new();
    let error = loop {
        let other = few.insert();
        others.push(other);
        assert!(others.len() < 10, "there is room for ten windows");
        // In a call of several steps, which may fail after some of them.
        match block_on(few.all_logits(&[(other, &tokens)])) {
            Ok(got) => assert_same("beside others", &got.concat(), &want),
            Err(error) => break error,
        }
    };
    assert!(matches!(error.kind(), ErrorKind::CacheFull { .. }), "{error}");
    let last = others.pop().unwrap();
    assert_eq!((few.len(first).unwrap(), few.len(last).unwrap()), (60, 0));
    others.iter().for_each(|id| few.remove(*id).unwrap());
    assert_same("once there is room", &feed(&mut few, last, &tokens), &want);
    let mut all = session(&model, false, 1);
    let id = all.insert();
    feed(&mut all, id, &tokens);
    let [want, got] = [(&mut all, id), (&mut few, first)].map(|(s, id)| feed(s, id, &tokens[..12]));
    assert_same("the first goes on", &got, &want);
    let options = |window| SessionOptions { window, window_pools: true, cache_tokens: 2048, ..Default::default() };
    assert_kind!(Session::new(model.decoder(), options(Some(100))), ErrorKind::Argument { name: "window_pools", .. });
    // Where all would fit, all is held.
    let small = SessionOptions { cache_tokens: 64, ..options(None) };
    let sizes = [true, false].map(|window_pools| {
        let options = SessionOptions { window_pools, ..small };
        Session::new(model.decoder(), options).unwrap().cache().pool_bytes()
    });
    assert_eq!(sizes[0], sizes[1]);
}
