//! The calls of `machine_tests.rs` that do more than one thing, on table and model.

use std::collections::{HashMap, HashSet};

use super::{Should, World};
use crate::cache::table::SeqId;
use crate::cache::PageCopy;
use crate::kv::view::KvSource;

impl World {
    /// The sequences meant, each once but for lists of three, which may repeat one.
    pub(super) fn resolve<T: Clone>(&self, list: &[(usize, T)]) -> Vec<(SeqId, T)> {
        let mut resolved: Vec<(SeqId, T)> = Vec::new();
        for (index, what) in list {
            let Some(id) = self.at(*index).map(|at| self.sequences[at].0) else { continue };
            if list.len() == 3 || resolved.iter().all(|(other, _)| *other != id) {
                resolved.push((id, what.clone()));
            }
        }
        resolved
    }

    pub(super) fn truncate(&mut self, at: usize, len: usize, discard: bool) -> bool {
        let free = self.table.stats().free;
        let pages = self.table.page_table(self.sequences[at].0).unwrap_or_default().to_vec();
        let found = |page: &u32| self.table.store.index().contains(*page);
        let found: Vec<u32> = pages.into_iter().filter(found).collect();
        let (id, should) = &mut self.sequences[at];
        let id = *id;
        let page_size = self.page_size;
        // Before what is gone, or so far past it that the window is.
        let held = |should: &Should| {
            let gap = should.gap(page_size);
            len <= gap.start || should.first_seen(len) / page_size * page_size >= gap.end
        };
        let ok = should.as_ref().is_some_and(|should| len <= should.tokens.len() && held(should));
        let result = if discard { self.table.discard(id, len) } else { self.table.truncate(id, len) };
        assert_eq!(result.is_ok(), ok, "{result:?}");
        if let Some(should) = should.as_mut().filter(|_| ok) {
            should.tokens.truncate(len);
            should.drafts.clear();
            if len <= should.gap(page_size).start {
                self.seen.cut_before_gap += usize::from(should.passed > 0 && len > 0);
                should.passed = 0;
            }
        }
        if ok && discard {
            self.check_discarded(id, &found, free);
        }
        ok
    }

    /// Pages that could be found, with tokens that were cut off: no one finds them any more, unless another holds them.
    fn check_discarded(&mut self, id: SeqId, found: &[u32], free: usize) {
        // What was behind them in the index is gone, too.
        self.gave_up = true;
        let full = self.table.len(id).unwrap() / self.page_size;
        let kept = self.table.page_table(id).unwrap();
        let (kept, tail) = (&kept[..full.min(kept.len())], kept.get(full));
        for page in found.iter().filter(|page| !kept.contains(page)) {
            let others = self.table.store.pages.holders(*page) - usize::from(tail == Some(page));
            assert!(others > 0 || !self.table.store.index().contains(*page), "page {page} was discarded");
            self.seen.discarded += usize::from(others == 0);
        }
        assert!(self.table.stats().free >= free);
    }

    /// Returns the pages taken, or none where there were too few.
    pub(super) fn save_and_load(&mut self, at: usize) -> Option<usize> {
        let (id, should) = self.sequences[at].clone();
        let saved = self.table.to_save(id);
        assert_eq!(saved.is_ok(), should.is_some());
        let (saved, should, size) = (saved.ok()?, should?, self.page_size);
        let (len, gap) = (should.tokens.len(), should.gap(size));
        assert_eq!((saved.len, saved.window, &saved.gap), (len, should.window, &gap));
        let held = should.pages(len, size);
        let slot = |pages: &[u32], position: usize| {
            let place = held.iter().position(|page| *page == position / size)?;
            Some(pages[place] as usize * size + position % size)
        };
        let pages = self.table.page_table(id).unwrap();
        let rows: Vec<(usize, u64)> =
            (0..len).filter_map(|position| Some((position, self.memory[slot(pages, position)?]))).collect();
        assert_eq!(rows.len(), saved.rows());

        let available = self.table.stats().available();
        let new = self.table.insert_saved(&saved);
        let reserved = if len == 0 { Ok(Vec::new()) } else { self.table.reserve(&[new], len) };
        assert_eq!(reserved.is_ok(), held.len() <= available, "{reserved:?}");
        if reserved.is_err() {
            self.table.remove(new).unwrap();
            return None;
        }
        let pages = self.table.page_table(new).unwrap();
        rows.iter().for_each(|(position, row)| self.memory[slot(pages, *position).unwrap()] = *row);
        self.table.commit(&[new], len).unwrap();
        self.seen.loaded += usize::from(!gap.is_empty());
        let passed = if len == 0 { should.passed } else { should.passed.max(should.first_seen(len) / size) };
        self.add(new, Should { known: false, drafts: Vec::new(), passed, ..should });
        Some(held.len())
    }

    pub(super) fn match_prefix(&mut self, tokens: &[u32], salt: u64) {
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
    pub(super) fn reserve(&mut self, wanted: &[(usize, Vec<u32>)], undo: bool) -> (bool, usize) {
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

    /// What a plan does: brings the device's page tables up to date, and finds there those of a sequence.
    fn plan(&mut self, id: SeqId) {
        let resident = self.table.resident(&[id]).unwrap().unwrap();
        let (words, array, version) = &mut self.tables;
        let tables = resident.tables;
        words.resize(tables.words().len(), u32::MAX);
        let parts = if *array == tables.id() { tables.missing(*version) } else { tables.all() };
        for part in parts {
            words[part.clone()].copy_from_slice(&tables.words()[part]);
        }
        (*array, *version) = (tables.id(), tables.version());
        let pages = self.table.page_table(id).unwrap();
        assert_eq!(words[resident.batch.sequences[0].page_table_first as usize..][..pages.len()], *pages);
        assert!(pages.iter().all(|page| *page <= resident.most_page) && resident.batch.page_table.is_empty());
    }

    /// What the kernels do: each new token to its slot.
    fn write_drafts(&mut self, id: SeqId) {
        // Not at every step, as a device is not always the same.
        if !self.salts.is_multiple_of(3) {
            self.plan(id);
        }
        let batch = self.table.batch(&[id]).unwrap();
        let should = self.get(id).clone();
        let new = &should.content()[should.tokens.len()..];
        assert_eq!(batch.slots.len(), new.len());
        for (slot, content) in batch.slots.iter().zip(new) {
            self.memory[*slot as usize] = *content;
        }
    }

    pub(super) fn accept(&mut self, id: SeqId, n: usize, told: bool) {
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

    pub(super) fn commit_tokens(&mut self, accepted: &[(usize, usize)]) -> bool {
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
