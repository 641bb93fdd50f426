//! The memory of a cache's pages: for each layer one buffer, or several slabs, which may come and go.

use crate::error::{ErrorKind, Result};
use crate::gpu::{Buffer, Capabilities, Gpu};
use crate::kv::pool::Pool;

/// How the pages of a layer are cut into buffers. Pure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SlabLayout {
    /// Pages of a layer.
    count: usize,
    page_bytes: u64,
    /// Pages of each slab but the last.
    pub(super) slab_pages: usize,
    /// Slabs that kernels bind: 1, 2 or 4.
    bound: usize,
}

/// The pools of all layers.
pub(super) struct Slabs {
    cut: SlabLayout,
    pub(super) layers: Vec<Pool>,
    /// Slabs of each layer that are there.
    there: usize,
}

/// What a device allows.
#[derive(Debug, Clone, Copy)]
pub(super) struct SlabLimits {
    /// Of one slab.
    slab_bytes: u64,
    /// Of one layer.
    slabs: usize,
}

/// Kernels count a slab's u32s in 30 bits (`shaders/kv/slabs/4.wgsl`), those of a sole buffer in 32.
const MOST_SLAB_BYTES: u64 = 4 << 30;
const MOST_BUFFER_BYTES: u64 = 16 << 30;

impl SlabLimits {
    pub(super) fn of(c: &Capabilities) -> Self {
        SlabLimits { slab_bytes: c.max_binding_bytes.min(c.max_buffer_bytes), slabs: c.max_slabs() }
    }
}

impl SlabLayout {
    /// As few slabs as the device's bindings allow; where the cache `grows`, as many as it can bind.
    pub(super) fn new(limits: SlabLimits, count: usize, page_bytes: u64, grows: bool) -> Result<Self> {
        let SlabLimits { slab_bytes: one, slabs: most_slabs } = limits;
        let needed_bytes = page_bytes.saturating_mul(count as u64);
        if needed_bytes <= one.min(MOST_BUFFER_BYTES) && !grows {
            return Ok(SlabLayout { count, page_bytes, slab_pages: count, bound: 1 });
        }
        let most_pages = usize::try_from(one.min(MOST_SLAB_BYTES) / page_bytes).unwrap_or(usize::MAX);
        if count > most_pages.saturating_mul(most_slabs) {
            let what = format!("one layer's KV pool, in {most_slabs} slabs");
            let limit_bytes = (most_pages * most_slabs) as u64 * page_bytes;
            return Err(ErrorKind::TooLarge { what, needed_bytes, limit_bytes }.into());
        }
        let least = count.div_ceil(most_pages);
        let bound = if grows { most_slabs.min(count.next_power_of_two()) } else { least.next_power_of_two() };
        let slabs = if grows { bound } else { least };
        Ok(SlabLayout { count, page_bytes, slab_pages: count.div_ceil(slabs), bound })
    }

    /// Slabs of a layer when all are there.
    pub(super) fn slabs(&self) -> usize {
        self.count.div_ceil(self.slab_pages)
    }

    /// Pages of a layer's first so many slabs.
    fn pages(&self, slabs: usize) -> usize {
        (slabs * self.slab_pages).min(self.count)
    }
}

impl Slabs {
    /// The first `there` slabs of each layer.
    pub(super) fn new(gpu: &Gpu, cut: SlabLayout, layers: usize, there: usize) -> Result<Self> {
        let mut this = Slabs { cut, layers: Vec::with_capacity(layers), there: 0 };
        for _ in 0..layers {
            let stand_ins = (0..cut.bound).map(|_| stand_in(gpu)).collect::<Result<_>>()?;
            this.layers.push(Pool::new(cut.slab_pages, stand_ins, 0));
        }
        this.grow(gpu, there)?;
        Ok(this)
    }

    /// Pages of each slab but the last.
    pub(super) fn slab_pages(&self) -> usize {
        self.cut.slab_pages
    }

    /// Allocates what is missing of the first `slabs` slabs, in all layers or, if that fails, in none.
    ///
    /// Errors: those of the device.
    pub(super) fn grow(&mut self, gpu: &Gpu, slabs: usize) -> Result<()> {
        if slabs <= self.there {
            return Ok(());
        }
        let mut new = Vec::new();
        for slab in self.there..slabs {
            let bytes = (self.cut.pages(slab + 1) - self.cut.pages(slab)) as u64 * self.cut.page_bytes;
            for layer in 0..self.layers.len() {
                new.push((slab, layer, gpu.create_buffer("KV pool", bytes)?));
            }
        }
        // wgpu clears memory at its first use: here, rather than in the first token.
        let buffers: Vec<Buffer> = new.iter().map(|(.., buffer)| buffer.clone()).collect();
        gpu.clear(&buffers)?;
        for (slab, layer, buffer) in new {
            self.layers[layer].replace(slab, buffer, self.cut.pages(slab + 1));
        }
        self.there = slabs;
        Ok(())
    }

    /// Gives up all but the first `slabs` slabs, at least one. Returns bytes given up. What is recorded keeps its own.
    ///
    /// Errors: those of the device.
    pub(super) fn shrink(&mut self, gpu: &Gpu, slabs: usize) -> Result<u64> {
        let slabs = slabs.max(1);
        let before = self.bytes();
        for slab in (slabs..self.there).rev() {
            let stand_ins = (0..self.layers.len()).map(|_| stand_in(gpu)).collect::<Result<Vec<_>>>()?;
            for (pool, stand_in) in self.layers.iter().zip(stand_ins) {
                pool.replace(slab, stand_in, self.cut.pages(slab));
            }
            self.there = slab;
        }
        Ok(before - self.bytes())
    }

    /// Bytes of the slabs that are there, over all layers.
    pub(super) fn bytes(&self) -> u64 {
        (self.cut.pages(self.there) * self.layers.len()) as u64 * self.cut.page_bytes
    }
}

/// What is bound where a slab is not there. One of its own for each, since a kernel may not write to one buffer through
/// two bindings.
fn stand_in(gpu: &Gpu) -> Result<Buffer> {
    gpu.create_buffer("no slab", 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of so many pages of so many bytes, in up to so many slabs of so many: pages of a slab, slabs, slabs bound.
    fn cut(slab_bytes: u64, slabs: usize, count: usize, page_bytes: u64, grows: bool) -> Option<[usize; 3]> {
        let cut = SlabLayout::new(SlabLimits { slab_bytes, slabs }, count, page_bytes, grows).ok()?;
        assert!(cut.slab_pages as u64 * page_bytes <= slab_bytes && cut.slabs() <= cut.bound);
        assert_eq!(cut.pages(cut.slabs()), count);
        Some([cut.slab_pages, cut.slabs(), cut.bound])
    }

    #[test]
    fn as_few_slabs_as_bindings_allow() {
        assert_eq!(cut(1000, 2, 10, 100, false), Some([10, 1, 1]));
        assert_eq!(cut(1000, 2, 11, 100, false), Some([6, 2, 2]));
        assert_eq!(cut(1000, 2, 20, 100, false), Some([10, 2, 2]));
        assert_eq!(cut(1000, 2, 21, 100, false), None);
        assert_eq!(cut(1000, 4, 21, 100, false), Some([7, 3, 4]));
        assert_eq!(cut(1000, 4, 40, 100, false), Some([10, 4, 4]));
        assert_eq!(cut(1000, 4, 41, 100, false), None);
        assert_eq!(cut(1000, 4, 1, 1001, false), None);
        // Never more than a kernel can count, whatever a device says it binds; one buffer it need not count.
        assert_eq!(cut(1 << 38, 4, 1 << 10, 1 << 24, false), Some([1 << 10, 1, 1]));
        assert_eq!(cut(1 << 38, 4, (1 << 10) + 1, 1 << 24, false), None);
        assert_eq!(cut(1 << 33, 4, 1 << 10, 1 << 24, false), Some([1 << 8, 4, 4]));
    }

    #[test]
    fn what_grows_has_all_its_slabs() {
        assert_eq!(cut(1000, 2, 10, 100, true), Some([5, 2, 2]));
        assert_eq!(cut(1000, 4, 10, 100, true), Some([3, 4, 4]));
        assert_eq!(cut(1000, 4, 9, 100, true), Some([3, 3, 4]));
        assert_eq!(
            [1, 2, 3].map(|count| cut(1000, 4, count, 100, true)),
            [Some([1, 1, 1]), Some([1, 2, 2]), Some([1, 3, 4])]
        );
        assert_eq!(cut(1000, 4, 41, 100, true), None);
    }
}
