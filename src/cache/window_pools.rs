//! The pools of layers with a window, and what a cache does with them: `window_pages.rs` says which pages are there.

use super::slabs::{SlabLayout, SlabLimits, Slabs};
use super::window_pages::{PlacesWanted, WindowPages};
use super::{PageCopy, PagedKvCache, SeqId, SeqTable};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::kv::pool::Pool;
use crate::kv::{KvBatch, KvSource};
use std::borrow::Cow;

/// Which layers of a cache have pools of their own, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WindowLayers {
    /// Of each layer, whether it is one.
    pub(crate) of_layers: Vec<bool>,
    /// The longest window among them.
    pub(crate) window: usize,
    /// Pages that each of their pools holds.
    pub(crate) pages: usize,
}

pub(super) struct WindowPools {
    pub(super) layers: WindowLayers,
    pub(super) slabs: Slabs,
    pub(super) pages: WindowPages,
}

impl WindowLayers {
    /// Layers that have pages of all tokens.
    pub(super) fn others(&self) -> usize {
        self.of_layers.iter().filter(|own| !**own).count()
    }
}

impl WindowPools {
    pub(super) fn new(gpu: &Gpu, layers: WindowLayers, page_bytes: u64) -> Result<Self> {
        let pages = WindowPages::new(layers.window, layers.pages);
        // Behind them one that holds zeros, for rows that are gone, and one that takes rows which nobody wants.
        let cut = SlabLayout::new(SlabLimits::of(gpu.capabilities()), layers.pages + 2, page_bytes, false)?;
        let count = layers.of_layers.len() - layers.others();
        Ok(WindowPools { slabs: Slabs::new(gpu, cut, count, cut.slabs())?, layers, pages })
    }

    /// The number of a layer among those that have pools here.
    fn number(&self, layer: usize) -> Option<usize> {
        let of_layers = &self.layers.of_layers;
        of_layers.get(layer).is_some_and(|own| *own).then(|| of_layers[..layer].iter().filter(|own| **own).count())
    }
}

/// A cache as planners see it for layers that have pools of their own.
pub(crate) struct WindowSource<'a> {
    table: &'a SeqTable,
    pages: &'a WindowPages,
}

impl KvSource for WindowSource<'_> {
    type Id = SeqId;

    /// What a window does not see is a gap.
    fn batch(&self, ids: &[SeqId]) -> Result<KvBatch> {
        let mut batch = self.table.new_tokens(ids)?;
        for (view, id) in batch.sequences.iter_mut().zip(ids) {
            let (gap, places) = self.pages.seen(self.table, *id)?;
            // no truncation: lengths and places are within 32 bits
            (view.gap_first, view.gap_last, view.page_table_first) = (0, gap as u32, batch.page_table.len() as u32);
            batch.page_table.extend(places);
        }
        Ok(batch)
    }

    fn page_size(&self) -> usize {
        self.table.page_size
    }

    fn generation(&self) -> u64 {
        self.table.generation()
    }
}

impl PagedKvCache {
    /// The cache as layers with pools of their own have it, if there are any.
    pub(crate) fn window_source(&self) -> Option<WindowSource<'_>> {
        self.windows.as_ref().map(|windows| WindowSource { table: &self.table, pages: &windows.pages })
    }

    /// The pool of a layer.
    pub(super) fn pool(&self, layer: usize) -> Option<&Pool> {
        let Some(windows) = &self.windows else { return self.slabs.layers.get(layer) };
        match windows.number(layer) {
            Some(number) => windows.slabs.layers.get(number),
            None => {
                let before = windows.layers.of_layers.get(..layer)?.iter().filter(|own| !**own).count();
                self.slabs.layers.get(before)
            }
        }
    }

    /// All pools.
    pub(super) fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.slabs.layers.iter().chain(self.windows.iter().flat_map(|windows| &windows.slabs.layers))
    }

    /// Makes room in the pools of layers with a window for what is reserved, and copies pages there.
    pub(super) fn reserve_places(&mut self, wanted: PlacesWanted<'_>) -> Result<()> {
        let Some(windows) = &mut self.windows else { return Ok(()) };
        let copies: Vec<PageCopy> = windows.pages.reserve(&self.table, wanted)?;
        self.copy.run(&self.gpu, &windows.slabs.layers, &copies)
    }

    /// Refuses to cut a sequence where its next token would see what is gone.
    pub(super) fn check_cut(&self, id: SeqId, len: usize) -> Result<()> {
        self.windows.as_ref().map_or(Ok(()), |windows| windows.pages.check_cut(&self.table, id, len))
    }

    /// Cuts a new sequence of a prefix to what it can go on from.
    pub(super) fn cut_to_usable(&mut self, id: SeqId) {
        let Some(windows) = &self.windows else { return };
        let Ok(pages) = self.table.page_table(id) else { return };
        let (found, usable) = (pages.len(), windows.pages.usable(pages, self.pages.size));
        if usable < found * self.pages.size {
            let lost = (found - usable / self.pages.size) as u64;
            (self.table.hits, self.table.misses) = (self.table.hits - lost, self.table.misses + lost);
            let cut = self.table.truncate(id, usable);
            debug_assert!(cut.is_ok(), "a sequence without a window is cut anywhere");
        }
    }

    /// The pages that these sequences have now from their committed tokens on, in the order of their tokens.
    pub(super) fn open_pages(&self, accepted: &[(SeqId, &[u32])]) -> Vec<Vec<u32>> {
        if self.windows.is_none() {
            return Vec::new();
        }
        let of = |id: SeqId, tokens: usize| {
            let len = self.table.len(id)?;
            let pages = self.table.page_table(id)?;
            Ok::<_, crate::Error>(WindowPages::between(pages, len..len + tokens, self.pages.size))
        };
        accepted.iter().map(|(id, tokens)| of(*id, tokens.len()).unwrap_or_default()).collect()
    }

    /// Hands places on where tokens were found to be those of other pages: `before` are those of [`PagedKvCache::open_pages`].
    pub(super) fn hand_places_on(&mut self, accepted: &[(SeqId, &[u32])], before: Vec<Vec<u32>>) {
        let Some(windows) = &mut self.windows else { return };
        for ((id, tokens), before) in accepted.iter().zip(before) {
            let (Ok(len), Ok(pages)) = (self.table.len(*id), self.table.page_table(*id)) else { continue };
            let now = WindowPages::between(pages, len - tokens.len()..len, self.pages.size);
            for (from, to) in before.into_iter().zip(now).filter(|(from, to)| from != to) {
                windows.pages.joined(&self.table, from, to);
            }
        }
    }

    /// The pages in the pool of a layer that rows of a sequence come from, or go `to`.
    pub(super) fn pages_in(&self, layer: usize, pages: &[u32], to: bool) -> Cow<'static, [u32]> {
        match self.windows.as_ref().filter(|windows| windows.number(layer).is_some()) {
            Some(windows) => {
                let absent = (windows.layers.pages + usize::from(to)) as u32; // no truncation: fewer than pages of the table
                windows.pages.all(pages, absent).into()
            }
            None => pages.to_vec().into(),
        }
    }

    /// Whether a layer has a pool of its own.
    pub(super) fn is_window_layer(&self, layer: usize) -> bool {
        self.windows.as_ref().is_some_and(|windows| windows.number(layer).is_some())
    }

    /// Whether layers with a window have pools of their own.
    pub(crate) fn has_window_pools(&self) -> bool {
        self.windows.is_some()
    }

    /// Bytes of pages that are in use there.
    pub(super) fn window_bytes(&self) -> u64 {
        let Some(windows) = &self.windows else { return 0 };
        let layers = windows.slabs.layers.len() as u64;
        windows.pages.used() as u64 * layers * self.layer_page_bytes()
    }
}
