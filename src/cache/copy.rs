//! Copies of whole pages within each layer's pool. Kernel: `shaders/kv/copy_pages.wgsl`.

use super::PageCopy;
use crate::error::Result;
use crate::gpu::grid::fold;
use crate::gpu::{part, Access, Buffer, Gpu, KernelSpec};
use crate::kv::pool::{Pool, PoolKernel};

/// The kernel, and the list it reads.
pub(super) struct CopyPages {
    kernel: PoolKernel,
    /// (copies) u32 (source, target)
    list: Buffer,
    page_words: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct CopyParams {
    pub(crate) copy_count: u32,
    pub(crate) page_count: u32,
    pub(crate) page_words: u32,
    pub(crate) slab_pages: u32,
}

/// Copies of a call before the list has to grow.
const COPIES: usize = 256;
const COPY_BYTES: usize = 8;

/// Workgroups of a page at most; a longer one is walked.
const MAX_X: u32 = 1024;

pub(crate) fn copy_spec() -> KernelSpec {
    KernelSpec {
        name: "copy_pages",
        consts: vec![],
        parts: vec![
            part!("kv/slabs/1.wgsl"),
            part!("kv/slab_loads/1.wgsl"),
            part!("kv/slab_stores/1.wgsl"),
            part!("kv/copy_pages.wgsl"),
        ],
        bindings: vec![Access::Read, Access::Write],
        workgroup_bytes: 0,
    }
}

impl CopyPages {
    /// For pages of `page_words` vec4 words.
    pub(super) fn new(gpu: &Gpu, page_words: usize) -> Result<Self> {
        let list = gpu.create_buffer("page copies", (COPIES * COPY_BYTES) as u64)?;
        // No truncation in what can be used: a page whose words are past 32 bits is past every binding limit.
        Ok(Self { kernel: PoolKernel::new(gpu, copy_spec())?, list, page_words: page_words as u32 })
    }

    /// Compiles the kernel for pools of so many slabs.
    pub(super) fn prepare(&self, gpu: &Gpu, slabs: usize) -> Result<()> {
        self.kernel.of(gpu, slabs).map(|_| ())
    }

    /// Copies these pages in every pool, after all that is recorded so far, and submits: an error later in the step must
    /// not lose the copies, without which a sequence has lost tokens. Nothing happens where there are none.
    ///
    /// One dispatch per pool: a pool is a binding, and a kernel may have 8 of them.
    pub(super) fn run(&mut self, gpu: &Gpu, pools: &[Pool], copies: &[PageCopy]) -> Result<()> {
        if copies.is_empty() {
            return Ok(());
        }
        let bytes = (copies.len().next_power_of_two() * COPY_BYTES) as u64;
        if self.list.size_bytes() < bytes {
            self.list = gpu.create_buffer("page copies", bytes)?;
        }
        let list: Vec<u32> = copies.iter().flat_map(|copy| [copy.source, copy.target]).collect();
        gpu.write(&self.list, 0, bytemuck::cast_slice(&list))?;
        let copy_count = copies.len() as u32; // no truncation: at most the pages of a pool
        let (y, z) = fold(copies.len());
        let grid = (self.page_words.div_ceil(64).min(MAX_X), y, z);
        gpu.record(|pass| {
            pools.iter().try_for_each(|pool| {
                let (page_count, slab_pages) = (pool.pages() as u32, pool.slab_pages() as u32);
                let params = CopyParams { copy_count, page_count, page_words: self.page_words, slab_pages };
                let slabs = pool.buffers();
                let buffers: Vec<&Buffer> = [&self.list].into_iter().chain(&slabs).collect();
                gpu.dispatch(pass, self.kernel.of(gpu, slabs.len())?, &params, &buffers, grid)
            })
        })?;
        gpu.send_recorded()
    }
}
