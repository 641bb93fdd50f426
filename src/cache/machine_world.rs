//! The trivial model of `machine_tests.rs`, and the comparison with it.

use std::collections::{HashMap, HashSet};

#[path = "machine_check.rs"]
mod check;
#[path = "machine_should.rs"]
mod should;
use should::{chain, Should};

use super::{Op, Sizes, MOST_SEQUENCES, SALTS};
use crate::attention::view::KvSource;
use crate::cache::stats::PageCopy;
use crate::cache::table::{SeqId, SeqTable};

pub(super) struct World {
    table: SeqTable,
    page_size: usize,
    page_count: usize,
    limit: usize,
    memory: Vec<u64>,
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
}

#[derive(Debug, Clone)]
struct Pinned {
    pages: Vec<u32>,
    salt: u64,
    tokens: Vec<u32>,
}

impl World {
    pub(super) fn new(sizes: &Sizes, inject: bool) -> Self {
        let Sizes { pages, page_size } = *sizes;
        World {
            table: SeqTable::new(pages, page_size).unwrap(),
            page_size,
            page_count: pages,
            limit: pages,
            memory: vec![u64::MAX; pages * page_size],
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
                let id = match keep_first {
                    0 => self.table.insert_windowed(window),
                    _ => self.table.insert_windowed_keeping(window, keep_first),
                };
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
                self.truncate(at, len)
            }
            Op::CutToFirst(index) => {
                let page_size = self.page_size;
                let first = |i: &usize| self.sequences[*i].1.as_ref().map_or(0, |should| should.gap(page_size).start);
                let cut: Vec<usize> = (0..self.sequences.len()).filter(|i| first(i) > 0).collect();
                let Some(&at) = cut.get(index % cut.len().max(1)) else { return };
                let len = 1 + index % first(&at);
                self.truncate(at, len)
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

    /// The sequences meant, each once but for lists of three, which may repeat one.
    fn resolve<T: Clone>(&self, list: &[(usize, T)]) -> Vec<(SeqId, T)> {
        let mut resolved: Vec<(SeqId, T)> = Vec::new();
        for (index, what) in list {
            let Some(id) = self.at(*index).map(|at| self.sequences[at].0) else { continue };
            if list.len() == 3 || resolved.iter().all(|(other, _)| *other != id) {
                resolved.push((id, what.clone()));
            }
        }
        resolved
    }

    fn truncate(&mut self, at: usize, len: usize) -> bool {
        let (id, should) = &mut self.sequences[at];
        let page_size = self.page_size;
        // Before what is gone, or so far past it that the window is.
        let held = |should: &Should| {
            let gap = should.gap(page_size);
            len <= gap.start || should.first_seen(len) / page_size * page_size >= gap.end
        };
        let ok = should.as_ref().is_some_and(|should| len <= should.tokens.len() && held(should));
        let result = self.table.truncate(*id, len);
        assert_eq!(result.is_ok(), ok, "{result:?}");
        if let Some(should) = should.as_mut().filter(|_| ok) {
            should.tokens.truncate(len);
            should.drafts.clear();
            if len <= should.gap(page_size).start {
                self.seen.cut_before_gap += usize::from(should.passed > 0 && len > 0);
                should.passed = 0;
            }
        }
        ok
    }

    fn match_prefix(&mut self, tokens: &[u32], salt: u64) {
        let stats = self.table.stats();
        let id = self.table.match_prefix(tokens, salt);
        let found = self.table.len(id).unwrap();
        let most = tokens.len().saturating_sub(1) / self.page_size;
        assert!(found.is_multiple_of(self.page_size) && found <= most * self.page_size, "{found} of {tokens:?}");
        let (hits, misses) = (self.table.stats().hits - stats.hits, self.table.stats().misses - stats.misses);
        assert_eq!((hits as usize, (hits + misses) as usize), (found / self.page_size, most));
        // What a living sequence or a pin holds cannot have been given up; what was published only if nothing else was.
        let pages = |known: &[u32]| {
            let same = known.iter().zip(tokens).take_while(|(a, b)| a == b).count() / self.page_size;
            same.min(most) * self.page_size
        };
        let living = self.live().filter(|(_, should)| should.known && should.salt == salt).map(|(_, s)| &s.tokens);
        let pinned = self.pins.values().filter(|pin| pin.salt == salt).map(|pin| &pin.tokens);
        let least = living.chain(pinned).map(|known| pages(known)).max().unwrap_or(0);
        assert!(found >= least, "{found} tokens found, {least} are there");
        let published = |pages: &usize| self.published.contains(&(salt, tokens[..pages * self.page_size].to_vec()));
        let longest = (1..=most).take_while(published).count() * self.page_size;
        assert!(found <= longest, "{found} tokens found, of {longest} ever committed");
        assert!(self.gave_up || found == longest, "{found} tokens found of {longest}, and nothing was given up");
        self.seen.found += usize::from(found > 0);
        self.seen.found_all += usize::from(found > 0 && !self.gave_up);
        let should = Should { salt, known: true, tokens: tokens[..found].to_vec(), ..Should::default() };
        self.add(id, should);
    }

    /// Returns whether it is to succeed, and the pages taken.
    fn reserve(&mut self, wanted: &[(usize, Vec<u32>)], undo: bool) -> (bool, usize) {
        let wanted = self.resolve(wanted);
        let ids: Vec<SeqId> = wanted.iter().map(|(id, _)| *id).collect();
        let calls: Vec<(SeqId, usize)> = wanted.iter().map(|(id, drafts)| (*id, drafts.len())).collect();
        let mut needed = 0;
        let mut ok = self.valid(&ids) && calls.iter().all(|(_, n)| *n > 0);
        let mut holders = self.holders();
        for (id, n) in calls.iter().filter(|_| ok) {
            let (pages, len) = (self.table.page_table(*id).unwrap(), self.table.len(*id).unwrap());
            let tokens = len + self.table.reserved(*id).unwrap() + n;
            let (_, should) = self.live().find(|(other, _)| other == id).unwrap();
            let held = should.pages(tokens, self.page_size);
            needed += held.len() - pages.len();
            if len % self.page_size > 0 {
                let tail = held.iter().position(|page| *page == len / self.page_size).unwrap();
                let holders = holders.get_mut(&pages[tail]).unwrap();
                if *holders > 1 {
                    *holders -= 1;
                    needed += 1;
                }
            }
        }
        let stats = self.table.stats();
        self.seen.full += usize::from(ok && needed > stats.available());
        ok &= needed <= stats.free + stats.evictable;
        if ok {
            assert_eq!(self.table.pages_needed(&calls).unwrap(), needed);
            self.fail_everywhere(&calls, needed);
        }
        let (before, used) = (self.state(), self.table.stats().used);
        let shared_before = self.forgotten(&ids);
        let result = self.table.reserve_each(&calls);
        assert_eq!(result.is_ok(), ok, "{result:?}, {needed} pages needed");
        let Ok(copies) = result else { return (false, 0) };
        self.gave_up |= shared_before;
        self.seen.forgotten += usize::from(shared_before);
        self.seen.copies += copies.len();
        self.copy(&copies);
        if undo {
            self.seen.undone_copies += copies.len();
            self.table.undo_reserve(&calls, &copies);
            assert_eq!((self.state(), self.table.stats().used), (before, used));
            return (true, needed);
        }
        for (id, drafts) in wanted {
            self.get(id).drafts.extend(drafts);
            self.write_drafts(id);
        }
        (true, needed)
    }

    fn copy(&mut self, copies: &[PageCopy]) {
        let targets: HashSet<u32> = copies.iter().map(|copy| copy.target).collect();
        assert_eq!(targets.len(), copies.len());
        for copy in copies {
            assert!(!targets.contains(&copy.source), "{copies:?}");
            let first = |page: u32| page as usize * self.page_size;
            self.memory.copy_within(first(copy.source)..first(copy.source + 1), first(copy.target));
        }
    }

    /// What the kernels do: each new token to its slot.
    fn write_drafts(&mut self, id: SeqId) {
        let batch = self.table.batch(&[id]).unwrap();
        let should = self.get(id).clone();
        let new = &should.content()[should.tokens.len()..];
        assert_eq!(batch.slots.len(), new.len());
        for (slot, content) in batch.slots.iter().zip(new) {
            self.memory[*slot as usize] = *content;
        }
    }

    fn accept(&mut self, id: SeqId, n: usize, told: bool) {
        let page_size = self.page_size;
        let mut freed = 0;
        let should = self.get(id);
        should.tokens.extend(should.drafts.drain(..).take(n));
        should.known &= told;
        if n > 0 {
            let before = should.gap(page_size).len();
            should.passed = should.passed.max(should.first_seen(should.tokens.len()) / page_size);
            freed = (should.gap(page_size).len() - before) / page_size;
        }
        let beside = if should.keep_first > 0 { freed } else { 0 };
        let (salt, known, tokens) = (should.salt, should.known, should.tokens.clone());
        self.seen.freed += freed;
        self.seen.beside += beside;
        for pages in (1..=tokens.len() / page_size).filter(|_| known) {
            self.published.insert((salt, tokens[..pages * page_size].to_vec()));
        }
    }

    fn commit_tokens(&mut self, accepted: &[(usize, usize)]) -> bool {
        let resolved = self.resolve(accepted);
        let ids: Vec<SeqId> = resolved.iter().map(|(id, _)| *id).collect();
        let drafts: HashMap<SeqId, Vec<u32>> = self.live().map(|(id, should)| (id, should.drafts.clone())).collect();
        // As many as are there, and now and then one too many.
        let more = resolved.len() == 1 && accepted[0].1 == 23;
        let accept = |(id, n): &(SeqId, usize)| {
            let drafts = drafts.get(id).cloned().unwrap_or_default();
            let n = if more { drafts.len() + 1 } else { *n };
            (*id, drafts.into_iter().chain([0]).take(n).collect())
        };
        let mut tokens: Vec<(SeqId, Vec<u32>)> = resolved.iter().map(accept).collect();
        if !more {
            tokens.iter_mut().for_each(|(id, tokens)| tokens.truncate(drafts.get(id).map_or(1, Vec::len)));
        }
        let ok = self.valid(&ids) && tokens.iter().all(|(id, tokens)| tokens.len() <= drafts[id].len());
        let given: Vec<(SeqId, &[u32])> = tokens.iter().map(|(id, tokens)| (*id, tokens.as_slice())).collect();
        let before: Vec<Option<Vec<u32>>> =
            ids.iter().map(|id| self.table.page_table(*id).ok().map(<[u32]>::to_vec)).collect();
        let result = self.table.commit_tokens(&given);
        assert_eq!(result.is_ok(), ok, "{result:?}");
        for (id, before) in ids.iter().zip(before) {
            let (Ok(after), Some(before)) = (self.table.page_table(*id), before) else { continue };
            self.seen.merged += after.iter().zip(&before).filter(|(a, b)| a != b).count();
        }
        for (id, tokens) in tokens.iter().filter(|_| ok) {
            self.accept(*id, tokens.len(), true);
        }
        ok
    }
}
