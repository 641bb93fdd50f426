//! Sessions with a window: the logits of the f64 forward with that mask, in memory that does not grow.

use crate::assert_kind;
use crate::common::*;
use crate::tiny::{Tiny, MAX_POSITIONS, VARIANTS};
use latten::model::{
    best_of, continue_sequence, generate_speculative, BestOfOptions, Decoder, Drafter, Draw, GenerateOptions, Session,
    SessionOptions, SpeculativeOptions,
};
use latten::reference::DecodeOptions;
use latten::{DType, ErrorKind, GpuOptions, SeqId};
use pollster::block_on;
use std::ops::ControlFlow;

const PAGE: usize = 4;
const WINDOW: usize = 10;
const KEEP_FIRST: usize = 5;
const CHUNK: usize = 8;
/// Two pages of first tokens, and those of 9 tokens before a step and of its 8, wherever they begin.
const PAGES: usize = 2 + 5;

fn options() -> SessionOptions {
    SessionOptions {
        chunk: CHUNK,
        cache_tokens: PAGES * PAGE,
        page_size: PAGE,
        kv_dtype: DType::F32,
        window: Some(WINDOW),
        keep_first: KEEP_FIRST,
        ..Default::default()
    }
}

fn decoder(variant: &str, test: &str) -> Decoder {
    let folder = Tiny::new(variant, 7).write(&format!("{test}-{variant}"));
    Decoder::load(gpu(), folder.path(), DType::F32).unwrap()
}

fn tokens(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (i * i * 7 + i * 3) % 257).collect()
}

fn logits(session: &mut Session, id: SeqId, tokens: &[u32]) -> Vec<f32> {
    block_on(session.logits(&[(id, tokens)])).unwrap().remove(0)
}

/// A prompt longer than the cache, in several steps, then token by token, past the model's positions.
#[test]
fn logits_are_those_of_the_masked_forward() {
    for (variant, keep_first) in VARIANTS.into_iter().flat_map(|variant| [(variant, KEEP_FIRST), (variant, 0)]) {
        let tiny = Tiny::new(variant, 7);
        let seen = DecodeOptions { window: Some(WINDOW), keep_first, ..Default::default() };
        let tokens = tokens(MAX_POSITIONS + 20);
        let want = tiny.forward_seeing(&tokens, &seen);
        // What the window hides matters: the whole says something else.
        let whole = tiny.forward(&tokens[..30]);
        assert!(want[29].iter().zip(&whole[29]).any(|(a, b)| (a - b).abs() > 1e-2), "{variant}");

        let decoder = decoder(variant, "windowed");
        let mut session = Session::new(&decoder, SessionOptions { keep_first, ..options() }).unwrap();
        let id = session.insert();
        let prompt = PAGES * PAGE + 3;
        let mut got = block_on(session.all_logits(&[(id, &tokens[..prompt])])).unwrap().remove(0);
        for token in &tokens[prompt..] {
            got.extend(logits(&mut session, id, &[*token]));
        }
        assert_eq!(session.len(id).unwrap(), MAX_POSITIONS + 20);
        assert_close(&format!("{variant}, {keep_first} first"), &got, &want.concat(), 3e-5, 1e-10);
    }
}

#[test]
fn memory_is_flat_over_two_thousand_tokens() {
    // A device of its own: the counters are per device, and tests run side by side.
    let gpu = gpu_with(GpuOptions::default());
    let folder = Tiny::new("gta", 7).write("flat");
    let decoder = Decoder::load(&gpu, folder.path(), DType::F32).unwrap();
    let mut session = Session::new(&decoder, options()).unwrap();
    let id = session.insert();
    let mut counters = None;
    let mut token = block_on(session.next_tokens(&[(id, &tokens(100))], &[Draw::default()])).unwrap()[0];
    for i in 0..1900 {
        token = block_on(session.next_tokens(&[(id, &[token])], &[Draw::default()])).unwrap()[0];
        // Between steps the next token sees 9 of the sequence.
        assert!(session.stats().used <= 2 + 3, "{:?}", session.stats());
        if i == 20 {
            counters = Some(gpu.counters());
        }
    }
    assert_eq!(session.len(id).unwrap(), 2000);
    let (before, after) = (counters.unwrap(), gpu.counters());
    assert_eq!((after.pipelines, after.bind_groups), (before.pipelines, before.bind_groups));
    assert_eq!(after.buffers, before.buffers);
    session.remove(id).unwrap();
    assert_eq!(session.stats().used, 0);
}

/// What fails between the steps of a call has changed nothing, though its steps have freed pages.
#[test]
fn a_call_is_undone_across_freed_pages() {
    let decoder = decoder("gla", "undone");
    let tokens = tokens(90);
    let mut own = Session::new(&decoder, options()).unwrap();
    let alone = own.insert();
    logits(&mut own, alone, &tokens[..20]);
    let want = logits(&mut own, alone, &tokens[20..22]);

    let mut session = Session::new(&decoder, SessionOptions { cache_tokens: 20 * PAGE, ..options() }).unwrap();
    let id = session.insert();
    logits(&mut session, id, &tokens[..20]);
    let before = session.stats();
    let mut failed = 0;
    for pages in before.used..=20 {
        session.set_byte_budget(pages as u64 * session.cache().page_bytes()).unwrap();
        let fed = block_on(session.logits(&[(id, &tokens[20..])]));
        let Err(error) = fed else { break };
        assert!(matches!(error.kind(), ErrorKind::CacheFull { .. }), "{error}");
        assert_eq!((session.len(id).unwrap(), session.stats().used), (20, before.used));
        failed = pages - before.used;
    }
    // The first step needs a copy of the last page and two more; later ones need them beside what the first steps had.
    assert!(failed >= 3, "with {failed} pages more a later step failed");
    assert_eq!((session.len(id).unwrap(), session.stats().shared), (90, 0));
    session.remove(id).unwrap();
    assert_eq!(session.stats().used, 0, "what it was to be undone with is gone");

    let id = session.insert();
    logits(&mut session, id, &tokens[..20]);
    session.set_byte_budget((before.used as u64 + 3) * session.cache().page_bytes()).unwrap();
    block_on(session.logits(&[(id, &tokens[20..])])).unwrap_err();
    session.set_byte_budget(u64::MAX).unwrap();
    assert_eq!((session.len(id).unwrap(), session.stats().used), (20, before.used));
    assert_eq!(logits(&mut session, id, &tokens[20..22]), want);
}

#[test]
fn a_saved_session_goes_on_with_its_window() {
    let decoder = decoder("mla", "saved-window");
    let tokens = tokens(60);
    let mut first = Session::new(&decoder, SessionOptions { cache_tokens: 80, ..options() }).unwrap();
    let id = first.insert();
    logits(&mut first, id, &tokens[..12]);
    let mut file = Vec::new();
    let what = [latten::cache::SaveSequence { id, tokens: &tokens[..12] }];
    block_on(first.save(&what, &mut file, |_| {})).unwrap();
    let mut second = Session::new(&decoder, options()).unwrap();
    let loaded = block_on(second.load(&file[..], |_| {})).unwrap().remove(0);
    for token in &tokens[12..] {
        assert_eq!(logits(&mut first, id, &[*token]), logits(&mut second, loaded.id, &[*token]));
        assert_eq!(first.stats().used, second.stats().used);
    }
    // Past its window, whose pages are gone: into pages as large, and smaller.
    let what = [latten::cache::SaveSequence { id, tokens: &tokens }];
    let mut cut = Vec::new();
    block_on(first.save(&what, &mut cut, |_| {})).unwrap();
    for page_size in [PAGE, 2, 1] {
        let cache_tokens = (PAGES + 1) * PAGE;
        let mut third = Session::new(&decoder, SessionOptions { page_size, cache_tokens, ..options() }).unwrap();
        let loaded = block_on(third.load(&cut[..], |_| {})).unwrap().remove(0);
        assert_eq!((third.len(loaded.id).unwrap(), &loaded.tokens), (60, &tokens));
        // A session that stayed: the first one, from where it was saved.
        let stayed = first.fork(id).unwrap();
        for token in &tokens {
            let (want, got) = (logits(&mut first, stayed, &[*token]), logits(&mut third, loaded.id, &[*token]));
            let bits = |row: &[f32]| row.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            // Where pages begin elsewhere, so do the sums over what a window shows.
            match page_size == PAGE {
                true => assert_eq!(bits(&want), bits(&got)),
                false => assert_close(&format!("pages of {page_size}"), &got, &f64s(&want), 1e-5, 1e-10),
            }
        }
        first.remove(stayed).unwrap();
        assert!(third.stats().used * page_size <= (2 + 4) * PAGE, "{:?}", third.stats());
        // Where the first may not be cut, nor may it.
        assert_kind!(third.truncate(loaded.id, 60), ErrorKind::Argument { name: "len", .. });
    }
    let mut larger = Session::new(&decoder, SessionOptions { page_size: 4 * PAGE, ..options() }).unwrap();
    let other = block_on(larger.load(&cut[..], |_| {}));
    assert_kind!(other, ErrorKind::Saved { fault: latten::SavedFault::Other { name: "page size", .. }, .. });
    // As sessions with windows were saved before those were: all rows, and no word of a window.
    let mut before = Session::new(&decoder, SessionOptions { cache_tokens: 80, ..options() }).unwrap();
    let whole = before.match_prefix(&tokens, 0);
    logits(&mut before, whole, &tokens[..35]);
    let mut old = Vec::new();
    let what = [latten::cache::SaveSequence { id: whole, tokens: &[] }];
    block_on(before.save(&what, &mut old, |_| {})).unwrap();
    assert_eq!((old[8], file[8], cut[8]), (1, 2, 2));
    let mut fourth = Session::new(&decoder, SessionOptions { cache_tokens: 80, ..options() }).unwrap();
    let loaded = block_on(fourth.load(&old[..], |_| {})).unwrap().remove(0);
    for token in &tokens[35..] {
        assert_eq!(logits(&mut before, whole, &[*token]), logits(&mut fourth, loaded.id, &[*token]));
    }
    assert!(fourth.stats().used <= 2 + 4 && before.stats().used == 15);
    for other in [None, Some((WINDOW + 1, KEEP_FIRST)), Some((WINDOW, KEEP_FIRST + 1))] {
        let (window, keep_first) = (other.map(|o| o.0), other.map_or(0, |o| o.1));
        let mut session = Session::new(&decoder, SessionOptions { window, keep_first, ..options() }).unwrap();
        assert_kind!(block_on(session.load(&file[..], |_| {})), ErrorKind::Saved { .. });
    }
}

#[test]
fn numbers_that_make_no_window() {
    let decoder = decoder("gqa", "no-window");
    let with = |window, keep_first| Session::new(&decoder, SessionOptions { window, keep_first, ..options() });
    for window in [0, MAX_POSITIONS + 1, usize::MAX] {
        assert_kind!(with(Some(window), 1), ErrorKind::Argument { name: "window", .. });
    }
    assert_kind!(with(None, 1), ErrorKind::Argument { name: "keep_first", .. });
    // A window does what it says without first tokens, and generation goes past the model's positions.
    let mut session = with(Some(WINDOW), 0).unwrap();
    assert_eq!((session.max_positions(), with(None, 0).unwrap().max_positions()), (1 << 24, MAX_POSITIONS));
    let id = session.insert();
    let all = |_| ControlFlow::Continue(());
    let generate = GenerateOptions { max_new_tokens: 2 * MAX_POSITIONS, ..Default::default() };
    let made = block_on(continue_sequence(&mut session, id, &[1, 2, 3], generate, all)).unwrap();
    assert_eq!((made.len(), session.len(id).unwrap()), (2 * MAX_POSITIONS, 2 * MAX_POSITIONS + 2));
    let generate = GenerateOptions { max_new_tokens: 1 << 24, ..generate };
    assert_kind!(
        block_on(continue_sequence(&mut session, id, &[1], generate, all)),
        ErrorKind::Argument { name: "max_new_tokens", .. }
    );
}

/// A model with a window of its own has it in every session, where the session's is not smaller.
#[test]
fn a_models_own_window() {
    let mut tiny = Tiny::new("gqa", 7);
    tiny.config.insert("sliding_window".into(), WINDOW.into());
    let decoder = Decoder::load(gpu(), tiny.write("own-window").path(), DType::F32).unwrap();
    assert_eq!(decoder.config().window, Some(WINDOW));
    let tokens = tokens(33);
    let session = |window, keep_first| {
        Session::new(&decoder, SessionOptions { window, keep_first, cache_tokens: 80, ..options() }).unwrap()
    };
    for (window, keep_first, sees) in [(None, 0, WINDOW), (None, 5, WINDOW), (Some(30), 0, WINDOW), (Some(6), 0, 6)] {
        let mut session = session(window, keep_first);
        assert_eq!(session.max_positions(), 1 << 24);
        let id = session.insert();
        let got = block_on(session.all_logits(&[(id, &tokens)])).unwrap().remove(0);
        let seen = DecodeOptions { window: Some(sees), keep_first, ..Default::default() };
        let want = tiny.forward_seeing(&tokens, &seen).concat();
        assert_close(&format!("{window:?}, {keep_first} first"), &got, &want, 3e-5, 1e-10);
    }

    // Whose window it is that something cannot be done with.
    for (window, whose) in [(None, "10 tokens, the model's sliding_window"), (Some(6), "6 tokens, the session's")] {
        let mut session = session(window, 0);
        let drafter = Drafter::Lookup { max_ngram: 2, min_ngram: 1 };
        let all = |_| ControlFlow::Continue(());
        let made = generate_speculative(&mut session, drafter, &tokens[..3], SpeculativeOptions::default(), all);
        let text = message(block_on(made));
        assert!(text.contains(whose), "{text}");
        let id = session.insert();
        logits(&mut session, id, &tokens);
        let text = message(session.truncate(id, 2));
        assert!(text.contains(whose) && text.contains("2: "), "{text}");
        assert_eq!(session.len(id).unwrap(), 33);
    }
    let mut tiny = Tiny::new("gqa", 7);
    for window in [0, MAX_POSITIONS + 1] {
        tiny.config.insert("sliding_window".into(), window.into());
        let text = message(Decoder::load(gpu(), tiny.write("no-own-window").path(), DType::F32));
        assert!(text.contains("sliding_window") && text.contains("1..=40"), "{text}");
    }
}

/// Samples of one prompt, wherever in a page it ends: none is cut off to where pages are gone.
#[test]
fn best_of_with_a_window() {
    let decoder = decoder("gta", "best-of-window");
    let tokens = tokens(40);
    let new = || Session::new(&decoder, SessionOptions { max_batch: 3, cache_tokens: 160, ..options() }).unwrap();
    for (before, input) in (0..PAGE).flat_map(|i| [(0, 16 + i), (18 + i, 1)]) {
        let mut generate = GenerateOptions { max_new_tokens: 5, seed: 3, ..Default::default() };
        generate.sampling.temperature = 1.0;
        let mut session = new();
        let id = session.insert();
        if before > 0 {
            logits(&mut session, id, &tokens[..before]);
        }
        let input = &tokens[before..before + input];
        let used = session.stats().used;
        let made =
            block_on(best_of(&mut session, id, input, BestOfOptions { samples: 3, generate, ..Default::default() }));
        let made = made.unwrap();
        assert_eq!((made.len(), session.stats().used, session.len(id).unwrap()), (3, used, before));
        // The first sample is what plain generation draws.
        let plain = block_on(continue_sequence(&mut session, id, input, generate, |_| ControlFlow::Continue(())));
        assert!(made.iter().any(|sample| sample.tokens == *plain.as_ref().unwrap()), "{before} + {}", input.len());
    }
}
