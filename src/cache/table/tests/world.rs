//! The trivial model of `machine_tests.rs`, and the comparison with it.

use std::collections::{HashMap, HashSet};

#[path = "calls.rs"]
mod calls;
#[path = "check.rs"]
mod check;
#[path = "should.rs"]
mod should;
use should::{chain, Should};

use super::{Op, Sizes, MOST_SEQUENCES, SALTS};
use crate::cache::table::{SeqId, SeqTable, SequenceOptions};
use crate::kv::view::KvSource;

pub(super) struct World {
    table: SeqTable,
    page_size: usize,
    slab_pages: usize,
    page_count: usize,
    limit: usize,
    memory: Vec<u64>,
    /// The page tables as a device has them, their array and its version.
    tables: (Vec<u32>, u64, u64),
    sequences: Vec<(SeqId, Option<Should>)>,
    pins: HashMap<SeqId, Pinned>,
    /// Whole prefixes that must be found as long as nothing was given up.
    published: HashSet<(u64, Vec<u32>)>,
    /// Whether kept pages may have been given up.
    gave_up: bool,
    /// A salt for each sequence whose tokens are not known: shared with none.
    salts: u64,
    /// Let every allocation fail once before it is made.
    inject: bool,
    pub(super) seen: Seen,
}

/// How often the calls came to what they are for.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    pub(super) copies: usize,
    pub(super) undone_copies: usize,
    pub(super) injected: usize,
    pub(super) full: usize,
    pub(super) forgotten: usize,
    /// Pages of a commit that gave way to equal ones.
    pub(super) merged: usize,
    /// Matches that found something; those of them for which all that was ever committed had to be found.
    pub(super) found: usize,
    pub(super) found_all: usize,
    pub(super) evictions: usize,
    /// Pages that a window moved on from; with first ones kept before them.
    pub(super) freed: usize,
    pub(super) beside: usize,
    /// Sequences with a gap that were cut to some of their first tokens.
    pub(super) cut_before_gap: usize,
    /// Pages of discarded tokens that could be found before, and not after.
    pub(super) discarded: usize,
    /// Sequences with a gap that were saved and loaded.
    pub(super) loaded: usize,
    /// Pages that were evicted since their slabs were to go.
    pub(super) shrunk: usize,
}

#[derive(Debug, Clone)]
struct Pinned {
    pages: Vec<u32>,
    salt: u64,
    tokens: Vec<u32>,
}

impl World {
    pub(super) fn new(sizes: &Sizes, inject: bool) -> Self {
        let Sizes { pages, page_size, slab_pages } = *sizes;
        World {
            table: SeqTable::with_slabs(pages, page_size, slab_pages).unwrap(),
            page_size,
            slab_pages,
            page_count: pages,
            limit: pages,
            memory: vec![u64::MAX; pages * page_size],
            tables: (Vec::new(), 0, 0),
            sequences: Vec::new(),
            pins: HashMap::new(),
            published: HashSet::new(),
            gave_up: false,
            salts: SALTS,
            inject,
            seen: Seen::default(),
        }
    }

    /// Mostly a living sequence, now and then any.
    fn at(&self, index: usize) -> Option<usize> {
        let living: Vec<usize> = (0..self.sequences.len()).filter(|i| self.sequences[*i].1.is_some()).collect();
        match living.len() {
            _ if self.sequences.is_empty() => None,
            0 => Some(index % self.sequences.len()),
            _ if index == 31 => Some(0),
            living_count => Some(living[index % living_count]),
        }
    }

    fn live(&self) -> impl Iterator<Item = (SeqId, &Should)> {
        self.sequences.iter().filter_map(|(id, should)| Some((*id, should.as_ref()?)))
    }

    fn valid(&self, ids: &[SeqId]) -> bool {
        let live: HashSet<SeqId> = self.live().map(|(id, _)| id).collect();
        ids.iter().collect::<HashSet<_>>().len() == ids.len() && ids.iter().all(|id| live.contains(id))
    }

    fn get(&mut self, id: SeqId) -> &mut Should {
        self.sequences.iter_mut().find(|(other, _)| *other == id).and_then(|(_, should)| should.as_mut()).unwrap()
    }

    fn add(&mut self, id: SeqId, should: Should) {
        assert!(self.sequences.iter().all(|(other, _)| *other != id) && !self.pins.contains_key(&id), "{id} again");
        self.sequences.push((id, Some(should)));
        if self.sequences.len() > 2 * MOST_SEQUENCES {
            let gone = self.sequences.iter().position(|(_, should)| should.is_none()).unwrap();
            self.sequences.remove(gone);
        }
    }

    pub(super) fn apply(&mut self, op: Op) {
        let before = self.table.clone();
        let stats = before.stats();
        let mut evicted = 0;
        let generation = before.generation();
        let ok = match op {
            Op::Insert if self.live().count() < MOST_SEQUENCES => {
                let id = self.table.insert();
                self.salts += 1;
                self.add(id, Should { salt: self.salts, ..Should::default() });
                true
            }
            Op::InsertWindowed(window, keep_first) if self.live().count() < MOST_SEQUENCES => {
                let id = self.table.insert_with(SequenceOptions { window: Some(window), keep_first });
                assert_eq!(id.is_ok(), window > 0);
                self.salts += 1;
                let should = Should { salt: self.salts, window, keep_first, ..Should::default() };
                if let Ok(id) = &id {
                    self.add(*id, should);
                }
                id.is_ok()
            }
            Op::Match(index, len, more, salt) if self.live().count() < MOST_SEQUENCES => {
                let shared = self.at(index).and_then(|at| self.sequences[at].1.as_ref()).map(|should| &should.tokens);
                let tokens: Vec<u32> = shared.into_iter().flatten().take(len).chain(&more).copied().collect();
                self.match_prefix(&tokens, salt);
                true
            }
            Op::Insert | Op::InsertWindowed(..) | Op::Match(..) => return,
            Op::Fork(index) => {
                let Some(at) = self.at(index).filter(|_| self.live().count() < MOST_SEQUENCES) else { return };
                let (id, should) = self.sequences[at].clone();
                let fork = self.table.fork(id);
                assert_eq!(fork.is_ok(), should.is_some());
                if let (Ok(fork), Some(should)) = (&fork, should) {
                    self.add(*fork, Should { drafts: Vec::new(), ..should });
                }
                fork.is_ok()
            }
            Op::Remove(index) => {
                let Some(at) = self.at(index) else { return };
                let lived = self.sequences[at].1.take().is_some();
                assert_eq!(self.table.remove(self.sequences[at].0).is_ok(), lived);
                lived
            }
            Op::Reserve(wanted) => {
                let (ok, taken) = self.reserve(&wanted, false);
                evicted = taken.saturating_sub(stats.free);
                ok
            }
            Op::ReserveUndone(wanted) => {
                let (ok, taken) = self.reserve(&wanted, true);
                evicted = taken.saturating_sub(stats.free);
                ok
            }
            Op::Commit(indices, n) => {
                let list: Vec<(usize, ())> = indices.into_iter().map(|index| (index, ())).collect();
                let ids: Vec<SeqId> = self.resolve(&list).into_iter().map(|(id, ())| id).collect();
                let ok = self.valid(&ids) && ids.iter().all(|id| self.get(*id).drafts.len() >= n);
                let result = self.table.commit(&ids, n);
                assert_eq!(result.is_ok(), ok, "{result:?}");
                for id in ids.into_iter().filter(|_| ok) {
                    self.accept(id, n, n == 0);
                }
                ok
            }
            Op::CommitTokens(accepted) => self.commit_tokens(&accepted),
            Op::Truncate(index, len) => {
                let Some(at) = self.at(index) else { return };
                let len = len % self.sequences[at].1.as_ref().map_or(1, |should| should.tokens.len() + 2);
                self.truncate(at, len, false)
            }
            Op::Discard(index, len) => {
                let Some(at) = self.at(index) else { return };
                let len = len % self.sequences[at].1.as_ref().map_or(1, |should| should.tokens.len() + 2);
                self.truncate(at, len, true)
            }
            Op::CutToFirst(index) => {
                let page_size = self.page_size;
                let first = |i: &usize| self.sequences[*i].1.as_ref().map_or(0, |should| should.gap(page_size).start);
                let cut: Vec<usize> = (0..self.sequences.len()).filter(|i| first(i) > 0).collect();
                let Some(&at) = cut.get(index % cut.len().max(1)) else { return };
                let len = 1 + index % first(&at);
                self.truncate(at, len, false)
            }
            Op::SaveAndLoad(index) => {
                // Every second time one that has lost some, if there is any.
                let page_size = self.page_size;
                let cut = |(_, should): &(SeqId, Option<Should>)| {
                    should.as_ref().is_some_and(|s| !s.gap(page_size).is_empty())
                };
                let cut = self.sequences.iter().position(cut).filter(|_| index % 2 == 0);
                let at = cut.or_else(|| self.at(index)).filter(|_| self.live().count() < MOST_SEQUENCES);
                let Some(at) = at else { return };
                // What fails has made and removed a sequence.
                let Some(taken) = self.save_and_load(at) else { return };
                evicted = taken.saturating_sub(stats.free);
                true
            }
            Op::Pin(index) => {
                let Some(at) = self.at(index) else { return };
                self.pin(at);
                return;
            }
            Op::Unpin(index) => {
                let Some(at) = self.at(index) else { return };
                let id = self.sequences[at].0;
                assert_eq!(self.table.unpin(id).is_ok(), self.pins.remove(&id).is_some());
                return;
            }
            Op::Limit(pages) => {
                let result = self.table.set_page_limit(pages);
                assert_eq!(result.is_ok(), pages >= stats.used, "{result:?}");
                if result.is_ok() {
                    self.limit = pages.min(self.page_count);
                    evicted = (stats.used + stats.evictable).saturating_sub(self.limit);
                    self.gave_up |= evicted > 0;
                }
                assert_eq!(self.table.stats().evictions - stats.evictions, evicted as u64);
                return;
            }
            Op::Shrink => {
                let left = self.table.vacate_slabs();
                let held = self.holders().into_keys().map(|page| page as usize / self.slab_pages.min(self.page_count));
                assert_eq!(left, held.max().map_or(0, |slab| slab + 1));
                assert!(self.table.slabs_used() <= left);
                let evicted = self.table.stats().evictions - stats.evictions;
                self.gave_up |= evicted > 0;
                self.seen.shrunk += evicted as usize;
                return;
            }
            Op::DropKept => {
                self.table.drop_kept();
                self.gave_up = true;
                assert_eq!(self.table.stats().evictable, 0);
                return;
            }
            Op::Clear => {
                self.table.clear();
                self.sequences.iter_mut().for_each(|(_, should)| *should = None);
                self.pins.clear();
                self.published.clear();
                assert_eq!(self.table.stats().free, self.limit);
                true
            }
        };
        self.gave_up |= evicted > 0;
        self.seen.evictions += evicted;
        // Nothing is given up but to make room for pages that were asked for.
        assert_eq!(self.table.stats().evictions - stats.evictions, evicted as u64);
        assert_eq!(self.table.generation() > generation, ok);
        if !ok {
            assert_eq!(format!("{:?}", self.table), format!("{before:?}"), "failed and left a trace");
        }
    }
}
