//! Blocks of cached tokens, out of their pages and back into them. Kernel: `shaders/pages_rows.wgsl`.

use super::format::Block;
use super::PagedKvCache;
use crate::attention::layout::{KvView, StateLayout};
use crate::attention::pool::PoolKernel;
use crate::attention::HeadLayout;
use crate::error::Result;
use crate::gpu::{number, part, Access, Buffer, DType, Gpu, HostBuffer, KernelSpec, Reading, Run};

/// Which way rows go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    FromPages,
    ToPages,
}

/// Moves blocks of one layout and dtype in one direction: by buffer copies where pages are large, else by a kernel.
///
/// A copy is of a run, one page's part of one plane. Where that is 4 KiB or more of a state, a block of 1 MiB is a few hundred
/// commands at most, each a memcpy on software GPUs and a microsecond or two on others. At page size 1 it would be thousands;
/// the kernel is one dispatch at any page size, and slower than memcpy on software GPUs alone (lavapipe on two cores: 256 MiB
/// in 50 ms by copies of pages of 64, 130 to 300 ms by the kernel).
pub(super) struct PageRows {
    way: Way,
    layout: StateLayout,
    groups: usize,
    /// One block, as a page of its tokens.
    block: Buffer,
    /// Of the sequence.
    pages: Vec<u32>,
}

enum Way {
    Copies,
    Kernel {
        kernel: PoolKernel,
        /// (2 + pages) u32: first token of a block, one past its last, then the sequence's pages
        places: Buffer,
    },
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
    pub(super) fn new(
        cache: &PagedKvCache,
        direction: Direction,
        block_tokens: usize,
        most_len: usize,
    ) -> Result<Self> {
        let (gpu, heads, page_size) = (&cache.gpu, &cache.heads, cache.pages.size);
        // Copies are between two buffers; the kernel finds the slabs by itself.
        let one_buffer = cache.slabs.layers.iter().all(|pool| pool.buffers().len() == 1);
        let way = match one_buffer && 16 * page_size * cache.layout.state_words >= COPIED_BYTES {
            true => Way::Copies,
            false => {
                let kernel = PoolKernel::new(gpu, pages_rows_spec(heads, cache.dtype, direction))?;
                let pages = most_len.div_ceil(page_size) as u64;
                Way::Kernel { kernel, places: gpu.create_buffer("pages of a sequence", 4 * (pages + 2))? }
            }
        };
        let (layout, groups) = (cache.layout, heads.groups());
        let tokens = block_tokens.min(most_len.max(1));
        let block = gpu.create_buffer("saved block", 16 * (tokens * layout.row_words(groups)) as u64)?;
        Ok(PageRows { way, layout, groups, block, pages: Vec::new() })
    }

    /// Bytes of the largest block.
    pub(super) fn most_bytes(&self) -> u64 {
        self.block.size_bytes()
    }

    /// Names the sequence of the blocks that follow.
    pub(super) fn sequence(&mut self, gpu: &Gpu, pages: &[u32]) -> Result<()> {
        self.pages = pages.to_vec();
        match &self.way {
            Way::Copies => Ok(()),
            Way::Kernel { places, .. } => gpu.write(places, 8, bytemuck::cast_slice(pages)),
        }
    }

    /// Sends a block of `layer` on its way into host memory, after all that was recorded before.
    pub(super) fn start_read(&self, gpu: &Gpu, layer: &KvView, block: &Block, into: HostBuffer) -> Result<Reading> {
        let size = self.bytes(block);
        match &self.way {
            Way::Copies => gpu.start_read(&layer.pool.buffers()[0], into, size, &self.runs(layer.page_size, block)),
            Way::Kernel { kernel, places } => {
                self.dispatch(gpu, (kernel, places), layer, block)?;
                gpu.start_read(&self.block, into, size, &[Run { from: 0, to: 0, size }])
            }
        }
    }

    /// Submits the move of a block's bytes into the pages of `layer`.
    pub(super) fn write(&self, gpu: &Gpu, layer: &KvView, block: &Block, bytes: &[u8]) -> Result<()> {
        gpu.write(&self.block, 0, bytes)?;
        match &self.way {
            Way::Copies => {
                let back = |run: Run| Run { from: run.to, to: run.from, ..run };
                let runs: Vec<Run> = self.runs(layer.page_size, block).into_iter().map(back).collect();
                gpu.copy(&self.block, &layer.pool.buffers()[0], &runs)
            }
            Way::Kernel { kernel, places } => {
                self.dispatch(gpu, (kernel, places), layer, block)?;
                gpu.submit()
            }
        }
    }

    fn bytes(&self, block: &Block) -> u64 {
        16 * (block.tokens * self.layout.row_words(self.groups)) as u64
    }

    /// Where the block's tokens lie in the pool (from) and in the block (to), in bytes.
    fn runs(&self, page_size: usize, block: &Block) -> Vec<Run> {
        let row_words = self.layout.row_words(self.groups);
        let end = block.first + block.tokens;
        let planes = std::iter::repeat_n(self.layout.state_words, self.groups)
            .chain([self.layout.rope_words, self.layout.scale_words])
            .scan(0, |before, words| Some((std::mem::replace(before, *before + words), words)))
            .filter(|(_, words)| *words > 0);
        let mut runs = Vec::new();
        for (before, words) in planes {
            let mut token = block.first;
            while token < end {
                let tokens = (page_size - token % page_size).min(end - token);
                let page = self.pages.get(token / page_size).map_or(0, |page| *page as usize);
                let from = page * page_size * row_words + page_size * before + token % page_size * words;
                let to = block.tokens * before + (token - block.first) * words;
                runs.push(Run { from: 16 * from as u64, to: 16 * to as u64, size: 16 * (tokens * words) as u64 });
                token += tokens;
            }
        }
        runs
    }

    fn dispatch(
        &self,
        gpu: &Gpu,
        (kernel, places): (&PoolKernel, &Buffer),
        layer: &KvView,
        block: &Block,
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

pub(crate) fn pages_rows_spec(heads: &HeadLayout, dtype: DType, direction: Direction) -> KernelSpec {
    let layout = StateLayout::new(heads, dtype);
    let moves = match direction {
        Direction::FromPages => part!("parts/slab_loads_1.wgsl"),
        Direction::ToPages => part!("parts/slab_stores_1.wgsl"),
    };
    let (way, pool, rows) = match direction {
        Direction::FromPages => (part!("parts/rows_from_pages.wgsl"), Access::Read, Access::Write),
        Direction::ToPages => (part!("parts/rows_to_pages.wgsl"), Access::Write, Access::Read),
    };
    KernelSpec {
        name: "pages_rows",
        consts: vec![
            ("GROUPS", number(heads.groups())),
            ("STATE_WORDS", number(layout.state_words)),
            ("ROPE_WORDS", number(layout.rope_words)),
            ("SCALE_WORDS", number(layout.scale_words)),
        ],
        parts: vec![part!("parts/slabs_1.wgsl"), moves, part!("parts/page.wgsl"), way, part!("pages_rows.wgsl")],
        bindings: vec![Access::Read, pool, rows],
        workgroup_bytes: 0,
    }
}
