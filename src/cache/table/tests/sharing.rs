//! Forks, prefixes, pins and eviction, call by call. Any order of calls: `machine_tests.rs`.

use crate::cache::table::{SeqId, SeqTable, SequenceOptions};
use crate::cache::{CacheStats, PageCopy};
use crate::error::ErrorKind;
use crate::kv::view::KvSource;

fn table(page_count: usize, page_size: usize) -> SeqTable {
    SeqTable::new(page_count, page_size).unwrap()
}

/// Reserves and commits tokens.
fn feed(table: &mut SeqTable, id: SeqId, tokens: &[u32]) {
    table.reserve(&[id], tokens.len()).unwrap();
    table.commit_tokens(&[(id, tokens)]).unwrap();
}

/// A prompt in a sequence of its own, of which nothing but what was cached is computed twice.
fn prompt(table: &mut SeqTable, tokens: &[u32], salt: u64) -> SeqId {
    let id = table.match_prefix(tokens, salt);
    let cached = table.len(id).unwrap();
    feed(table, id, &tokens[cached..]);
    id
}

fn pages(table: &SeqTable, id: SeqId) -> Vec<u32> {
    table.page_table(id).unwrap().to_vec()
}

fn counts(stats: CacheStats) -> [usize; 4] {
    [stats.used, stats.shared, stats.evictable, stats.free]
}

#[test]
fn a_fork_shares_all_pages_and_copies_the_partial_one_when_written() {
    let mut table = table(8, 4);
    let a = table.insert();
    table.reserve(&[a], 6).unwrap();
    table.commit(&[a], 6).unwrap();
    let (b, c) = (table.fork(a).unwrap(), table.fork(a).unwrap());
    assert_eq!((pages(&table, b), pages(&table, c), table.len(b).unwrap()), (vec![0, 1], vec![0, 1], 6));
    assert_eq!(counts(table.stats()), [2, 2, 0, 6]);
    // Two of the three holders copy the partial page; the last has it for itself.
    let copies = table.reserve(&[b, a, c], 1).unwrap();
    let copy = |target| PageCopy { source: 1, target };
    assert_eq!(copies, [copy(2), copy(3)]);
    assert_eq!([a, b, c].map(|id| pages(&table, id)), [vec![0, 3], vec![0, 2], vec![0, 1]]);
    assert_eq!(table.batch(&[a, b, c]).unwrap().slots, [3 * 4 + 2, 2 * 4 + 2, 4 + 2]);
    assert_eq!(table.reserve(&[a, b, c], 1).unwrap(), []);
    assert_eq!(counts(table.stats()), [4, 1, 0, 4]);
    for id in [a, b, c] {
        table.remove(id).unwrap();
    }
    assert_eq!(counts(table.stats()), [0, 0, 0, 8]);
}

#[test]
fn full_pages_are_never_copied() {
    let mut table = table(8, 4);
    let a = table.insert();
    table.reserve(&[a], 8).unwrap();
    table.commit(&[a], 8).unwrap();
    let b = table.fork(a).unwrap();
    assert_eq!(table.reserve(&[a, b], 5).unwrap(), []);
    assert_eq!([a, b].map(|id| pages(&table, id)[..2].to_vec()), [[0, 1], [0, 1]]);
    // Cut back into a shared page, both write to it again.
    table.truncate(a, 7).unwrap();
    table.truncate(b, 5).unwrap();
    assert_eq!(table.reserve(&[a], 1).unwrap().len(), 1);
    assert_eq!(table.reserve(&[b], 1).unwrap(), [], "the other has its own by now");
}

#[test]
fn drafts_are_not_shared() {
    let mut table = table(8, 4);
    let a = table.match_prefix(&[], 0);
    feed(&mut table, a, &[1, 2, 3]);
    table.reserve(&[a], 4).unwrap();
    let b = table.fork(a).unwrap();
    assert_eq!((table.len(b).unwrap(), table.reserved(b).unwrap(), pages(&table, b)), (3, 0, vec![0]));
    // The drafts are in the pages, and reserved, but are no tokens of the cache.
    let c = table.match_prefix(&[1, 2, 3, 4, 5, 6, 7, 8], 0);
    assert_eq!(table.len(c).unwrap(), 0);
    table.commit_tokens(&[(a, &[4])]).unwrap();
    let d = table.match_prefix(&[1, 2, 3, 4, 5, 6, 7, 8], 0);
    assert_eq!(table.len(d).unwrap(), 4);
    // The fork sees three tokens of that page, and copies it to write its own fourth.
    assert_eq!(table.reserve(&[b], 1).unwrap(), [PageCopy { source: 0, target: 1 }]);
}

#[test]
fn a_full_cache_refuses_the_copies_of_a_call_together() {
    let mut table = table(3, 4);
    let a = table.insert();
    table.reserve(&[a], 2).unwrap();
    table.commit(&[a], 2).unwrap();
    let (b, c) = (table.fork(a).unwrap(), table.fork(a).unwrap());
    let d = table.fork(a).unwrap();
    let before = format!("{table:?}");
    let error = table.reserve(&[a, b, c, d], 1).unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::CacheFull { needed: 3, free: 2 });
    assert_eq!(format!("{table:?}"), before);
    table.remove(d).unwrap();
    assert_eq!(table.reserve(&[a, b, c], 2).unwrap().len(), 2);
}

#[test]
fn a_prompt_is_found_by_whole_pages_and_its_last_token_left_over() {
    let mut table = table(16, 4);
    let a = prompt(&mut table, &[1, 2, 3, 4, 5, 6, 7, 8, 9], 0);
    for (tokens, found) in [
        (&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10][..], 8),
        (&[1, 2, 3, 4, 5, 6, 7, 8, 9], 8),
        (&[1, 2, 3, 4, 5, 6, 7, 8], 4),
        (&[1, 2, 3, 4, 5, 6, 7, 7, 9], 4),
        (&[1, 2, 3, 4, 5], 4),
        (&[1, 2, 3, 4], 0),
        (&[5, 6, 7, 8, 9], 0),
        (&[], 0),
    ] {
        let id = table.match_prefix(tokens, 0);
        assert_eq!(table.len(id).unwrap(), found, "{tokens:?}");
        assert_eq!(pages(&table, id), pages(&table, a)[..found / 4]);
        assert_eq!(table.tokens(id).unwrap().unwrap(), tokens[..found]);
        let other = table.match_prefix(tokens, 1);
        assert_eq!(table.len(other).unwrap(), 0, "another salt");
    }
    // The first prompt missed 2; of the 9 full pages of these 7 were there, and none of the other salt.
    assert_eq!((table.stats().hits, table.stats().misses), (7, 2 + 2 + 9));
}

#[test]
fn equal_prompts_are_held_once() {
    let tokens: Vec<u32> = (0..4096).collect();
    let mut table = table(64 * 65, 64);
    // One after the other: found. All at once, each computing its own: merged when they are committed.
    let first = prompt(&mut table, &tokens, 0);
    let ids: Vec<SeqId> = (0..63).map(|_| table.match_prefix(&[], 0)).collect();
    table.reserve(&ids, tokens.len()).unwrap();
    assert_eq!(table.stats().used, 64 * 64);
    let all: Vec<(SeqId, &[u32])> = ids.iter().map(|id| (*id, &tokens[..])).collect();
    table.commit_tokens(&all).unwrap();
    assert_eq!((table.stats().used, table.stats().shared), (64, 64));
    assert!(ids.iter().all(|id| pages(&table, *id) == pages(&table, first)));
}

#[test]
fn what_is_kept_is_evicted_from_its_end_the_oldest_first() {
    let mut table = table(6, 2);
    let a = prompt(&mut table, &[1, 1, 2, 2, 3, 3], 0);
    let b = prompt(&mut table, &[1, 1, 5, 5], 0);
    table.remove(b).unwrap();
    table.remove(a).unwrap();
    assert_eq!(counts(table.stats()), [0, 0, 4, 2]);
    let found = |table: &mut SeqTable, tokens: &[u32]| {
        let id = table.match_prefix(tokens, 0);
        let len = table.len(id).unwrap();
        table.remove(id).unwrap();
        len
    };
    // b is older; but it was used since.
    assert_eq!(found(&mut table, &[1, 1, 5, 5, 0]), 4);
    let c = table.insert();
    table.reserve(&[c], 6).unwrap();
    assert_eq!((table.stats().evictions, found(&mut table, &[1, 1, 2, 2, 3, 3, 0])), (1, 4));
    table.reserve(&[c], 4).unwrap();
    assert_eq!((counts(table.stats()), table.stats().evictions), ([5, 0, 1, 0], 3));
    assert_eq!([[1, 1, 0], [1, 1, 5]].map(|tokens| found(&mut table, &tokens)), [2, 2]);
    // Held pages are not evicted: the whole cache minus one page is, and that is not enough.
    let error = table.reserve(&[c], 4).unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::CacheFull { needed: 2, free: 1 });
    assert_eq!(table.stats().evictable, 1, "and it stays");
}

#[test]
fn pins_keep_pages() {
    let mut table = table(4, 2);
    let a = prompt(&mut table, &[1, 1, 2, 2, 3], 0);
    table.pin(a).unwrap();
    table.remove(a).unwrap();
    assert_eq!(counts(table.stats()), [2, 0, 0, 2]);
    let b = table.insert();
    assert!(table.reserve(&[b], 5).is_err());
    let c = table.match_prefix(&[1, 1, 2, 2, 9], 0);
    assert_eq!((table.len(c).unwrap(), table.stats().shared), (4, 2));
    // Cut back into a pinned page, it is copied like any shared one.
    table.truncate(c, 3).unwrap();
    assert_eq!(table.reserve(&[c], 1).unwrap().len(), 1);
    table.remove(c).unwrap();
    assert!(matches!(table.unpin(b).unwrap_err().kind(), ErrorKind::UnknownSequence { .. }));
    table.unpin(a).unwrap();
    assert!(table.unpin(a).is_err());
    assert_eq!(counts(table.stats()), [0, 0, 2, 2]);
    table.reserve(&[b], 8).unwrap();
    assert_eq!((counts(table.stats()), table.stats().evictions), ([4, 0, 0, 0], 2));
}

#[test]
fn tokens_that_were_not_told_end_what_is_shared() {
    let mut table = table(8, 2);
    let a = prompt(&mut table, &[1, 1, 2], 0);
    table.reserve(&[a], 3).unwrap();
    table.commit(&[a], 1).unwrap();
    assert_eq!(table.tokens(a).unwrap(), None);
    feed(&mut table, a, &[3, 3]);
    let b = table.match_prefix(&[1, 1, 2, 2, 3, 3, 4], 0);
    assert_eq!(table.len(b).unwrap(), 2);
    // Nor is anything shared of a sequence that was not made to.
    let c = table.insert();
    feed(&mut table, c, &[7, 7, 7]);
    let d = table.match_prefix(&[7, 7, 7], 0);
    assert_eq!((table.len(d).unwrap(), table.tokens(c).unwrap()), (0, None));
    table.remove(c).unwrap();
    assert_eq!(table.stats().evictable, 0);
}

#[test]
fn a_page_that_is_written_to_again_is_no_longer_found() {
    let mut table = table(4, 2);
    let a = prompt(&mut table, &[1, 1, 2, 2], 0);
    table.truncate(a, 1).unwrap();
    assert_eq!(table.tokens(a).unwrap().unwrap(), [1]);
    assert_eq!(counts(table.stats()), [1, 0, 1, 2]);
    let b = table.match_prefix(&[1, 1, 0], 0);
    assert_eq!(table.len(b).unwrap(), 2, "not yet written to");
    table.remove(b).unwrap();
    // Its only holder: no copy, and what followed the page goes with it.
    assert_eq!(table.reserve(&[a], 1).unwrap(), []);
    assert_eq!(counts(table.stats()), [1, 0, 0, 3]);
    table.commit_tokens(&[(a, &[9])]).unwrap();
    let (c, d) = (table.match_prefix(&[1, 1, 0], 0), table.match_prefix(&[1, 9, 0], 0));
    assert_eq!((table.len(c).unwrap(), table.len(d).unwrap()), (0, 2));
}

#[test]
fn a_limit_evicts_and_refuses() {
    let mut table = table(8, 2);
    let a = prompt(&mut table, &[1, 1, 2, 2, 3, 3], 0);
    table.truncate(a, 2).unwrap();
    assert_eq!(counts(table.stats()), [1, 0, 2, 5]);
    table.set_page_limit(2).unwrap();
    assert_eq!((counts(table.stats()), table.stats().total, table.stats().evictions), ([1, 0, 1, 0], 2, 1));
    assert_eq!(*table.reserve(&[a], 6).unwrap_err().kind(), ErrorKind::CacheFull { needed: 3, free: 1 });
    table.reserve(&[a], 2).unwrap();
    assert_eq!(*table.set_page_limit(1).unwrap_err().kind(), ErrorKind::CacheFull { needed: 2, free: 1 });
    table.set_page_limit(usize::MAX).unwrap();
    assert_eq!((table.stats().total, table.stats().free), (8, 6));
    table.drop_kept();
    table.clear();
    assert_eq!(counts(table.stats()), [0, 0, 0, 8]);
}

#[test]
fn pages_outside_a_window_are_freed_at_once() {
    let mut table = table(8, 4);
    assert!(matches!(
        table.insert_with(SequenceOptions { window: Some(0), keep_first: 0 }).unwrap_err().kind(),
        ErrorKind::Argument { name: "window", .. }
    ));
    let a = table.insert_with(SequenceOptions { window: Some(5), keep_first: 0 }).unwrap();
    let step = |table: &mut SeqTable, n: usize| {
        table.reserve(&[a], n).unwrap();
        table.commit(&[a], n).unwrap();
        (table.gap(a).unwrap().end, pages(table, a).len())
    };
    // The token at position 8 sees 4..=8: the first page is out of sight once 8 are there.
    assert_eq!([step(&mut table, 7), step(&mut table, 1)], [(0, 2), (4, 1)]);
    assert_eq!([step(&mut table, 3), step(&mut table, 1)], [(4, 2), (8, 1)]);
    table.reserve(&[a], 2).unwrap();
    let batch = table.batch(&[a]).unwrap();
    let view = batch.sequences[0];
    assert_eq!((view.kv_len, view.gap_first, view.gap_last, view.page_table_first), (14, 0, 8, 0));
    assert_eq!((batch.page_table.len(), &batch.positions[..]), (2, &[12, 13][..]));
    table.commit(&[a], 1).unwrap();
    // 13 tokens; cut to 12 the next sees 8..=12, which is there; cut to 11 it would see 7.
    assert_eq!(step(&mut table, 1), (8, 2));
    assert!(matches!(table.truncate(a, 11).unwrap_err().kind(), ErrorKind::Argument { name: "len", .. }));
    table.truncate(a, 12).unwrap();
    // Long sequences hold what they see, and forks what both see.
    let mut most = 0;
    for _ in 0..100 {
        step(&mut table, 1);
        most = most.max(table.stats().used);
    }
    assert_eq!(most, 2);
    let b = table.fork(a).unwrap();
    assert_eq!((table.gap(b).unwrap(), pages(&table, b)), (table.gap(a).unwrap(), pages(&table, a)));
    table.remove(a).unwrap();
    assert_eq!(table.stats().used, pages(&table, b).len());
    table.remove(b).unwrap();
    assert_eq!(counts(table.stats()), [0, 0, 0, 8]);
}

#[test]
fn first_tokens_stay_beside_a_window() {
    let mut table = table(12, 4);
    let unseen = table.insert_with(SequenceOptions { window: None, keep_first: 5 }).unwrap_err();
    assert_eq!(unseen.to_string(), "keep_first: 5 without a window");
    assert!(matches!(
        table.insert_with(SequenceOptions { window: Some(0), keep_first: 5 }).unwrap_err().kind(),
        ErrorKind::Argument { name: "window", .. }
    ));
    let a = table.insert_with(SequenceOptions { window: Some(6), keep_first: 5 }).unwrap();
    let step = |table: &mut SeqTable, n: usize| {
        table.reserve(&[a], n).unwrap();
        table.commit(&[a], n).unwrap();
        (table.gap(a).unwrap(), pages(table, a).len())
    };
    // Tokens 0..5 are in two pages. The token at position 17 sees 12..=17 besides: the third page goes then.
    assert_eq!([step(&mut table, 16), step(&mut table, 1)], [(0..0, 4), (8..12, 4)]);
    let firsts = pages(&table, a)[..2].to_vec();
    table.reserve(&[a], 4).unwrap();
    let view = table.batch(&[a]).unwrap().sequences[0];
    assert_eq!((view.page_table_first, view.kv_len, view.gap_first, view.gap_last), (0, 21, 8, 12));
    assert_eq!(table.batch(&[a]).unwrap().page_table.len(), 5);
    table.commit(&[a], 4).unwrap();
    assert_eq!((table.gap(a).unwrap(), &pages(&table, a)[..2]), (8..16, &firsts[..]));
    // For ever in as many pages: those of the first tokens, and 5 tokens wherever they begin.
    let mut most = 0;
    for _ in 0..200 {
        step(&mut table, 1);
        most = most.max(table.stats().used);
    }
    assert_eq!((most, table.gap(a).unwrap(), &pages(&table, a)[..2]), (4, 8..216, &firsts[..]));
    // A fork has both runs. Cut into the gap, or to where the window would reach into it, a sequence is refused.
    let b = table.fork(a).unwrap();
    assert_eq!((table.gap(b).unwrap(), pages(&table, b)), (8..216, pages(&table, a)));
    let before = (table.stats(), pages(&table, a));
    for len in [9, 100, 216, 220] {
        let error = table.truncate(a, len).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Argument { name: "len", .. }), "{error}");
        assert!(error.to_string().contains("8..216"), "{error}");
    }
    assert_eq!((table.stats(), pages(&table, a)), before);
    // To some of its first tokens it can be cut, and goes on from there.
    table.truncate(a, 7).unwrap();
    assert_eq!((table.gap(a).unwrap(), pages(&table, a)), (0..0, firsts.clone()));
    let copies = table.reserve(&[a], 1).unwrap();
    assert_eq!(copies.len(), 1, "the second page is the fork's, too");
    table.commit(&[a], 1).unwrap();
    assert_eq!(step(&mut table, 9), (8..12, 4));
    // More first tokens than there can be are all.
    let c = table.insert_with(SequenceOptions { window: Some(1), keep_first: usize::MAX }).unwrap();
    table.reserve(&[c], 9).unwrap();
    table.commit(&[c], 9).unwrap();
    assert_eq!((table.gap(c).unwrap(), pages(&table, c).len()), (0..0, 3));
    for id in [a, b, c] {
        table.remove(id).unwrap();
    }
    assert_eq!(counts(table.stats()), [0, 0, 0, 12]);
}

#[test]
fn a_sequence_is_taken_back_to_its_fork() {
    let mut table = table(12, 4);
    let a = table.insert_with(SequenceOptions { window: Some(5), keep_first: 1 }).unwrap();
    table.reserve(&[a], 10).unwrap();
    table.commit(&[a], 10).unwrap();
    let before = (table.len(a).unwrap(), table.gap(a).unwrap(), pages(&table, a), table.stats());
    for gone in [false, true] {
        let fork = table.fork(a).unwrap();
        table.reserve(&[a], 12).unwrap();
        table.commit(&[a], 12).unwrap();
        table.reserve(&[a], 1).unwrap();
        if gone {
            table.remove(a).unwrap();
        }
        let generation = table.generation();
        table.take_back(a, fork).unwrap();
        assert!(table.generation() > generation && table.len(fork).is_err() && table.take_back(a, fork).is_err());
        match gone {
            false => {
                let after = (table.len(a).unwrap(), table.gap(a).unwrap(), pages(&table, a), table.stats());
                assert_eq!((after, table.reserved(a).unwrap()), (before.clone(), 0));
            }
            true => assert_eq!((table.len(a).is_err(), counts(table.stats())), (true, [0, 0, 0, 12])),
        }
    }
}

#[test]
fn a_reservation_can_be_undone() {
    let mut table = table(8, 4);
    let a = prompt(&mut table, &[1, 2, 3, 4, 5, 6], 0);
    let b = table.fork(a).unwrap();
    let (stats, before) = (table.stats(), [a, b].map(|id| pages(&table, id)));
    let wanted = [(a, 5), (b, 1)];
    let copies = table.reserve_each(&wanted).unwrap();
    assert_eq!(copies.len(), 1);
    table.undo_reserve(&wanted, &copies);
    assert_eq!((table.stats(), [a, b].map(|id| pages(&table, id))), (stats, before));
    assert_eq!((table.reserved(a).unwrap(), table.reserved(b).unwrap()), (0, 0));
}
