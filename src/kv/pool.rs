//! One layer's pages on the device: a buffer, or several slabs side by side, and kernels for either.

use crate::error::Result;
use crate::gpu::{number, part, Access, Buffer, Gpu, Kernel, KernelSpec, ShaderPart};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

/// The pages of one layer. Cheap to clone; clones see slabs that come and go.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    inner: Arc<PoolInner>,
}

#[derive(Debug)]
struct PoolInner {
    /// Pages of each slab but the last.
    slab_pages: usize,
    slabs: RwLock<SlabBuffers>,
}

#[derive(Debug)]
struct SlabBuffers {
    /// As many as kernels bind: 1, 2 or 4. Where a slab is not there, a few bytes stand in for it.
    buffers: Vec<Buffer>,
    /// Pages of the slabs that are there: the first so many of the layer's.
    pages: usize,
}

impl Pool {
    /// A pool of `slab_pages` pages per slab, `buffers.len()` slabs at most (1, 2 or 4) and its first `pages` pages there.
    pub(crate) fn new(slab_pages: usize, buffers: Vec<Buffer>, pages: usize) -> Self {
        debug_assert!([1, 2, 4].contains(&buffers.len()), "{} slabs", buffers.len());
        Pool { inner: Arc::new(PoolInner { slab_pages, slabs: RwLock::new(SlabBuffers { buffers, pages }) }) }
    }

    /// What kernels bind, the first slab first.
    pub(crate) fn buffers(&self) -> Vec<Buffer> {
        self.read(|slabs| slabs.buffers.clone())
    }

    /// Whether one of the buffers is so.
    pub(crate) fn any_buffer(&self, is: impl Fn(&Buffer) -> bool) -> bool {
        self.read(|slabs| slabs.buffers.iter().any(is))
    }

    /// Pages that are there.
    pub(crate) fn pages(&self) -> usize {
        self.read(|slabs| slabs.pages)
    }

    /// Pages of each slab but the last.
    pub(crate) fn slab_pages(&self) -> usize {
        self.inner.slab_pages
    }

    /// Puts a buffer in the place of a slab; `pages` are there then.
    pub(crate) fn replace(&self, slab: usize, buffer: Buffer, pages: usize) {
        let mut slabs = self.inner.slabs.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = slabs.buffers.get_mut(slab) {
            *place = buffer;
        }
        slabs.pages = pages;
    }

    fn read<T>(&self, f: impl FnOnce(&SlabBuffers) -> T) -> T {
        f(&self.inner.slabs.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A kernel that reads or writes pages: compiled for pools of one buffer, and for those of slabs when first asked for.
#[derive(Debug, Clone)]
pub(crate) struct PoolKernel {
    spec: KernelSpec,
    /// By log2 of the slabs.
    kernels: [OnceLock<Kernel>; 3],
}

impl PoolKernel {
    /// From the kernel for one buffer, compiled here.
    pub(crate) fn new(gpu: &Gpu, spec: KernelSpec) -> Result<Self> {
        let this = PoolKernel { spec, kernels: Default::default() };
        this.of(gpu, 1)?;
        Ok(this)
    }

    /// The kernel that binds so many slabs.
    pub(crate) fn of(&self, gpu: &Gpu, slabs: usize) -> Result<&Kernel> {
        gpu.kernel_in(&self.kernels[slabs.ilog2() as usize], || Ok(with_slabs(&self.spec, slabs)))
    }
}

/// A kernel of pages in one buffer, made one of pages in 1, 2 or 4 slabs, bound behind all else.
pub(crate) fn with_slabs(spec: &KernelSpec, slabs: usize) -> KernelSpec {
    let mut spec = spec.clone();
    if slabs == 1 {
        return spec;
    }
    spec.consts.push(("SLAB_BINDING", number(spec.bindings.len() + 1)));
    spec.bindings.resize(spec.bindings.len() + slabs - 1, Access::Write);
    let two = slabs == 2;
    let slot = |part: ShaderPart| match part.name {
        "kv/slabs/1.wgsl" if two => part!("kv/slabs/2.wgsl"),
        "kv/slabs/1.wgsl" => part!("kv/slabs/4.wgsl"),
        "kv/slab_loads/1.wgsl" if two => part!("kv/slab_loads/2.wgsl"),
        "kv/slab_loads/1.wgsl" => part!("kv/slab_loads/4.wgsl"),
        "kv/slab_stores/1.wgsl" if two => part!("kv/slab_stores/2.wgsl"),
        "kv/slab_stores/1.wgsl" => part!("kv/slab_stores/4.wgsl"),
        _ => part,
    };
    spec.parts = spec.parts.into_iter().map(slot).collect();
    spec
}
