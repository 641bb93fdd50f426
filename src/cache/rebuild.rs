//! After the device is lost: the table lives on the host, the rows are gone.

use super::{PagedKvCache, SeqId, SeqTable};
use crate::cache::table::sequence::{Known, PageList, Sequence};
use crate::error::Result;
use crate::gpu::Gpu;

/// A sequence whose cached rows are gone. It is empty, and has its id still.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EmptiedSequence {
    /// The sequence.
    pub id: SeqId,
    /// Committed tokens that it had.
    pub len: usize,
    /// Those tokens, where the cache knew them: of sequences made by `match_prefix` and committed by `commit_tokens` alone.
    pub tokens: Option<Vec<u32>>,
}

impl SeqTable {
    /// Empties all sequences: their ids stay, their pages, reservations and pins go, and nothing is kept. Returns those that
    /// had tokens, the oldest first but where a new sequence took the place of a removed one.
    pub fn empty_all(&mut self) -> Vec<EmptiedSequence> {
        let ids: Vec<SeqId> = self.ids().collect();
        let mut emptied = Vec::new();
        for id in ids {
            let Ok(sequence) = self.sequence(id) else { continue };
            let (len, tokens) = (sequence.len, self.known_tokens(sequence));
            if len > 0 {
                emptied.push(EmptiedSequence { id, len, tokens });
            }
        }
        for sequence in self.sequences_mut() {
            let known = sequence.known.take().map(|known| Known { tail: Vec::new(), ..known });
            *sequence = Sequence { known, pages: PageList::default(), freed: 0, len: 0, reserved: 0, ..*sequence };
        }
        self.pins.clear();
        self.store = self.store.emptied(None);
        self.changed();
        emptied
    }

    /// All tokens of a sequence, if they are known.
    fn known_tokens(&self, sequence: &Sequence) -> Option<Vec<u32>> {
        let known = sequence.known.as_ref()?;
        let mut tokens = Vec::with_capacity(sequence.len);
        for page in &sequence.pages[..sequence.len / self.page_size] {
            tokens.extend_from_slice(self.store.index().tokens(*page)?);
        }
        tokens.extend_from_slice(&known.tail);
        Some(tokens)
    }
}

impl PagedKvCache {
    /// Makes the cache anew on another device, or on the same, when its device was lost ([`ErrorKind::DeviceLost`]): memory
    /// and kernels as [`PagedKvCache::new`] made them, rotation, wide channels and byte budget as they were. Sequences keep their ids and
    /// lose their tokens; those that had any are returned. Reservations, pins and what was kept go; forks share nothing
    /// any more. Views and plans from before are refused.
    ///
    /// Compute the tokens again as those of a prompt (where several sequences begin alike, with
    /// [`PagedKvCache::match_prefix`] and new ids), or [`PagedKvCache::load`] what was saved.
    ///
    /// # Errors
    ///
    /// As [`PagedKvCache::new`]; then the cache is as it was.
    ///
    /// [`ErrorKind::DeviceLost`]: crate::ErrorKind::DeviceLost
    pub fn rebuild(&mut self, gpu: &Gpu) -> Result<Vec<EmptiedSequence>> {
        let windows = self.windows.as_ref().map(|windows| windows.layers.clone());
        let mut fresh = Self::of_share(gpu, self.heads, self.options(), (None, windows))?;
        if let Some(wide) = &self.wide {
            fresh = fresh.with_wide_channels(&wide.channels)?;
        }
        fresh = fresh.with_same_layer_ropes(self)?;
        let emptied = self.table.empty_all();
        // The other device may cut the pages into other slabs.
        self.table.store = self.table.store.emptied(Some(fresh.slabs.slab_pages()));
        std::mem::swap(&mut fresh.table, &mut self.table);
        // A view of the old memory must not be taken for one of the new.
        fresh.table.disown_views();
        fresh.forget_losses();
        *self = fresh;
        Ok(emptied)
    }
}
