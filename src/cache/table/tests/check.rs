//! What must hold after every call of `machine_tests.rs`.

use std::collections::{HashMap, HashSet};

use super::{chain, Pinned, World};
use crate::cache::table::SeqId;
use crate::error::{ErrorKind, Result};
use crate::kv::view::KvSource;

impl World {
    /// Who holds each page, counted from page tables and pins alone.
    pub(super) fn holders(&self) -> HashMap<u32, usize> {
        let mut holders = HashMap::new();
        let tables = self.live().flat_map(|(id, _)| self.table.page_table(id).unwrap());
        for page in tables.chain(self.pins.values().flat_map(|pin| &pin.pages)) {
            *holders.entry(*page).or_insert(0) += 1;
        }
        holders
    }

    /// Whether one of these sequences is going to write to a page whose content is known.
    pub(super) fn forgotten(&self, ids: &[SeqId]) -> bool {
        let tail = |id: &SeqId| {
            let len = self.table.len(*id).ok()?;
            let freed = self.table.gap(*id).ok()?.len() / self.page_size;
            self.table.page_table(*id).ok()?.get(len / self.page_size - freed).copied()
        };
        ids.iter().filter_map(tail).any(|page| self.table.store.index().contains(page))
    }

    /// Page tables, lengths and holders.
    pub(super) fn state(&self) -> String {
        let mut holders: Vec<_> = self.holders().into_iter().collect();
        holders.sort_unstable();
        let sequences = self.live().map(|(id, _)| {
            let table = &self.table;
            (id, table.page_table(id).unwrap(), table.len(id).unwrap(), table.reserved(id).unwrap())
        });
        format!("{:?} {holders:?}", sequences.collect::<Vec<_>>())
    }

    /// Compares the table with the model, and looks after what must always hold.
    pub(in crate::cache::machine_tests) fn check(&self) {
        let stats = self.table.stats();
        let holders = self.holders();
        assert_eq!(stats.total, self.limit);
        assert_eq!(stats.used + stats.evictable + stats.free, stats.total, "{stats:?}");
        assert_eq!(stats.used, holders.len(), "leaked, or freed twice");
        assert_eq!(stats.shared, holders.values().filter(|holders| **holders > 1).count());
        assert!(holders.keys().all(|page| (*page as usize) < self.page_count));

        let (mut drafts, mut committed) = (HashSet::new(), HashSet::new());
        for (id, should) in &self.sequences {
            let Some(should) = should else {
                assert!(self.table.len(*id).is_err());
                continue;
            };
            assert_eq!(self.table.len(*id).unwrap(), should.tokens.len());
            assert_eq!(self.table.reserved(*id).unwrap(), should.drafts.len());
            let known = self.table.tokens(*id).unwrap();
            assert_eq!(known.as_ref(), Some(&should.tokens).filter(|_| should.known));
            let pages = self.table.page_table(*id).unwrap();
            let content = should.content();
            // Exactly these pages, in this order.
            let held = should.pages(content.len(), self.page_size);
            assert_eq!(pages.len(), held.len());
            assert_eq!(self.table.gap(*id).unwrap(), should.gap(self.page_size));
            for (position, content) in content.iter().enumerate() {
                let Some(place) = held.iter().position(|page| *page == position / self.page_size) else { continue };
                let slot = pages[place] as usize * self.page_size + position % self.page_size;
                assert_eq!(self.memory[slot], *content, "token {position} of sequence {id}");
                match position < should.tokens.len() {
                    true => drop(committed.insert(slot)),
                    false => assert!(drafts.insert(slot), "two sequences write to slot {slot}"),
                }
            }
        }
        assert!(drafts.is_disjoint(&committed), "a draft is visible to another sequence");
        for pin in self.pins.values() {
            for (position, content) in chain(pin.salt, pin.tokens.iter()).iter().enumerate() {
                let slot = pin.pages[position / self.page_size] as usize * self.page_size + position % self.page_size;
                assert_eq!(self.memory[slot], *content, "token {position} of a pin");
            }
        }
        self.check_batch().unwrap();
    }

    /// The batch of all sequences says what their page tables say.
    fn check_batch(&self) -> Result<()> {
        let ids: Vec<SeqId> = self.live().map(|(id, _)| id).collect();
        let batch = self.table.batch(&ids)?;
        assert_eq!(batch.generation, self.table.generation());
        let (mut first_page, mut first_token) = (0, 0);
        for ((id, should), view) in self.live().zip(&batch.sequences) {
            let pages = self.table.page_table(id)?;
            let (len, reserved) = (should.tokens.len(), should.drafts.len());
            assert_eq!(view.page_table_first as usize, first_page);
            assert_eq!(view.q_token_first as usize, first_token);
            let gap = should.gap(self.page_size);
            assert_eq!((view.gap_first as usize, view.gap_last as usize), (gap.start, gap.end));
            let held = should.pages(len + reserved, self.page_size);
            assert_eq!((view.q_len as usize, view.kv_len as usize), (reserved, len + reserved));
            assert_eq!(batch.page_table[first_page..][..pages.len()], *pages);
            for (token, position) in (first_token..).zip(len..len + reserved) {
                let place = held.iter().position(|page| *page == position / self.page_size).unwrap();
                let page = pages[place] as usize;
                let slot = page * self.page_size + position % self.page_size;
                assert_eq!((batch.slots[token], batch.positions[token]), (slot as u32, position as u32));
            }
            first_page += pages.len();
            first_token += reserved;
        }
        assert_eq!(
            (batch.page_table.len(), batch.tokens(), batch.positions.len()),
            (first_page, first_token, first_token)
        );
        Ok(())
    }

    /// The same call, in which the first, second, .. page cannot be had.
    pub(super) fn fail_everywhere(&mut self, calls: &[(SeqId, usize)], needed: usize) {
        for fail_after in (0..needed).filter(|_| self.inject) {
            let mut table = self.table.clone();
            table.store.pages.fail_after = Some(fail_after);
            let result = table.reserve_each(calls);
            assert!(matches!(result.unwrap_err().kind(), ErrorKind::CacheFull { .. }));
            let (after, before) = (table.stats(), self.table.stats());
            assert_eq!((after.used, after.shared), (before.used, before.shared));
            assert_eq!(after.free + after.evictable, before.free + before.evictable);
            assert_eq!(table.generation(), self.table.generation());
            let real = std::mem::replace(&mut self.table, table);
            let failed = self.state();
            self.check();
            self.table = real;
            self.seen.injected += 1;
            assert_eq!(failed, self.state());
        }
    }

    pub(super) fn pin(&mut self, at: usize) {
        let (id, should) = self.sequences[at].clone();
        assert_eq!(self.table.pin(id).is_ok(), should.is_some());
        let Some(should) = should else { return };
        let pages = self.table.pins[&id].clone();
        // All full pages of known tokens, and no other.
        let full = should.tokens.len() / self.page_size;
        assert!(if should.known { pages.len() == full } else { pages.len() <= full });
        assert_eq!(pages, self.table.page_table(id).unwrap()[..pages.len()]);
        let tokens = should.tokens[..pages.len() * self.page_size].to_vec();
        self.pins.insert(id, Pinned { pages, salt: should.salt, tokens });
    }
}
