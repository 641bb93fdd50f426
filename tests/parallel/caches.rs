//! What is done to sequences on rank 0 holds on all ranks: forks, prefixes, cuts, calls that fail, files, beams, a scheduler.

use crate::tiny::{Folder, Tiny, VARIANTS};
use crate::{devices, two_ranks, Setup};
use latten::cache::SaveSequence;
use latten::model::{
    beam_search, generate_speculative, BeamOptions, Decoder, Drafter, Draw, GenerateOptions, LoadOptions, Request,
    RequestId, Scheduler, Session, SessionOptions, SpeculativeOptions,
};
use latten::nn::Sampling;
use latten::{DType, Gpu};
use pollster::block_on;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

pub(crate) const OPTIONS: SessionOptions = SessionOptions { max_batch: 3, cache_tokens: 96, ..crate::SMALL };

/// Feeds, and returns what is drawn and the logits.
fn feed(session: &mut Session, id: latten::SeqId, tokens: &[u32], log: &mut Vec<Vec<f32>>) -> u32 {
    let mut both = block_on(session.next_tokens_and_logits(&[(id, tokens)], &[Draw::default()])).unwrap();
    log.append(&mut both.logits);
    both.tokens[0]
}

/// A life of sequences. Everything that is computed is returned.
pub(crate) fn life(session: &mut Session, file: &std::path::Path) -> Vec<Vec<f32>> {
    let mut log = Vec::new();
    let text: Vec<u32> = (0..19).map(|i| (i * 37) % 257).collect();
    let first = session.match_prefix(&text, 1);
    feed(session, first, &text, &mut log);
    // A fork in the middle of a page: who writes first gets a copy of it.
    let fork = session.fork(first).unwrap();
    feed(session, fork, &[3], &mut log);
    feed(session, first, &[4], &mut log);
    feed(session, fork, &[5, 6], &mut log);
    // Found by its tokens, and what is behind them computed.
    let found = session.match_prefix(&[&text[..16], &[9, 9]].concat(), 1);
    assert_eq!(session.len(found).unwrap(), 16);
    feed(session, found, &[9, 9], &mut log);
    // Cut, and other tokens in the place of what was there.
    session.truncate(first, 7).unwrap();
    feed(session, first, &[100, 101, 102], &mut log);
    // A call that fails changes nothing, though a part of it was computed: the last sequence finds no room.
    let long = vec![1u32; 60];
    let before = session.stats().used;
    assert!(block_on(session.logits(&[(first, &[1, 2][..]), (found, &long)])).is_err());
    assert_eq!(session.stats().used, before);
    feed(session, first, &[103], &mut log);
    // Forks of forks, all of which write to one page in one step.
    let (a, b) = (session.fork(found).unwrap(), session.fork(found).unwrap());
    let batch: [(_, &[u32]); 3] = [(found, &[20]), (a, &[21]), (b, &[22])];
    log.extend(block_on(session.logits(&batch)).unwrap());
    // Pages that were freed are used again.
    session.remove(fork).unwrap();
    session.remove(a).unwrap();
    let new = session.insert();
    feed(session, new, &text[3..], &mut log);
    // Saved, and loaded as another sequence, which goes on as the first.
    let sequences = [first, b].map(|id| SaveSequence { id, tokens: &[] });
    block_on(session.save_file(&sequences, file, |_| {})).unwrap();
    session.remove(new).unwrap();
    let loaded = block_on(session.load_file(file, |_| {})).unwrap();
    let (mut there, mut again) = (Vec::new(), Vec::new());
    feed(session, b, &[50, 51], &mut there);
    feed(session, loaded[1].id, &[50, 51], &mut again);
    assert_eq!(there, again, "a loaded sequence goes on as the saved one, bit for bit");
    log.append(&mut there);
    feed(session, loaded[0].id, &[60], &mut log);
    log
}

#[test]
fn a_life_of_sequences_is_that_on_one_device() {
    let devices = devices();
    for variant in VARIANTS {
        let folder = Tiny::new(variant, 21).write(&format!("sharded-life-{variant}"));
        let files = Folder::new(&format!("sharded-files-{variant}"));
        let load = |gpu: &Gpu, options: LoadOptions<'_>| {
            Decoder::load_with(gpu, folder.path(), LoadOptions { dtype: DType::F32, ..options })
        };
        let alone = load(&devices.gpus[0], LoadOptions::default()).unwrap();
        let want = life(&mut Session::new(&alone, OPTIONS).unwrap(), &files.path().join("alone"));
        let got = two_ranks(&devices, &load, Setup::new(OPTIONS), |mut session| {
            life(&mut session, &files.path().join("ranks"))
        });
        assert_eq!(got.len(), want.len());
        for (step, (got, want)) in got.iter().zip(&want).enumerate() {
            let off = crate::distance(got, want);
            assert!(off < 1e-4, "{variant}, step {step}: {off}");
        }
        // Each rank has a file of its rows.
        assert!(files.path().join("ranks.rank1").exists() && files.path().join("ranks").exists());
    }
}

/// What reads the wrong pages would differ by more than rounding does.
#[test]
fn a_file_of_another_rank_is_refused() {
    let devices = devices();
    // The rows of MLA have the same layout on all ranks.
    let folder = Tiny::new("mla", 3).write("sharded-swapped");
    let files = Folder::new("sharded-swapped-files");
    let load = |gpu: &Gpu, options: LoadOptions<'_>| Decoder::load_with(gpu, folder.path(), options);
    two_ranks(&devices, &load, Setup::new(OPTIONS), |mut session| {
        let id = session.insert();
        feed(&mut session, id, &[1, 2, 3], &mut Vec::new());
        let path = files.path().join("a");
        block_on(session.save_file(&[SaveSequence { id, tokens: &[] }], &path, |_| {})).unwrap();
        let used = session.stats().used;
        // Of the other rank, and none: the call fails on rank 0 alone or on rank 1 alone, and nothing is loaded.
        std::fs::copy(&path, files.path().join("a.rank1")).unwrap();
        let error = block_on(session.load_file(&path, |_| {})).unwrap_err().to_string();
        assert!(error.contains("rank 1 failed") && error.contains("fingerprint"), "{error}");
        std::fs::remove_file(files.path().join("a.rank1")).unwrap();
        let error = block_on(session.load_file(&path, |_| {})).unwrap_err().to_string();
        assert!(error.contains("rank 1 failed") && error.contains("a.rank1"), "{error}");
        assert_eq!(session.stats().used, used);
        // A folder that is not there: rank 0 hears of its own error.
        let error = block_on(session.save_file(&[SaveSequence { id, tokens: &[] }], files.path().join("no/b"), |_| {}));
        assert!(error.is_err());
        // The ranks go on.
        feed(&mut session, id, &[4], &mut Vec::new());
    });
}

/// Beams, guesses and requests, which fork, cut and remove by themselves.
fn searches(mut session: Session) -> Vec<Vec<u32>> {
    let prompt = [5u32, 6, 7, 8, 9];
    let go_on = |_: u32| ControlFlow::Continue(());
    let options = BeamOptions { beams: 3, max_new_tokens: 6, ..Default::default() };
    let id = session.insert();
    let beams = block_on(beam_search(&mut session, id, &prompt, options)).unwrap();
    let mut made: Vec<Vec<u32>> = beams.into_iter().map(|beam| beam.tokens).collect();
    let generate = GenerateOptions { max_new_tokens: 8, ..Default::default() };
    let drafter = Drafter::Lookup { max_ngram: 2, min_ngram: 1 };
    let options = SpeculativeOptions { generate, max_draft: 3 };
    made.push(block_on(generate_speculative(&mut session, drafter, &prompt, options, go_on)).unwrap().tokens);
    block_on(session.warm_up()).unwrap();
    let mut scheduler = Scheduler::new(session);
    let mut tokens: BTreeMap<RequestId, Vec<u32>> = BTreeMap::new();
    for i in 0..6u32 {
        let sampling = Sampling::new(if i % 2 == 0 { 0.0 } else { 0.8 }, 0.9);
        let prompt = (0..2 + i * 3).map(|j| 3 + (7 * i + 11 * j) % 200).collect();
        let generate = GenerateOptions { max_new_tokens: 5 + i as usize, sampling, seed: u64::from(i) };
        let id = scheduler.add(Request { prompt, generate, ..Default::default() }).unwrap();
        tokens.insert(id, Vec::new());
    }
    while !scheduler.is_idle() {
        for event in block_on(scheduler.step()).unwrap() {
            tokens.get_mut(&event.id).unwrap().extend(event.token);
        }
    }
    made.extend(tokens.into_values());
    made
}

#[test]
fn searches_and_a_scheduler_make_the_same_tokens() {
    let devices = devices();
    let folder = Tiny::new("gla", 8).write("sharded-searches");
    let load = |gpu: &Gpu, options: LoadOptions<'_>| {
        Decoder::load_with(gpu, folder.path(), LoadOptions { dtype: DType::F32, ..options })
    };
    let alone = load(&devices.gpus[0], LoadOptions::default()).unwrap();
    let want = searches(Session::new(&alone, OPTIONS).unwrap());
    assert!(want.len() >= 9 && want.iter().all(|tokens| tokens.len() >= 5), "{want:?}");
    assert_eq!(two_ranks(&devices, &load, Setup::new(OPTIONS), searches), want);
}
