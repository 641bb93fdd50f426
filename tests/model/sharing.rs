//! Sequences of a session that share their cache: the same logits, less work and memory.

use crate::assert_kind;
use crate::common::*;
use crate::tiny::{Tiny, VARIANTS};
use latten::model::{Decoder, Draw, Session, SessionOptions};
use latten::{DType, ErrorKind, SeqId, SplitPolicy};
use pollster::block_on;

const PAGE: usize = 8;

fn session(variant: &str, test: &str) -> Session {
    let folder = Tiny::new(variant, 7).write(&format!("{test}-{variant}"));
    let decoder = Decoder::load(gpu(), folder.path(), DType::F16).unwrap();
    let options =
        SessionOptions { max_batch: 3, chunk: PAGE, cache_tokens: 12 * PAGE, page_size: PAGE, ..Default::default() };
    Session::new(&decoder, options).unwrap()
}

fn logits(session: &mut Session, id: SeqId, tokens: &[u32]) -> Vec<u32> {
    let logits = block_on(session.logits(&[(id, tokens)])).unwrap();
    logits[0].iter().map(|l| l.to_bits()).collect()
}

/// Steps are a page here, so that a prompt is cut at the same places whether its pages are found or computed: then logits
/// are equal to the bit.
#[test]
fn a_hit_gives_the_logits_of_a_miss() {
    let prompt: Vec<u32> = (0..2 * PAGE as u32 + 5).map(|i| 3 + i * 5 % 90).collect();
    let next: Vec<u32> = (0..PAGE as u32 + 2).map(|i| 40 + i).collect();
    for variant in VARIANTS {
        let mut session = session(variant, "prefix");
        let run = |session: &mut Session, salt, found| {
            let id = session.match_prefix(&prompt, salt);
            assert_eq!(session.len(id).unwrap(), found, "{variant}");
            let mut all = logits(session, id, &prompt[found..]);
            for token in &next {
                all.extend(logits(session, id, &[*token]));
            }
            session.remove(id).unwrap();
            all
        };
        let miss = run(&mut session, 0, 0);
        let kept = session.stats();
        assert_eq!((kept.used, kept.evictable), (0, 3), "{variant}");
        assert!(run(&mut session, 0, 2 * PAGE) == miss, "{variant}: a hit");
        assert!(run(&mut session, 5, 0) == miss, "{variant}: another salt");
        assert_eq!((session.stats().hits, session.stats().misses), (2, 4));
    }
}

/// With FixedTokens a hit and a miss are equal to the bit whoever else is in the steps, over contexts that are split, as long
/// as the steps are cut at the same tokens: here the neighbours have as many tokens in the one as in the other, but others,
/// and longer contexts.
#[test]
fn with_fixed_tokens_a_hit_gives_the_logits_of_a_miss_among_others() {
    let prompt: Vec<u32> = (0..3 * PAGE as u32 + 5).map(|i| 3 + i * 5 % 90).collect();
    let mut policy_matters = false;
    for variant in VARIANTS {
        let run = |session: &mut Session, before: &[u32], found| {
            let other = session.insert();
            logits(session, other, before);
            let id = session.match_prefix(&prompt, 0);
            assert_eq!(session.len(id).unwrap(), found, "{variant}");
            // Whole pages alone, then the rest, and tokens one by one, beside the other.
            if found == 0 {
                logits(session, id, &prompt[..3 * PAGE]);
            }
            let mut all = Vec::new();
            let mut step = |rest: &[u32], tokens: &[u32]| {
                let logits = block_on(session.logits(&[(other, tokens), (id, rest)])).unwrap();
                all.extend(logits[1].iter().map(|l| l.to_bits()));
            };
            step(&prompt[3 * PAGE..], &before[..1]);
            (0..6).for_each(|i| step(&[60 + i], &before[1..2]));
            session.remove(id).unwrap();
            session.remove(other).unwrap();
            all
        };
        let mut fixed = session(variant, "fixed").with_policy(SplitPolicy::FixedTokens(16));
        let miss = run(&mut fixed, &[9, 8, 7], 0);
        let long: Vec<u32> = (0..30).map(|i| 200 - i).collect();
        assert!(run(&mut fixed, &long, 3 * PAGE) == miss, "{variant}");
        let mut whole = session(variant, "whole").with_policy(SplitPolicy::Off);
        policy_matters |= run(&mut whole, &[9, 8, 7], 0) != miss;
    }
    assert!(policy_matters, "contexts of more than 16 tokens were not split");
}

/// Samples from one prompt: what each gives is what it gives alone, and the prompt is held once.
#[test]
fn forks_give_what_sequences_of_their_own_give() {
    let prompt: Vec<u32> = (0..PAGE as u32 + 3).map(|i| 7 + i * 11 % 80).collect();
    for variant in VARIANTS {
        let mut session = session(variant, "fork");
        let root = session.match_prefix(&prompt, 0);
        logits(&mut session, root, &prompt);
        let ids = [root, session.fork(root).unwrap(), session.fork(root).unwrap()];
        assert_eq!((session.stats().used, session.stats().shared), (2, 2));
        let mut own = self::session(variant, "own");
        let mut lasts = [Vec::new(), Vec::new(), Vec::new()];
        for i in 0..PAGE as u32 {
            for ((id, first), last) in ids.into_iter().zip([10, 30, 50]).zip(&mut lasts) {
                *last = logits(&mut session, id, &[first + i]);
            }
        }
        // The root's first page, and two pages of each.
        assert_eq!((session.stats().used, session.stats().shared), (1 + 2 * 3, 1), "{variant}");
        for (first, last) in [10, 30, 50].into_iter().zip(lasts) {
            let id = own.insert();
            logits(&mut own, id, &prompt);
            let mut want = Vec::new();
            for i in 0..PAGE as u32 {
                want = logits(&mut own, id, &[first + i]);
            }
            assert!(want == last, "{variant}: the branch of {first}");
            own.remove(id).unwrap();
        }
    }
}

#[test]
fn a_step_that_does_not_fit_copies_nothing_and_pins_outlive_sequences() {
    let mut session = session("gla", "full");
    let prompt: Vec<u32> = (0..PAGE as u32 + 3).collect();
    let root = session.match_prefix(&prompt, 0);
    logits(&mut session, root, &prompt);
    let fork = session.fork(root).unwrap();
    session.set_byte_budget(2 * session.cache().page_bytes()).unwrap();
    let stats = session.stats();
    // Both write to the shared page: one copy.
    let batch = [(root, &[1u32][..]), (fork, &[2])];
    let fed = block_on(session.next_tokens(&batch, &[Draw::default(); 2]));
    assert_kind!(fed, ErrorKind::CacheFull { needed: 1, free: 0 });
    assert_eq!((session.stats(), session.len(root).unwrap()), (stats, prompt.len()));
    session.set_byte_budget(u64::MAX).unwrap();
    block_on(session.next_tokens(&batch, &[Draw::default(); 2])).unwrap();

    session.pin(root).unwrap();
    session.remove(root).unwrap();
    session.remove(fork).unwrap();
    assert_eq!((session.stats().used, session.stats().evictable), (1, 0));
    session.unpin(root).unwrap();
    assert_kind!(session.unpin(root), ErrorKind::UnknownSequence { .. });
    assert_eq!((session.stats().used, session.stats().evictable), (0, 1));
}
