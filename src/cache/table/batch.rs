//! What planner and kernels see of a table's sequences. Pure.

use super::{SeqId, SeqTable};
use crate::error::{Error, ErrorKind, Result};
use crate::kv::view::{KvBatch, KvSource, Resident, SeqView};

/// A step asks this several times. Its sequences are mostly in the order in which they were made: that needs no copy.
pub(super) fn check_distinct(ids: impl Iterator<Item = SeqId> + Clone) -> Result<()> {
    if ids.clone().zip(ids.clone().skip(1)).all(|(a, b)| a < b) {
        return Ok(());
    }
    let mut sorted: Vec<SeqId> = ids.collect();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(ErrorKind::RepeatedSequence { id: pair[0].number() }.into()),
        None => Ok(()),
    }
}

impl KvSource for SeqTable {
    type Id = SeqId;

    fn batch(&self, sequences: &[SeqId]) -> Result<KvBatch> {
        let mut batch = self.batch_in_tables(sequences)?;
        let pages = sequences.iter().map(|id| self.sequence(*id).map_or(0, |sequence| sequence.pages.len()));
        batch.page_table.reserve_exact(pages.sum());
        for (view, id) in batch.sequences.iter_mut().zip(sequences) {
            view.page_table_first = index_u32(batch.page_table.len())?;
            batch.page_table.extend_from_slice(&self.sequence(*id)?.pages);
        }
        Ok(batch)
    }

    fn resident(&self, sequences: &[SeqId]) -> Result<Option<Resident<'_>>> {
        if !self.resident {
            return Ok(None);
        }
        let batch = self.batch_in_tables(sequences)?;
        Ok(Some(Resident { batch, tables: &self.tables, most_page: self.store.pages.most_page() }))
    }

    fn page_size(&self) -> usize {
        self.page_size
    }

    fn generation(&self) -> u64 {
        self.generation.now()
    }
}

impl SeqTable {
    /// Refuses unknown and repeated sequences, as all calls do that take several.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::RepeatedSequence`], [`ErrorKind::UnknownSequence`].
    pub(crate) fn check_ids(&self, ids: &[SeqId]) -> Result<()> {
        check_distinct(ids.iter().copied())?;
        ids.iter().try_for_each(|id| self.sequence(*id).map(drop))
    }

    /// A batch for whoever needs its slots and positions, and no page tables.
    pub(crate) fn new_tokens(&self, ids: &[SeqId]) -> Result<KvBatch> {
        self.batch_in_tables(ids)
    }

    /// A batch whose page tables are in `tables`.
    fn batch_in_tables(&self, sequences: &[SeqId]) -> Result<KvBatch> {
        check_distinct(sequences.iter().copied())?;
        // One new token each, mostly: none of the arrays grows on the way.
        let most = sequences.len();
        let mut batch = KvBatch {
            sequences: Vec::with_capacity(most),
            slots: Vec::with_capacity(most),
            positions: Vec::with_capacity(most),
            generation: self.generation.now(),
            ..KvBatch::default()
        };
        for &id in sequences {
            let sequence = self.sequence(id)?;
            let region = self.slots[id.index()].region;
            debug_assert!(
                sequence.reserved == 0 || !self.resident || self.tables.holds(region, &sequence.pages),
                "sequence {id}"
            );
            let gap = sequence.gap(self.page_size);
            batch.sequences.push(SeqView {
                page_table_first: region.first(),
                q_token_first: index_u32(batch.slots.len())?,
                q_len: index_u32(sequence.reserved)?,
                kv_len: index_u32(sequence.tokens())?,
                gap_first: index_u32(gap.start)?,
                gap_last: index_u32(gap.end)?,
            });
            for position in sequence.len..sequence.tokens() {
                let page = sequence.pages[position / self.page_size - sequence.freed] as usize;
                batch.slots.push(index_u32(page * self.page_size + position % self.page_size)?);
                batch.positions.push(index_u32(position)?);
            }
        }
        Ok(batch)
    }
}

/// An index as kernels hold it. [`SeqTable::new`] keeps every length and slot inside 32 bits.
#[inline]
fn index_u32(index: usize) -> Result<u32> {
    u32::try_from(index).map_err(|_| past_32_bits(index))
}

/// Apart, so that what asks for an index in a loop stays small.
#[cold]
fn past_32_bits(index: usize) -> Error {
    ErrorKind::argument("sequences", format!("index {index} is past 32 bits"))
}
