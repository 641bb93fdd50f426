use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

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
    assert_eq!(batch.sequences[0], SeqView { page_table_first: 0, q_token_first: 0, q_len: 2, kv_len: 5 });
    assert_eq!(batch.sequences[1], SeqView { page_table_first: 2, q_token_first: 2, q_len: 2, kv_len: 5 });
    assert_eq!(batch.page_table, [table.page_table(b).unwrap(), table.page_table(a).unwrap()].concat());
    assert_eq!(batch.page_table, [1, 2, 0, 3]);
    assert_eq!(batch.slots, [4 + 3, 2 * 4, 3, 3 * 4]);
    assert_eq!(batch.positions, [3, 4, 3, 4]);

    table.commit(&[a], 0).unwrap();
    table.commit(&[b], 1).unwrap();
    assert_eq!((table.len(a).unwrap(), table.len(b).unwrap()), (3, 4));
    assert_eq!((table.reserved(a).unwrap(), table.reserved(b).unwrap()), (0, 0));
    assert_eq!(table.stats(), CacheStats { total: 8, used: 2, free: 6 });
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
    for result in [table.reserve(&[a, a], 1), table.commit(&[a, a], 0), table.batch(&[a, a]).map(|_| ())] {
        assert_eq!(kind(result), ErrorKind::RepeatedSequence { id: a.number() });
    }
    for result in [table.reserve(&[a], 0), table.commit(&[a], 2), table.commit(&[a], usize::MAX), table.truncate(a, 6)]
    {
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

/// One call; the numbers choose among the ids ever given out, removed ones included.
#[derive(Debug, Clone)]
enum Op {
    Insert,
    Remove(usize),
    Reserve(Vec<usize>, usize),
    Commit(Vec<usize>, usize),
    Truncate(usize, usize),
    Clear,
}

fn op() -> impl Strategy<Value = Op> {
    let ids = || prop::collection::vec(0usize..64, 0..4);
    prop_oneof![
        4 => Just(Op::Insert),
        2 => (0usize..64).prop_map(Op::Remove),
        8 => (ids(), 0usize..20).prop_map(|(ids, n)| Op::Reserve(ids, n)),
        6 => (ids(), 0usize..12).prop_map(|(ids, n)| Op::Commit(ids, n)),
        3 => (0usize..64, 0usize..24).prop_map(|(id, len)| Op::Truncate(id, len)),
        1 => Just(Op::Clear),
    ]
}

/// The table in one line per rule: every id ever given out, with committed and reserved tokens while it lives.
struct Model {
    total: usize,
    page_size: usize,
    sequences: Vec<(SeqId, Option<(usize, usize)>)>,
}

impl Model {
    fn used(&self) -> usize {
        self.live().map(|(_, len, reserved)| (len + reserved).div_ceil(self.page_size)).sum()
    }

    fn live(&self) -> impl Iterator<Item = (SeqId, usize, usize)> + '_ {
        self.sequences.iter().filter_map(|(id, state)| state.map(|(len, reserved)| (*id, len, reserved)))
    }

    fn get(&mut self, index: usize) -> Option<&mut (usize, usize)> {
        self.sequences[index].1.as_mut()
    }

    /// Live, and none twice.
    fn valid(&mut self, indices: &[usize]) -> bool {
        indices.iter().collect::<HashSet<_>>().len() == indices.len() && indices.iter().all(|i| self.get(*i).is_some())
    }

    /// Applies an operation to model and table; both must agree whether it succeeds.
    fn apply(&mut self, table: &mut SeqTable, op: Op) {
        let count = self.sequences.len();
        if count == 0 && !matches!(op, Op::Insert | Op::Clear) {
            return;
        }
        let id = |model: &Model, index: usize| model.sequences[index].0;
        let generation = table.generation();
        let (ok, result) = match op {
            Op::Insert => {
                let new = table.insert();
                assert!(self.sequences.iter().all(|(old, _)| *old != new));
                self.sequences.push((new, Some((0, 0))));
                (true, Ok(()))
            }
            Op::Remove(index) => {
                let index = index % count;
                (self.sequences[index].1.take().is_some(), table.remove(id(self, index)))
            }
            Op::Reserve(indices, n) => {
                let indices: Vec<usize> = indices.iter().map(|i| i % count).collect();
                let ids: Vec<SeqId> = indices.iter().map(|i| id(self, *i)).collect();
                let mut ok = n > 0 && self.valid(&indices);
                if ok {
                    indices.iter().for_each(|i| self.get(*i).unwrap().1 += n);
                    if self.used() > self.total {
                        indices.iter().for_each(|i| self.get(*i).unwrap().1 -= n);
                        ok = false;
                    }
                }
                (ok, table.reserve(&ids, n))
            }
            Op::Commit(indices, n) => {
                let indices: Vec<usize> = indices.iter().map(|i| i % count).collect();
                let ids: Vec<SeqId> = indices.iter().map(|i| id(self, *i)).collect();
                let ok = self.valid(&indices) && indices.iter().all(|i| self.get(*i).unwrap().1 >= n);
                if ok {
                    for index in &indices {
                        let state = self.get(*index).unwrap();
                        *state = (state.0 + n, 0);
                    }
                }
                (ok, table.commit(&ids, n))
            }
            Op::Truncate(index, len) => {
                let index = index % count;
                let ok = self.get(index).is_some_and(|(old, _)| len <= *old);
                if ok {
                    *self.get(index).unwrap() = (len, 0);
                }
                (ok, table.truncate(id(self, index), len))
            }
            Op::Clear => {
                self.sequences.iter_mut().for_each(|(_, state)| *state = None);
                table.clear();
                (true, Ok(()))
            }
        };
        assert_eq!(result.is_ok(), ok, "{result:?}");
        assert_eq!(table.generation() > generation, ok);
    }

    fn check(&self, table: &SeqTable) {
        let stats = table.stats();
        assert_eq!((stats.total, stats.used, stats.free), (self.total, self.used(), self.total - self.used()));
        for (id, state) in &self.sequences {
            assert_eq!(table.len(*id).ok().zip(table.reserved(*id).ok()), *state);
        }
        let ids: Vec<SeqId> = self.live().map(|(id, ..)| id).collect();
        let batch = table.batch(&ids).unwrap();
        assert_eq!(batch.generation, table.generation());
        let mut owned = HashSet::new();
        assert!(batch.page_table.iter().all(|page| (*page as usize) < self.total && owned.insert(*page)));
        assert_eq!(owned.len(), self.used());

        let (mut first_page, mut first_token) = (0, 0);
        for ((id, len, reserved), view) in self.live().zip(&batch.sequences) {
            let pages = table.page_table(id).unwrap();
            assert_eq!((view.page_table_first as usize, view.q_token_first as usize), (first_page, first_token));
            assert_eq!((view.q_len as usize, view.kv_len as usize), (reserved, len + reserved));
            assert_eq!(batch.page_table[first_page..][..pages.len()], *pages);
            for (token, position) in (first_token..).zip(len..len + reserved) {
                let slot = pages[position / self.page_size] as usize * self.page_size + position % self.page_size;
                assert_eq!((batch.slots[token], batch.positions[token]), (slot as u32, position as u32));
            }
            first_page += pages.len();
            first_token += reserved;
        }
        assert_eq!((batch.page_table.len(), batch.tokens()), (first_page, first_token));
        assert_eq!(batch.positions.len(), first_token);
    }
}

proptest! {
    // 256 runs of 100 to 200 operations.
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn the_table_is_its_model(total in 1usize..24, page_log2 in 0u32..4, ops in prop::collection::vec(op(), 100..200)) {
        let page_size = 1usize << page_log2;
        let mut table = table(total, page_size);
        let mut model = Model { total, page_size, sequences: Vec::new() };
        for op in ops {
            let shown = format!("{op:?}");
            let before = (table.generation(), format!("{table:?}"));
            model.apply(&mut table, op);
            model.check(&table);
            if table.generation() == before.0 {
                prop_assert_eq!(format!("{table:?}"), before.1, "{} failed and left a trace", shown);
            }
        }
    }
}
