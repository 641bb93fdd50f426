//! Rows of cached tokens, out of their pages and back into them. Kernel: `shaders/pages_rows.wgsl`.

use super::format::Block;
use crate::attention::layout::{KvView, StateLayout};
use crate::attention::HeadLayout;
use crate::error::Result;
use crate::gpu::{number, part, Access, Buffer, DType, Gpu, Kernel, KernelSpec};

/// Which way rows go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    FromPages,
    ToPages,
}

/// The kernel of one layout, dtype and direction, with its memory on the device: one block of rows, and one sequence's
/// pages.
pub(super) struct PageRows {
    kernel: Kernel,
    row_words: usize,
    /// (tokens of a block, row words) `vec4<u32>`
    pub(super) rows: Buffer,
    /// (2 + pages) u32: first token of a block, one past its last, then the sequence's pages
    places: Buffer,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct PageRowsParams {
    pub(crate) page_size: u32,
}

impl PageRows {
    /// For blocks of up to `block_tokens` tokens, and sequences of up to `pages` pages.
    pub(super) fn new(
        gpu: &Gpu,
        (heads, dtype): (&HeadLayout, DType),
        direction: Direction,
        block_tokens: usize,
        pages: usize,
    ) -> Result<Self> {
        let kernel = gpu.kernel(pages_rows_spec(heads, dtype, direction))?;
        let row_words = StateLayout::new(heads, dtype).row_words(heads.groups());
        let rows = gpu.create_buffer("saved rows", 16 * (block_tokens * row_words) as u64)?;
        let places = gpu.create_buffer("pages of a sequence", 4 * (pages as u64 + 2))?;
        Ok(PageRows { kernel, row_words, rows, places })
    }

    /// Names the sequence of the blocks that follow.
    pub(super) fn sequence(&self, gpu: &Gpu, pages: &[u32]) -> Result<()> {
        gpu.write(&self.places, 8, bytemuck::cast_slice(pages))
    }

    /// Records the move of one block between `layer` and `rows`, after submitting what was recorded before.
    pub(super) fn record(&self, gpu: &Gpu, layer: &KvView, block: &Block) -> Result<()> {
        // Not in the parameters, whose distinct values are kept for good.
        let tokens = [block.first as u32, (block.first + block.tokens) as u32];
        gpu.write(&self.places, 0, bytemuck::cast_slice(&tokens))?;
        let params = PageRowsParams { page_size: layer.page_size as u32 };
        let buffers: [&Buffer; 3] = [&self.places, &layer.pool, &self.rows];
        let workgroups = (block.tokens * self.row_words).div_ceil(64) as u32;
        gpu.record(|pass| gpu.dispatch(pass, &self.kernel, &params, &buffers, (workgroups, 1, 1)))
    }
}

pub(crate) fn pages_rows_spec(heads: &HeadLayout, dtype: DType, direction: Direction) -> KernelSpec {
    let layout = StateLayout::new(heads, dtype);
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
        parts: vec![part!("parts/page.wgsl"), way, part!("pages_rows.wgsl")],
        bindings: vec![Access::Read, pool, rows],
        workgroup_bytes: 0,
    }
}
