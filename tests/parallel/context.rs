//! Sequences that two ranks divide by context: each has its turns of every sequence's tokens, and what both find is one attention.
//! Oracles: the f64 reference, and the same model on one device.

use crate::caches::{life, OPTIONS};
use crate::common::checkout::checkout;
use crate::forms::{largest, tokens};
use crate::models::{logits_of, tokens_and_logits};
use crate::tiny::{Folder, Tiny, VARIANTS};
use crate::{allowed, devices, distance, two_ranks_sharing, Setup, SMALL};
use latten::model::{Decoder, Draw, LoadOptions, PrefillPath, Session, SessionOptions};
use latten::parallel::{Shard, Transfer};
use latten::{DType, Gpu};
use pollster::block_on;

/// Prompts of several sequences in chunks that end anywhere in a turn, then a token for each. Pages of 4 tokens are two of each rank.
#[test]
fn logits_are_those_of_the_reference() {
    let devices = devices();
    for variant in VARIANTS {
        let tiny = Tiny::new(variant, 11);
        let folder = tiny.write(&format!("context-{variant}"));
        let load = |gpu: &Gpu, options: LoadOptions<'_>| {
            Decoder::load_with(gpu, folder.path(), LoadOptions { dtype: DType::F32, ..options })
        };
        let options =
            SessionOptions { max_batch: 3, chunk: 10, page_size: 4, kv_dtype: DType::F32, ..Default::default() };
        // The second sequence has no token on the second rank at first.
        let texts = [tokens(1, 23), tokens(2, 1), tokens(3, 9)];
        two_ranks_sharing(&devices, &load, Setup::new(options), Shard::by_context, |mut session| {
            let ids = [session.insert(), session.insert(), session.insert()];
            let batch: Vec<_> = ids.iter().zip(&texts).map(|(id, text)| (*id, &text[..])).collect();
            let logits = block_on(session.all_logits(&batch)).unwrap();
            for (text, logits) in texts.iter().zip(&logits) {
                let off = largest(logits, &tiny.forward(text));
                assert!(off < 1e-4, "{variant}: {off}");
            }
            // Steps of a token each, whose commands repeat, over the turns of both ranks.
            let mut so_far = texts.clone();
            for step in 0..5u32 {
                let more = [[7 + step], [80 + step], [9 + 3 * step]];
                let batch: Vec<_> = ids.iter().zip(&more).map(|(id, text)| (*id, &text[..])).collect();
                let both = block_on(session.next_tokens_and_logits(&batch, &[Draw::default(); 3])).unwrap();
                so_far.iter_mut().zip(more).for_each(|(text, more)| text.extend(more));
                for (text, logits) in so_far.iter().zip(&both.logits) {
                    let off = largest(logits, &[tiny.forward(text).pop().unwrap()]);
                    assert!(off < 1e-4, "{variant}, step {step}: {off}");
                }
            }
        });
    }
}

/// Forks, prefixes, cuts, calls that fail, files.
#[test]
fn a_life_of_sequences_is_that_on_one_device() {
    let devices = devices();
    for variant in ["gqa", "mla"] {
        let folder = Tiny::new(variant, 21).write(&format!("context-life-{variant}"));
        let files = Folder::new(&format!("context-files-{variant}"));
        let load = |gpu: &Gpu, options: LoadOptions<'_>| {
            Decoder::load_with(gpu, folder.path(), LoadOptions { dtype: DType::F32, ..options })
        };
        let alone = load(&devices.gpus[0], LoadOptions::default()).unwrap();
        let want = life(&mut Session::new(&alone, OPTIONS).unwrap(), &files.path().join("alone"));
        let got = two_ranks_sharing(&devices, &load, Setup::new(OPTIONS), Shard::by_context, |mut session| {
            life(&mut session, &files.path().join("ranks"))
        });
        assert_eq!(got.len(), want.len());
        for (step, (got, want)) in got.iter().zip(&want).enumerate() {
            let off = distance(got, want);
            assert!(off < 1e-4, "{variant}, step {step}: {off}");
        }
        // Two sequences, saved behind 8 and 20 tokens: each rank has the rows of its own, and none of the other's.
        let bytes = |name: &str| std::fs::metadata(files.path().join(name)).unwrap().len();
        let (first, second, whole) = (bytes("ranks"), bytes("ranks.rank1"), bytes("alone"));
        assert!(
            first < whole * 6 / 10 && second < whole * 6 / 10 && first + second > whole,
            "{first} {second} {whole}"
        );
    }
}

/// The memory of a rank is half that of one device for the same tokens, and a sequence may be as long.
#[test]
fn each_rank_has_half_of_the_pages() {
    let devices = devices();
    let tiny = Tiny::new("mla", 2);
    let folder = tiny.write("context-half");
    let load = |gpu: &Gpu, options: LoadOptions<'_>| {
        Decoder::load_with(gpu, folder.path(), LoadOptions { dtype: DType::F32, ..options })
    };
    let alone = Session::new(&load(&devices.gpus[0], LoadOptions::default()).unwrap(), SMALL).unwrap();
    let whole = alone.cache().pool_bytes();
    // All that the cache is to hold, in one sequence.
    let text = tokens(5, SMALL.cache_tokens as u32);
    let half = two_ranks_sharing(&devices, &load, Setup::new(SMALL), Shard::by_context, |mut session| {
        let id = session.insert();
        let logits = block_on(session.all_logits(&[(id, &text)])).unwrap().swap_remove(0);
        let off = largest(&logits, &tiny.forward(&text));
        assert!(off < 1e-4, "{off}");
        assert_eq!((session.stats().used, session.stats().bytes as usize), (8, session.cache().pool_bytes()));
        session.cache().pool_bytes()
    });
    assert_eq!(2 * half, whole);
    // By heads the cache of MLA is whole on each rank.
    let by_heads =
        two_ranks_sharing(&devices, &load, Setup::new(SMALL), |shard| shard, |session| session.cache().pool_bytes());
    assert_eq!(by_heads, whole);
}

/// What is shipped: greedy tokens, and logits.
fn shipped(variant: &str) {
    let devices = devices();
    let folder = checkout(&format!("examples/models/{variant}"));
    let options = SessionOptions { kv_dtype: DType::F32, chunk: 32, page_size: 16, ..Default::default() };
    let load = |gpu: &Gpu, options: LoadOptions<'_>| Decoder::load_with(gpu, &folder, options);
    let alone = load(&devices.gpus[0], LoadOptions::default()).unwrap();
    let (want, logits) = tokens_and_logits(&mut Session::new(&alone, options).unwrap());
    let sharing = |transfer| {
        let setup = Setup { transfer, ..Setup::new(options) };
        two_ranks_sharing(&devices, &load, setup, Shard::by_context, |mut session| tokens_and_logits(&mut session))
    };
    let (tokens, got) = sharing(Transfer::F32);
    assert_eq!(tokens, want, "{variant}");
    let off = distance(&got, &logits);
    println!("{variant} by context: logits differ by up to {off:e}");
    let allowed = allowed(&load, options, |session| logits_of(session, &want), &logits);
    assert!(off < allowed, "{variant}: {off}, allowed {allowed}");
    if variant == "mla" {
        let (_, got) = sharing(Transfer::F16);
        let off = distance(&got[..257 * 48], &logits[..257 * 48]); // of the prompt: what follows is drawn
        println!("{variant} by context, in 16 bits: by up to {off:e}");
        assert!(off > 0.0 && off < 0.1, "{variant}: {off}");
    }
}

#[test]
fn shipped_mla() {
    shipped("mla");
}

#[test]
#[ignore = "long: 20 s, most of it compiling"]
fn shipped_others() {
    ["gqa", "gta", "gla"].into_iter().for_each(shipped);
}

#[test]
fn what_cannot_be_divided_is_refused() {
    let devices = devices();
    let folder = Tiny::new("mla", 3).write("context-refused");
    let load = |options: LoadOptions<'_>| {
        Decoder::load_with(&devices.gpus[0], folder.path(), LoadOptions { dtype: DType::F32, ..options })
    };
    let shard = Shard::new(0, 2).unwrap().by_context();
    let decoder = load(LoadOptions { shard, ..Default::default() }).unwrap();
    assert_eq!(decoder.shard(), shard);
    let by_heads = load(LoadOptions { shard: Shard::new(0, 2).unwrap(), ..Default::default() }).unwrap();
    assert_ne!(decoder.fingerprint(), by_heads.fingerprint(), "what is cached is another part");
    // Alone on its way to be ranks: what is refused needs no other rank.
    let refused = |options: SessionOptions, want: &str| {
        let mut ranks = latten::parallel::local::ranks(2, crate::TIMEOUT).unwrap();
        let other = ranks.pop().unwrap();
        let first = Box::new(ranks.pop().unwrap());
        std::thread::scope(|scope| {
            let follows = scope.spawn(|| {
                let shard = Shard::new(1, 2).unwrap().by_context();
                let options = LoadOptions { dtype: DType::F32, shard, ..Default::default() };
                let decoder = Decoder::load_with(&devices.gpus[1], folder.path(), options).unwrap();
                latten::model::follow(&decoder, Box::new(other))
            });
            let error = Session::sharded(&decoder, options, first, Transfer::F32).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
            assert!(follows.join().unwrap().is_err());
        });
    };
    refused(
        SessionOptions { window: Some(8), ..SMALL },
        "a window of 8 tokens where ranks divide sequences by context",
    );
    refused(SessionOptions { page_size: 1, ..SMALL }, "page_size: 1 cannot be divided among 2 ranks");
    refused(SessionOptions { prefill: PrefillPath::Explicit, ..SMALL }, "prompts are absorbed");
}
