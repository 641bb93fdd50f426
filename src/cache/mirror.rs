//! A cache whose sequences another rank keeps: that rank decides which pages there are and what they are for, and tells of each step
//! what this cache needs to know. So a fork, a prefix that was found, a window or a rollback is the business of one rank alone.

use super::table::sequence::Sequence;
use super::{PageCopy, PagedKvCache, SeqId, SeqTable};
use crate::error::{ErrorKind, Result};
use crate::kv::tables::Region;

/// A sequence as ranks tell each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct MirroredSequence {
    pub(crate) pages: Vec<u32>,
    /// As [`Sequence`] has them: freed, kept, window, len, reserved.
    pub(crate) numbers: [u32; 5],
}

/// What a cache needs of another for a step, or a call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Mirror {
    pub(crate) sequences: Vec<MirroredSequence>,
    /// Pages to be copied before: groups, one after the other.
    pub(crate) copies: Vec<Vec<PageCopy>>,
}

impl PagedKvCache {
    /// Keeps in mind which pages it copies, for [`PagedKvCache::told`].
    pub(crate) fn with_journal(mut self) -> Self {
        self.journal = Some(Vec::new());
        self
    }

    /// What other ranks are to be told of these sequences, and of pages copied since they were last told.
    pub(crate) fn told(&mut self, ids: &[SeqId]) -> Result<Mirror> {
        let sequences = ids.iter().map(|id| self.table.told(*id)).collect::<Result<_>>()?;
        Ok(Mirror { sequences, copies: self.journal.as_mut().map(std::mem::take).unwrap_or_default() })
    }

    /// Takes the sequences of another rank's cache of as many pages of the same size in the place of its own, after the copies. Their
    /// ids are those of the sequences of the call before, in order.
    ///
    /// Errors: [`ErrorKind::Argument`] for what no such cache has; those of the device.
    pub(crate) fn mirror(&mut self, mirror: &Mirror) -> Result<Vec<SeqId>> {
        let is_page = |page: u32| (page as usize) < self.pages.count;
        for PageCopy { source, target } in mirror.copies.iter().flatten() {
            if !is_page(*source) || !is_page(*target) {
                let why = format!("{source} to {target}, of {} pages", self.pages.count);
                return Err(ErrorKind::argument("copies", why));
            }
        }
        let ids = self.table.mirror(&mirror.sequences, self.pages.count)?;
        for copies in &mirror.copies {
            self.copy.run(&self.gpu, &self.slabs.layers, copies)?;
        }
        Ok(ids)
    }
}

impl SeqTable {
    fn told(&self, id: SeqId) -> Result<MirroredSequence> {
        let Sequence { pages, freed, kept, window, len, reserved, .. } = self.sequence(id)?;
        // Pages and tokens are within 32 bits. A window that is longer than any sequence sees all of it.
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(MirroredSequence { pages: pages.to_vec(), numbers: [*freed, *kept, *window, *len, *reserved].map(number) })
    }

    fn mirror(&mut self, sequences: &[MirroredSequence], pages: usize) -> Result<Vec<SeqId>> {
        for told in sequences {
            let sequence = told.sequence();
            let tokens = sequence.len.saturating_add(sequence.reserved);
            let fits = told.pages.len() == sequence.pages_of(tokens, self.page_size)
                && told.pages.iter().all(|page| (*page as usize) < pages)
                && sequence.freed <= tokens / self.page_size
                && u32::try_from(tokens).is_ok();
            if !fits {
                let why =
                    format!("{} pages for {:?} (freed, kept, window, len, reserved)", told.pages.len(), told.numbers);
                return Err(ErrorKind::argument("sequences", why));
            }
        }
        while self.slots.len() < sequences.len() {
            self.slots.push(super::table::Slot::default());
        }
        let mut ids = Vec::with_capacity(sequences.len());
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let Some(told) = sequences.get(index) else {
                slot.sequence = None;
                self.tables.give_back(std::mem::take::<Region>(&mut slot.region));
                continue;
            };
            // What stays of its pages is in the device's page table.
            let mut pages = slot.sequence.take().map(|sequence| sequence.pages).unwrap_or_default();
            let same = pages.iter().zip(&told.pages).take_while(|(a, b)| a == b).count();
            drop(pages.cut(same..));
            pages.extend(told.pages[same..].iter().copied());
            slot.sequence = Some(Sequence { pages, ..told.sequence() });
            ids.push(SeqId { table: self.id, slot: index as u32, generation: slot.generation });
            // far fewer than 2^32
        }
        let reserved: Vec<(SeqId, usize)> = ids.iter().map(|id| (*id, 0)).collect();
        self.write_tables(&reserved);
        self.changed();
        Ok(ids)
    }
}

impl MirroredSequence {
    /// Without its pages.
    fn sequence(&self) -> Sequence {
        let [freed, kept, window, len, reserved] = self.numbers.map(|n| n as usize);
        Sequence { freed, kept, window, len, reserved, ..Sequence::default() }
    }
}
