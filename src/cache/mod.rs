//! The paged KV cache: sequences, their pages, and the pools that hold them.
//!
//! A step is [`PagedKvCache::reserve`], then [`PagedKvCache::append`] and a decode per layer, then [`PagedKvCache::commit`].
//! Sequences are forked, found by their first tokens, cut, saved and loaded; a call that fails changes nothing.

mod copy;
mod file;
mod kept;
mod layer_ropes;
#[cfg(feature = "model")]
mod mirror;
mod options;
mod rebuild;
mod reserve;
mod sharing;
mod slabs;
mod step;
mod table;
mod wide;
mod window_pages;
mod window_pools;

pub use crate::io::Progress;
pub(crate) use copy::copy_spec;
pub(crate) use file::{pages_rows_spec, Direction};
pub use file::{saved_info, LoadedSequence, Save, SaveSequence, SavedInfo, SavedSequence};
#[cfg(feature = "model")]
pub(crate) use mirror::{Mirror, MirroredSequence};
pub use options::{CacheOptions, Pages};
pub use rebuild::EmptiedSequence;
pub(crate) use table::check_pages;
pub use table::{CacheStats, PageCopy, SeqId, SeqTable, SequenceOptions};
#[cfg(feature = "model")]
pub(crate) use window_pages::WindowPages;
#[cfg(feature = "model")]
pub(crate) use window_pools::WindowLayers;
#[cfg(test)]
pub(crate) use {copy::CopyParams, file::PageRowsParams};

use crate::error::{ErrorKind, Result};
use crate::kv::append::{frequencies_text, Append};
use crate::kv::layout::{KvView, StateLayout};
use crate::kv::turns::TokenShare;
use crate::kv::view::Resident;
use crate::kv::{HeadLayout, KvBatch, KvSource};
use crate::rope::{Rope, RopePairs};
use copy::CopyPages;
use layer_ropes::LayerRopes;
use slabs::{SlabLayout, SlabLimits, Slabs};
use std::sync::atomic::AtomicBool;
use step::{Step, StepBuffers};
use wide::Wide;
#[cfg(not(feature = "model"))]
use window_pools::WindowLayers;
use window_pools::WindowPools;

use crate::gpu::{DType, Gpu};

/// The KV cache of a model: pools on the device, sequences and page tables on the host.
///
/// A step is `reserve` (pages for the new tokens), `append` and decode per layer, `commit`. Whatever fails changes
/// nothing, and whatever changes a sequence makes earlier plans stale.
///
/// Sequences may share pages: those forked from others ([`PagedKvCache::fork`]) and those whose prompts begin alike
/// ([`PagedKvCache::match_prefix`]). Whoever first adds tokens to a shared page gets a copy of it.
pub struct PagedKvCache {
    gpu: Gpu,
    heads: HeadLayout,
    dtype: DType,
    layout: StateLayout,
    table: SeqTable,
    slabs: Slabs,
    pages: Pages,
    /// Where ranks divide sequences by context: which tokens of a page are here.
    share: Option<TokenShare>,
    grows: bool,
    append: Append,
    copy: CopyPages,
    inv_freq: Vec<f32>,
    layer_ropes: LayerRopes,
    wide: Option<Wide>,
    /// Layers that have pools of their own, of fewer pages.
    windows: Option<WindowPools>,
    step: Option<Step>,
    step_buffers: StepBuffers,
    /// Whether tokens were committed of which a browser has not yet said that their rows are written.
    unsure: AtomicBool,
    /// Pages copied, by calls, for other ranks to be told of; none where there are none.
    journal: Option<Vec<Vec<PageCopy>>>,
}

/// Layers of a cache, at most.
const MOST_LAYERS: usize = 1 << 16;
/// Tokens of a step before its buffers have to grow.
const STEP_TOKENS: usize = 256;

impl PagedKvCache {
    /// Allocates the pools and compiles the kernels; nothing is allocated later but for steps of more than 256 tokens, for more
    /// than 256 pages to copy in one, and where the cache grows.
    ///
    /// A layer's pages are one buffer where the device can bind so large a one, else up to
    /// [`Capabilities::max_slabs`](crate::Capabilities) slabs, which kernels tell apart at some cost.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for zero sizes; [`ErrorKind::Shape`] for a rope of another width than
    /// [`HeadLayout::rotated_dim`]; [`ErrorKind::TooLarge`] where one layer's pages exceed what the device can bind in slabs
    /// ([`Capabilities::max_binding_bytes`](crate::Capabilities)); [`ErrorKind::OutOfMemory`]; [`ErrorKind::DType`] for U32, and
    /// for a layout with wide channels ([`HeadLayout::gqa_wide`]) in F32, F16 or BF16. Caches of those hold rows as they come;
    /// for I8 and I4 see [`StateLayout`].
    pub fn new(gpu: &Gpu, heads: HeadLayout, options: CacheOptions) -> Result<Self> {
        Self::of_share(gpu, heads, options, (None, None))
    }

    /// [`PagedKvCache::new`], with a rank's part of each page in the pools (`pages.size` is still that of all ranks: of their page tables),
    /// or with fewer pages in those of some layers, not both.
    ///
    /// Errors: as there.
    pub(crate) fn of_share(
        gpu: &Gpu,
        heads: HeadLayout,
        options: CacheOptions,
        (share, windows): (Option<TokenShare>, Option<WindowLayers>),
    ) -> Result<Self> {
        let CacheOptions { dtype, pages, grows, rope } = options;
        // Checks the pages' number and size before anything is made of them.
        check_pages(["pages.count", "pages.size"], pages.count, pages.size)?;
        if pages.layers == 0 || pages.layers > MOST_LAYERS {
            let why = format!("{} is not in 1..={MOST_LAYERS}", pages.layers);
            return Err(ErrorKind::argument("pages.layers", why));
        }
        let Rope { inv_freq, pairs } = rope.unwrap_or_default();
        let own_size = share.map_or(pages.size, |share| share.run());
        let append = Append::new(gpu, heads, dtype, own_size, pairs)?;
        if 2 * inv_freq.len() != append.rotated_dim() {
            return Err(ErrorKind::shape("inv_freq", &[inv_freq.len()], frequencies_text(&heads, pairs)));
        }
        let layout = StateLayout::new(&heads, dtype);
        let page_words = own_size * layout.row_words(heads.groups());
        let copy = CopyPages::new(gpu, page_words)?;
        let cut = SlabLayout::new(SlabLimits::of(gpu.capabilities()), pages.count, 16 * page_words as u64, grows)?;
        let table = SeqTable::with_slabs(pages.count, pages.size, cut.slab_pages)?;
        let whole = windows.as_ref().map_or(pages.layers, WindowLayers::others);
        let slabs = Slabs::new(gpu, cut, whole, if grows { 1 } else { cut.slabs() })?;
        let windows = windows.map(|layers| WindowPools::new(gpu, layers, 16 * page_words as u64)).transpose()?;
        let step_buffers = StepBuffers::new(gpu, STEP_TOKENS, (append.rotated_dim().max(2), 1))?;
        let this = Self {
            gpu: gpu.clone(),
            heads,
            dtype,
            layout,
            table,
            slabs,
            pages,
            share,
            grows,
            append,
            copy,
            inv_freq,
            layer_ropes: LayerRopes::default(),
            wide: None,
            windows,
            step: None,
            step_buffers,
            unsure: AtomicBool::new(false),
            journal: None,
        };
        let layer = this.layer(0)?;
        this.append.prepare(&this.gpu, &layer)?;
        this.copy.prepare(&this.gpu, layer.pool.buffers().len())?;
        Ok(this)
    }

    /// Compiles what copies pages, which a cache of a session does not before the first copy.
    #[cfg(feature = "model")]
    pub(crate) fn prepare_copies(&self) -> Result<()> {
        self.copy.prepare(&self.gpu, self.layer(0)?.pool.buffers().len())
    }

    /// Adds an empty sequence that will share no prefix. See [`PagedKvCache::match_prefix`].
    pub fn insert(&mut self) -> SeqId {
        self.table.insert()
    }

    /// Removes a sequence and gives up its pages; those whose tokens are known are kept until their room is needed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::UnknownSequence`].
    pub fn remove(&mut self, id: SeqId) -> Result<()> {
        self.table.remove(id)?;
        self.forget_losses();
        Ok(())
    }

    /// Committed tokens of a sequence.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::UnknownSequence`].
    pub fn len(&self, id: SeqId) -> Result<usize> {
        self.table.len(id)
    }

    /// As [`SeqTable::reserved`].
    pub(crate) fn reserved(&self, id: SeqId) -> Result<usize> {
        self.table.reserved(id)
    }

    /// As [`SeqTable::check_ids`].
    pub(crate) fn check_ids(&self, ids: &[SeqId]) -> Result<()> {
        self.table.check_ids(ids)
    }

    /// Keeps the first `n` reserved tokens of each sequence and gives back the rest of the reservation. Sends what is
    /// recorded for them, if that has not been sent.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] where fewer are reserved, and as [`PagedKvCache::reserve`];
    /// [`ErrorKind::CommandsLost`] where commands that were to write the cache are lost, by whose fault it may be: give up
    /// all reservations (`n` of 0, [`PagedKvCache::truncate`], [`PagedKvCache::remove`]) and begin the step again. What an app
    /// recorded in a pass of its own it has to look after itself. In a browser such an error may come only with the next result
    /// that is read; if tokens were committed before, the cache is refused until [`PagedKvCache::rebuild`].
    pub fn commit(&mut self, ids: &[SeqId], n: usize) -> Result<()> {
        if n > 0 {
            self.expect_written()?;
        }
        self.table.commit(ids, n)?;
        self.forget_losses();
        Ok(())
    }

    /// Cuts a sequence to its first `len` committed tokens and drops any reservation.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] where it has fewer, [`ErrorKind::UnknownSequence`].
    pub fn truncate(&mut self, id: SeqId, len: usize) -> Result<()> {
        self.check_cut(id, len)?;
        self.table.truncate(id, len)?;
        self.forget_losses();
        Ok(())
    }

    /// How full the cache is, and what sharing does for it.
    pub fn stats(&self) -> CacheStats {
        let stats = self.table.stats();
        let bytes = (stats.used + stats.evictable) as u64 * self.page_bytes() + self.window_bytes();
        CacheStats { bytes, ..stats }
    }

    /// What kernels see of one layer. A view stays good while sequences change; a plan does not.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for a layer that is not there.
    pub fn layer(&self, layer: usize) -> Result<KvView> {
        let layers = self.pages.layers;
        let unknown = || ErrorKind::argument("layer", format!("{layer} is not among the {layers} layers"));
        let pool = self.pool(layer).ok_or_else(unknown)?;
        Ok(KvView {
            pool: pool.clone(),
            heads: self.heads,
            dtype: self.dtype,
            page_size: self.own_page_size(),
            wide: self.wide.as_ref().and_then(|wide| wide.layers.get(layer).cloned()),
            live_generation: self.table.live_generation(),
        })
    }

    /// The head layout of the cached rows.
    pub fn heads(&self) -> &HeadLayout {
        &self.heads
    }

    /// Element type of the cached rows.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The options that another cache like this one is made with.
    pub fn options(&self) -> CacheOptions {
        let pairs = self.append.rotation();
        let rope = (pairs != RopePairs::None).then(|| Rope { inv_freq: self.inv_freq.clone(), pairs });
        CacheOptions { dtype: self.dtype, pages: self.pages, grows: self.grows, rope }
    }

    /// Pages, tokens per page and layers.
    pub fn pages(&self) -> Pages {
        self.pages
    }

    /// Bytes of one token over all layers, padding included.
    pub fn token_bytes(&self) -> usize {
        16 * self.layout.row_words(self.heads.groups()) * self.pages.layers
    }

    /// Bytes of one page over all layers, without those that have pools of their own for a window
    /// ([`SessionOptions::window_pools`](crate::model::SessionOptions)); of a rank's cache by context those of its tokens of the page.
    pub fn page_bytes(&self) -> u64 {
        self.layer_page_bytes() * self.slabs.layers.len() as u64
    }

    /// Bytes of a page in one layer.
    fn layer_page_bytes(&self) -> u64 {
        (16 * self.layout.row_words(self.heads.groups()) * self.own_page_size()) as u64
    }

    /// Tokens of a page that are in the pools here.
    pub(crate) fn own_page_size(&self) -> usize {
        self.share.map_or(self.pages.size, |share| share.run())
    }

    /// Where the pools have a rank's part of each page: what planners are to see of its sequences, and which tokens are here.
    pub(crate) fn shared_out(&self) -> Option<(&SeqTable, TokenShare)> {
        self.share.map(|share| (&self.table, share))
    }

    fn expect_whole(&self) -> Result<()> {
        match self.share {
            Some(_) => {
                Err(ErrorKind::Unsupported { what: "a plan of a cache of which ranks have parts".into() }.into())
            }
            None => Ok(()),
        }
    }

    /// Bytes that are allocated for pages, over all layers. Those of a cache that grows change.
    pub fn pool_bytes(&self) -> usize {
        let windows = self.windows.as_ref().map_or(0, |windows| windows.slabs.bytes());
        usize::try_from(self.slabs.bytes() + windows).unwrap_or(usize::MAX)
    }
}

impl KvSource for PagedKvCache {
    type Id = SeqId;

    fn batch(&self, ids: &[SeqId]) -> Result<KvBatch> {
        self.expect_whole()?;
        self.table.batch(ids)
    }

    fn resident(&self, ids: &[SeqId]) -> Result<Option<Resident<'_>>> {
        self.expect_whole()?;
        self.table.resident(ids)
    }

    fn page_size(&self) -> usize {
        self.pages.size
    }

    fn generation(&self) -> u64 {
        self.table.generation()
    }
}

#[cfg(test)]
#[path = "table/tests/machine.rs"]
mod machine_tests;
