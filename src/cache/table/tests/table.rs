use std::collections::HashSet;

use super::*;
use crate::kv::view::{KvSource, SeqView};

fn table(page_count: usize, page_size: usize) -> SeqTable {
    SeqTable::new(page_count, page_size).unwrap()
}

fn kind<T: fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.unwrap_err().kind().clone()
}

#[test]
fn sizes_are_checked() {
    for (page_count, page_size) in [(0, 64), (1, 0), (1, 48), (1, 8192), (1 << 31, 2), (usize::MAX, 1), (1, usize::MAX)]
    {
        let kind = kind(SeqTable::new(page_count, page_size));
        assert!(matches!(kind, ErrorKind::Argument { .. }), "{page_count} pages of {page_size}: {kind}");
    }
    assert_eq!(table(u32::MAX as usize, 1).stats().free, u32::MAX as usize);
    assert_eq!(table((1 << 20) - 1, 4096).page_size(), 4096);
}

#[test]
fn a_decode_step() {
    let mut table = table(8, 4);
    let (a, b) = (table.insert(), table.insert());
    table.reserve(&[a, b], 3).unwrap();
    table.commit(&[a, b], 3).unwrap();
    table.reserve(&[b, a], 2).unwrap();

    let batch = table.batch(&[b, a]).unwrap();
    assert_eq!(batch.generation, table.generation());
    assert_eq!(
        batch.sequences[0],
        SeqView { page_table_first: 0, q_token_first: 0, q_len: 2, kv_len: 5, gap_first: 0, gap_last: 0 }
    );
    assert_eq!(
        batch.sequences[1],
        SeqView { page_table_first: 2, q_token_first: 2, q_len: 2, kv_len: 5, gap_first: 0, gap_last: 0 }
    );
    assert_eq!(batch.page_table, [table.page_table(b).unwrap(), table.page_table(a).unwrap()].concat());
    assert_eq!(batch.page_table, [1, 2, 0, 3]);
    assert_eq!(batch.slots, [4 + 3, 2 * 4, 3, 3 * 4]);
    assert_eq!(batch.positions, [3, 4, 3, 4]);

    table.commit(&[a], 0).unwrap();
    table.commit(&[b], 1).unwrap();
    assert_eq!((table.len(a).unwrap(), table.len(b).unwrap()), (3, 4));
    assert_eq!((table.reserved(a).unwrap(), table.reserved(b).unwrap()), (0, 0));
    assert_eq!(table.stats(), CacheStats { total: 8, used: 2, free: 6, ..CacheStats::default() });
    let idle = table.batch(&[a]).unwrap();
    assert_eq!((idle.sequences[0].q_len, idle.sequences[0].kv_len, idle.tokens()), (0, 3, 0));
    assert_eq!(table.batch(&[]).unwrap().sequences, []);
}

#[test]
fn reservations_add_up() {
    let mut table = table(4, 2);
    let id = table.insert();
    table.reserve(&[id], 1).unwrap();
    table.reserve(&[id], 2).unwrap();
    assert_eq!((table.reserved(id).unwrap(), table.page_table(id).unwrap().len()), (3, 2));
    table.commit(&[id], 2).unwrap();
    assert_eq!((table.len(id).unwrap(), table.stats().used), (2, 1));
}

#[test]
fn a_full_cache_names_the_pages_of_the_whole_call() {
    let mut table = table(3, 4);
    let (a, b) = (table.insert(), table.insert());
    table.reserve(&[a], 4).unwrap();
    let generation = table.generation();
    assert_eq!(kind(table.reserve(&[a, b], 5)), ErrorKind::CacheFull { needed: 4, free: 2 });
    let huge = kind(table.reserve(&[a, b], usize::MAX));
    assert!(matches!(huge, ErrorKind::CacheFull { free: 2, .. }), "{huge}");
    assert_eq!((table.reserved(a).unwrap(), table.reserved(b).unwrap()), (4, 0));
    assert_eq!((table.stats().free, table.generation()), (2, generation));
}

#[test]
fn wrong_arguments_change_nothing() {
    let mut table = table(8, 4);
    let (a, gone) = (table.insert(), table.insert());
    table.reserve(&[a], 5).unwrap();
    table.commit(&[a], 5).unwrap();
    table.reserve(&[a], 1).unwrap();
    table.remove(gone).unwrap();
    let (before, generation) = (table.batch(&[a]).unwrap(), table.generation());

    let id = gone.number();
    assert_eq!(kind(table.reserve(&[a, gone], 1)), ErrorKind::UnknownSequence { id });
    assert_eq!(kind(table.commit(&[a, gone], 0)), ErrorKind::UnknownSequence { id });
    assert_eq!(kind(table.batch(&[a, gone])), ErrorKind::UnknownSequence { id });
    assert_eq!(kind(table.truncate(gone, 0)), ErrorKind::UnknownSequence { id });
    assert_eq!(kind(table.remove(gone)), ErrorKind::UnknownSequence { id });
    assert_eq!(
        kind(table.len(SeqId { slot: u32::MAX, generation: u32::MAX, ..a })),
        ErrorKind::UnknownSequence { id: u64::MAX }
    );
    for result in [table.reserve(&[a, a], 1).map(|_| ()), table.commit(&[a, a], 0), table.batch(&[a, a]).map(|_| ())] {
        assert_eq!(kind(result), ErrorKind::RepeatedSequence { id: a.number() });
    }
    for result in [
        table.reserve(&[a], 0).map(|_| ()),
        table.commit(&[a], 2),
        table.commit(&[a], usize::MAX),
        table.truncate(a, 6),
    ] {
        let kind = kind(result);
        assert!(matches!(kind, ErrorKind::Argument { .. }), "{kind}");
    }
    assert_eq!((table.batch(&[a]).unwrap(), table.generation()), (before, generation));
}

#[test]
fn an_id_is_never_given_again() {
    let mut table = table(2, 1);
    let mut seen = HashSet::new();
    for round in 0..100 {
        let ids = [table.insert(), table.insert()];
        assert!(ids.iter().all(|id| seen.insert(*id)), "{ids:?}");
        table.reserve(&ids, 1).unwrap();
        if round % 2 == 0 {
            table.clear();
        } else {
            ids.iter().for_each(|id| table.remove(*id).unwrap());
        }
        assert_eq!(table.stats().free, 2);
        assert!(seen.iter().all(|id| table.len(*id).is_err()));
    }
    assert_eq!(table.slots.len(), 2);
}

#[test]
fn an_id_of_another_table_is_unknown() {
    let (mut one, mut other) = (table(2, 1), table(2, 1));
    let (a, b) = (one.insert(), other.insert());
    assert_eq!(a.number(), b.number());
    assert!(one.len(b).is_err() && other.remove(a).is_err() && one.len(a).is_ok());
}

#[test]
fn a_slot_is_given_up_after_its_last_generation() {
    let mut table = table(1, 1);
    let first = table.insert();
    table.slots[0].generation = u32::MAX;
    let last = SeqId { generation: u32::MAX, ..first };
    table.remove(last).unwrap();
    assert_ne!(table.insert().index(), 0);
    assert!(table.len(last).is_err());
}
