//! Blocks of cached tokens, out of their pages and back into them. Kernel: `shaders/kv/pages_rows.wgsl`.

use super::format::RowBlock;
use crate::cache::PagedKvCache;
use crate::error::Result;
use crate::gpu::{number, part, Access, Buffer, DType, Gpu, HostBuffer, KernelSpec, Reading, Run};
use crate::kv::layout::{KvView, StateLayout};
use crate::kv::pool::PoolKernel;
use crate::kv::HeadLayout;

/// Which way rows go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    FromPages,
    ToPages,
}

/// Moves blocks of one layout and dtype in one direction: by buffer copies where pages are large, else by a kernel, or on
/// software GPUs through pages in host memory.
///
/// A copy is of a run, one page's part of one plane. Where that is 4 KiB or more of a state, a block of 1 MiB is a few hundred
/// commands at most, each a memcpy on software GPUs and a microsecond or two on others. At page size 1 it would be thousands;
/// the kernel is one dispatch at any page size. On a software GPU it takes the cores that checksums and files need, 18 ns
/// for 16 bytes (lavapipe): there whole pages are copied, neighbours together, and the host sorts their rows by memcpy.
pub(crate) struct PageRows {
    way: Way,
    layout: StateLayout,
    groups: usize,
    /// One block, as a page of its tokens; or the pages that it is in.
    block: Buffer,
    /// Of the sequence.
    pages: Vec<u32>,
    /// For what the host sorts.
    sorted: Vec<u8>,
}

/// Where the rows of a block lie in its pages, that were copied whole.
pub(crate) struct Unsorted {
    runs: Vec<Run>,
    /// Bytes of the block.
    size: u64,
}

enum Way {
    Copies,
    Kernel {
        kernel: PoolKernel,
        /// (2 + pages) u32: first token of a block, one past its last, then the sequence's pages
        places: Buffer,
    },
    Host,
}

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WayKind {
    Copies,
    Kernel,
    Host,
}

impl WayKind {
    fn of(cache: &PagedKvCache) -> WayKind {
        // Copies are between two buffers; the kernel finds the slabs by itself.
        if cache.pools().any(|pool| pool.buffers().len() > 1) {
            return WayKind::Kernel;
        }
        match 16 * cache.own_page_size() * cache.layout.state_words >= COPIED_BYTES {
            true => WayKind::Copies,
            false if cache.gpu.capabilities().is_software() => WayKind::Host,
            false => WayKind::Kernel,
        }
    }
}

/// Runs of so many bytes are copied.
const COPIED_BYTES: usize = 4 << 10;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct PageRowsParams {
    pub(crate) page_shift: u32,
    pub(crate) slab_pages: u32,
}

impl PageRows {
    /// For blocks of up to `block_tokens` tokens, of sequences of up to `most_len`.
    pub(crate) fn new(
        cache: &PagedKvCache,
        direction: Direction,
        block_tokens: usize,
        most_len: usize,
    ) -> Result<Self> {
        Self::by(WayKind::of(cache), cache, direction, (block_tokens, most_len))
    }

    fn by(
        choice: WayKind,
        cache: &PagedKvCache,
        direction: Direction,
        (block_tokens, most_len): (usize, usize),
    ) -> Result<Self> {
        let (gpu, heads, page_size) = (&cache.gpu, &cache.heads, cache.own_page_size());
        let way = match choice {
            WayKind::Copies => Way::Copies,
            WayKind::Host => Way::Host,
            WayKind::Kernel => {
                let kernel = PoolKernel::new(gpu, pages_rows_spec(heads, cache.dtype, direction))?;
                let pages = most_len.div_ceil(page_size) as u64;
                Way::Kernel { kernel, places: gpu.create_buffer("pages of a sequence", 4 * (pages + 2))? }
            }
        };
        let (layout, groups) = (cache.layout, heads.groups());
        let tokens = block_tokens.min(most_len.max(1));
        // A block begins and ends inside a page at worst.
        let tokens = if choice == WayKind::Host { (tokens.div_ceil(page_size) + 1) * page_size } else { tokens };
        let block = gpu.create_buffer("saved block", 16 * (tokens * layout.row_words(groups)) as u64)?;
        Ok(PageRows { way, layout, groups, block, pages: Vec::new(), sorted: Vec::new() })
    }

    /// Bytes of the largest block, and of the host memory that one is read into.
    pub(crate) fn most_bytes(&self) -> u64 {
        self.block.size_bytes()
    }

    /// Names the sequence of the blocks that follow.
    pub(crate) fn sequence(&mut self, gpu: &Gpu, pages: &[u32]) -> Result<()> {
        self.pages = pages.to_vec();
        match &self.way {
            Way::Copies | Way::Host => Ok(()),
            Way::Kernel { places, .. } => gpu.write(places, 8, bytemuck::cast_slice(pages)),
        }
    }

    /// Sends a block of `layer` on its way into host memory, after all that was recorded before. Where its rows will lie in what
    /// arrives, if not in the order of a block, it says too: by then the next block, of other pages, may be on its way.
    pub(crate) fn start_read(
        &self,
        gpu: &Gpu,
        layer: &KvView,
        block: &RowBlock,
        into: HostBuffer,
    ) -> Result<(Reading, Option<Unsorted>)> {
        let size = self.bytes(block);
        let reading = match &self.way {
            Way::Copies => gpu.start_read(&layer.pool.buffers()[0], into, size, &self.runs(layer.page_size, block)),
            Way::Host => {
                let runs = self.image_runs(layer.page_size, block);
                let image = self.image_bytes(layer.page_size, block);
                let reading =
                    gpu.start_read(&layer.pool.buffers()[0], into, image, &self.page_runs(layer.page_size, block))?;
                return Ok((reading, Some(Unsorted { runs, size })));
            }
            Way::Kernel { kernel, places } => {
                self.dispatch(gpu, (kernel, places), layer, block)?;
                gpu.start_read(&self.block, into, size, &[Run { from: 0, to: 0, size }])
            }
        };
        Ok((reading?, None))
    }

    /// The block in what has arrived in host memory.
    pub(crate) fn read<'a>(&'a mut self, unsorted: Option<&Unsorted>, arrived: &'a [u8]) -> &'a [u8] {
        let Some(Unsorted { runs, size }) = unsorted else { return arrived };
        self.sorted.resize(*size as usize, 0);
        runs.iter().for_each(|run| copy_run(arrived, &mut self.sorted, *run));
        &self.sorted
    }

    /// Submits the move of a block's bytes into the pages of `layer`.
    pub(crate) fn write(&mut self, gpu: &Gpu, layer: &KvView, block: &RowBlock, bytes: &[u8]) -> Result<()> {
        let back = |run: Run| Run { from: run.to, to: run.from, ..run };
        if let Way::Host = &self.way {
            let mut image = std::mem::take(&mut self.sorted);
            image.resize(self.image_bytes(layer.page_size, block) as usize, 0);
            for run in self.image_runs(layer.page_size, block) {
                copy_run(bytes, &mut image, back(run));
            }
            self.sorted = image;
            gpu.write(&self.block, 0, &self.sorted)?;
            let runs: Vec<Run> = self.page_runs(layer.page_size, block).into_iter().map(back).collect();
            return gpu.copy(&self.block, &layer.pool.buffers()[0], &runs);
        }
        gpu.write(&self.block, 0, bytes)?;
        match &self.way {
            Way::Kernel { kernel, places } => {
                self.dispatch(gpu, (kernel, places), layer, block)?;
                gpu.submit()
            }
            _ => {
                let runs: Vec<Run> = self.runs(layer.page_size, block).into_iter().map(back).collect();
                gpu.copy(&self.block, &layer.pool.buffers()[0], &runs)
            }
        }
    }

    fn bytes(&self, block: &RowBlock) -> u64 {
        16 * (block.tokens * self.layout.row_words(self.groups)) as u64
    }

    /// Bytes of the pages that the block is in.
    fn image_bytes(&self, page_size: usize, block: &RowBlock) -> u64 {
        let pages = (block.first + block.tokens).div_ceil(page_size) - block.first / page_size;
        16 * (pages * page_size * self.layout.row_words(self.groups)) as u64
    }

    /// Where the block's tokens lie in the pool (from) and in the block (to), in bytes.
    fn runs(&self, page_size: usize, block: &RowBlock) -> Vec<Run> {
        self.runs_from(page_size, block, |page| self.pages.get(page).map_or(0, |page| *page as usize))
    }

    /// The same in the block's pages one after the other, by their ids.
    fn image_runs(&self, page_size: usize, block: &RowBlock) -> Vec<Run> {
        let (first_page, mut ranks) = (block.first / page_size, Vec::new());
        for (rank, (_, page)) in self.sorted_pages(page_size, block).into_iter().enumerate() {
            ranks.resize(ranks.len().max(page - first_page + 1), 0);
            ranks[page - first_page] = rank;
        }
        self.runs_from(page_size, block, |page| ranks.get(page - first_page).copied().unwrap_or(0))
    }

    /// The pages that the block is in, by their ids: those, and their places in the sequence.
    fn sorted_pages(&self, page_size: usize, block: &RowBlock) -> Vec<(u32, usize)> {
        let pages = block.first / page_size..(block.first + block.tokens).div_ceil(page_size);
        let mut sorted: Vec<_> = pages.map(|page| (self.pages.get(page).copied().unwrap_or(0), page)).collect();
        sorted.sort_unstable();
        sorted
    }

    fn runs_from(&self, page_size: usize, block: &RowBlock, place: impl Fn(usize) -> usize) -> Vec<Run> {
        let row_words = self.layout.row_words(self.groups);
        let end = block.first + block.tokens;
        let mut runs = Vec::new();
        for (before, words) in self.planes() {
            let mut token = block.first;
            while token < end {
                let tokens = (page_size - token % page_size).min(end - token);
                let page = place(token / page_size);
                let from = page * page_size * row_words + page_size * before + token % page_size * words;
                let to = block.tokens * before + (token - block.first) * words;
                runs.push(Run { from: 16 * from as u64, to: 16 * to as u64, size: 16 * (tokens * words) as u64 });
                token += tokens;
            }
        }
        runs
    }

    /// Words before each plane in a row, and its own.
    fn planes(&self) -> impl Iterator<Item = (usize, usize)> {
        std::iter::repeat_n(self.layout.state_words, self.groups)
            .chain([self.layout.rope_words, self.layout.scale_words])
            .scan(0, |before, words| Some((std::mem::replace(before, *before + words), words)))
            .filter(|(_, words)| *words > 0)
    }

    /// Where the block's tokens lie in the pool (from) and in its pages one after the other by their ids (to), in bytes: whole
    /// pages, neighbours together, and of pages that it shares with other blocks its own part of each plane.
    fn page_runs(&self, page_size: usize, block: &RowBlock) -> Vec<Run> {
        let page_bytes = 16 * (page_size * self.layout.row_words(self.groups)) as u64;
        let end = block.first + block.tokens;
        let mut runs: Vec<Run> = Vec::new();
        for (rank, (id, page)) in self.sorted_pages(page_size, block).into_iter().enumerate() {
            let (from, to) = (u64::from(id) * page_bytes, rank as u64 * page_bytes);
            let (first, last) = (block.first.max(page * page_size), end.min((page + 1) * page_size));
            if last - first == page_size {
                match runs.last_mut().filter(|run| run.from + run.size == from && run.to + run.size == to) {
                    Some(run) => run.size += page_bytes,
                    None => runs.push(Run { from, to, size: page_bytes }),
                }
                continue;
            }
            for (before, words) in self.planes() {
                let at = 16 * (page_size * before + first % page_size * words) as u64;
                runs.push(Run { from: from + at, to: to + at, size: 16 * ((last - first) * words) as u64 });
            }
        }
        runs
    }

    fn dispatch(
        &self,
        gpu: &Gpu,
        (kernel, places): (&PoolKernel, &Buffer),
        layer: &KvView,
        block: &RowBlock,
    ) -> Result<()> {
        // Not in the parameters, whose distinct values are kept for good.
        let tokens = [block.first as u32, (block.first + block.tokens) as u32];
        gpu.write(places, 0, bytemuck::cast_slice(&tokens))?;
        let slab_pages = layer.pool.slab_pages() as u32;
        let params = PageRowsParams { page_shift: layer.page_size.trailing_zeros(), slab_pages };
        let slabs = layer.pool.buffers();
        let mut buffers = vec![places, &slabs[0], &self.block];
        buffers.extend(&slabs[1..]);
        let across = self.layout.row_words(self.groups).div_ceil(8) as u32;
        let grid = (across, block.tokens.div_ceil(8) as u32, 1);
        let kernel = kernel.of(gpu, slabs.len())?;
        gpu.record(|pass| gpu.dispatch(pass, kernel, &params, &buffers, grid))
    }
}

/// One run between memories of the host, as far as both have it.
fn copy_run(from: &[u8], into: &mut [u8], run: Run) {
    let range = |first: u64| first as usize..(first + run.size) as usize;
    if let (Some(from), Some(into)) = (from.get(range(run.from)), into.get_mut(range(run.to))) {
        into.copy_from_slice(from);
    }
}

pub(crate) fn pages_rows_spec(heads: &HeadLayout, dtype: DType, direction: Direction) -> KernelSpec {
    let layout = StateLayout::new(heads, dtype);
    let moves = match direction {
        Direction::FromPages => part!("kv/slab_loads/1.wgsl"),
        Direction::ToPages => part!("kv/slab_stores/1.wgsl"),
    };
    let (way, pool, rows) = match direction {
        Direction::FromPages => (part!("kv/move_word/from_pages.wgsl"), Access::Read, Access::Write),
        Direction::ToPages => (part!("kv/move_word/to_pages.wgsl"), Access::Write, Access::Read),
    };
    KernelSpec {
        name: "pages_rows",
        consts: vec![
            ("GROUPS", number(heads.groups())),
            ("STATE_WORDS", number(layout.state_words)),
            ("ROPE_WORDS", number(layout.rope_words)),
            ("SCALE_WORDS", number(layout.scale_words)),
        ],
        parts: vec![part!("kv/slabs/1.wgsl"), moves, part!("kv/page.wgsl"), way, part!("kv/pages_rows.wgsl")],
        bindings: vec![Access::Read, pool, rows],
        workgroup_bytes: 0,
    }
}

#[cfg(test)]
#[path = "page_rows_tests.rs"]
mod tests;
