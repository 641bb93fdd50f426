//! Kernels, bind groups and dispatch.

use super::compile::Pipeline;
use super::layout::Layout;
pub(crate) use super::params::PARAM_BYTES;
use super::shader::{assemble, Assembled, Const, Consts, ShaderPart};
use super::tape::Recorded;
use super::tensor::Buffer;
use super::{Gpu, GpuInner, Tier};
use crate::error::{Error, ErrorKind, Result};
use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak};

/// How a kernel uses a storage buffer. Binding 0 is always the uniform block of parameters; storage starts at 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Access {
    Read,
    Write,
}

/// Everything that makes a compiled kernel what it is; the pipeline-cache key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct KernelSpec {
    pub(crate) name: &'static str,
    pub(crate) consts: Consts,
    pub(crate) parts: Vec<ShaderPart>,
    pub(crate) bindings: Vec<Access>,
    /// Bytes of `var<workgroup>` arrays, checked against the device before the driver sees them:
    /// one driver accepted too much and hung.
    pub(crate) workgroup_bytes: usize,
}

impl KernelSpec {
    pub(crate) fn assemble(&self) -> Assembled {
        assemble(&self.consts, &self.parts)
    }

    /// What the device must have: what its parts say, and matrices where it enables them.
    pub(crate) fn tier(&self) -> Tier {
        let parts = self.parts.iter().map(|part| part.tier).max().unwrap_or(Tier::Portable);
        match self.consts.contains(&("wgpu_cooperative_matrix", Const::Enable)) {
            true => Tier::Matrix,
            false => parts,
        }
    }
}

/// A kernel, compiled or to be compiled (`together.rs`). Cheap to clone.
#[derive(Clone)]
pub(crate) struct Kernel {
    pub(super) inner: Arc<KernelInner>,
}

pub(super) struct KernelInner {
    pub(super) spec: KernelSpec,
    pub(super) id: u64,
    pub(super) pipeline: Pipeline,
    pub(super) layout: Layout,
    gpu: Weak<GpuInner>,
}

/// Kernels that nobody holds and that are kept all the same, so that what is dropped and made again compiles nothing:
/// where [`Gpu::keep_idle_kernels`] says nothing else.
const IDLE_KERNELS: usize = 32;

/// Kernels by what they were made of: all that someone holds, and of the others, if they are compiled, the last asked for.
pub(super) struct Kernels {
    by_spec: HashMap<KernelSpec, KnownKernel>,
    clock: u64,
    /// Most kernels that nobody holds.
    most_idle: usize,
    /// Whether some were let go since the device was last asked to free what it need not keep.
    let_go: bool,
}

struct KnownKernel {
    kernel: Arc<KernelInner>,
    /// When it was last asked for.
    asked: u64,
}

impl Default for Kernels {
    fn default() -> Self {
        Kernels { by_spec: HashMap::new(), clock: 0, most_idle: IDLE_KERNELS, let_go: false }
    }
}

impl Kernels {
    /// Kernels that are there, held or not.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_spec.len()
    }

    fn get(&mut self, spec: &KernelSpec) -> Option<Kernel> {
        self.clock += 1;
        let known = self.by_spec.get_mut(spec)?;
        known.asked = self.clock;
        Some(Kernel { inner: known.kernel.clone() })
    }

    /// Takes out those that nobody holds: all that are not compiled, and of the others those beyond the most. `leaving` has one
    /// holder more, who is about to go.
    fn sweep(&mut self, leaving: u64) -> Vec<Arc<KernelInner>> {
        // Only who has the lock makes another holder of one that has none.
        let idle = |k: &KnownKernel| Arc::strong_count(&k.kernel) == 1 + usize::from(k.kernel.id == leaving);
        let compiled = |k: &KnownKernel| k.kernel.pipeline.is_there();
        let mut asked: Vec<u64> =
            self.by_spec.values().filter(|k| compiled(k) && idle(k)).map(|known| known.asked).collect();
        asked.sort_unstable();
        let surplus = asked.len().saturating_sub(self.most_idle);
        let last = asked[..surplus].last().copied().unwrap_or(0);
        let mut gone = Vec::new();
        self.by_spec.retain(|_, k| {
            let stays = !idle(k) || (compiled(k) && k.asked > last);
            if !stays {
                gone.push(k.kernel.clone());
            }
            stays
        });
        self.let_go |= gone.iter().any(|kernel| kernel.pipeline.is_there());
        gone
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // This one and that of the table: the last holder goes.
        if Arc::strong_count(&self.inner) > 2 {
            return;
        }
        if let Some(inner) = self.inner.gpu.upgrade() {
            Gpu { inner }.forget_kernels(self.inner.id);
        }
    }
}

/// Numbers that name a bind group: layout, parameters, and more storage buffers than a stage can have.
const MOST_IDS: usize = 32;

/// A dispatch's size in workgroups.
pub(crate) type Grid = (u32, u32, u32);

impl Gpu {
    /// How many compiled kernels that nobody holds any more are kept for the next who asks for them, the last asked for
    /// first; 32 unless this says otherwise. More where many layouts, windows or softcaps take turns and each is dropped in between:
    /// a kernel may take megabytes of the driver's memory. Takes effect when the next kernel is let go.
    pub fn keep_idle_kernels(&self, most: usize) {
        self.lock(&self.inner.kernels).most_idle = most;
    }

    /// A kernel of this kind, compiled if [`Gpu::want`] says so.
    pub(crate) fn kernel(&self, spec: KernelSpec) -> Result<Kernel> {
        let known = self.lock(&self.inner.kernels).get(&spec);
        let kernel = known.map_or_else(|| self.new_kernel(spec), Ok)?;
        self.want(&kernel).map(|()| kernel)
    }

    /// One that is not compiled yet.
    fn new_kernel(&self, spec: KernelSpec) -> Result<Kernel> {
        let limit = self.capabilities().workgroup_storage_bytes as usize;
        if spec.workgroup_bytes > limit {
            let what =
                format!("kernel {} needs {} bytes of workgroup memory, {limit} given", spec.name, spec.workgroup_bytes);
            return Err(ErrorKind::Unsupported { what }.into());
        }
        // wgpu frees what was dropped once a later submit is done, and there may be none for long.
        if std::mem::take(&mut self.lock(&self.inner.kernels).let_go) {
            self.scoped("submit", || self.inner.queue.submit([]))?;
            self.poll(wgpu::PollType::Poll)?;
        }
        let (layout, id, gpu) = (self.layout(&spec)?, self.next_id(), Arc::downgrade(&self.inner));
        let new = KernelInner { spec: spec.clone(), id, pipeline: Pipeline::default(), layout, gpu };
        let mut kernels = self.lock(&self.inner.kernels);
        // Another thread may have been faster: there is one of a kind.
        if let Some(kernel) = kernels.get(&spec) {
            return Ok(kernel);
        }
        let (kernel, asked) = (Arc::new(new), kernels.clock);
        kernels.by_spec.insert(spec, KnownKernel { kernel: kernel.clone(), asked });
        Ok(Kernel { inner: kernel })
    }

    /// Lets go of kernels that nobody holds, beyond those that are kept.
    fn forget_kernels(&self, leaving: u64) {
        let gone = self.lock(&self.inner.kernels).sweep(leaving);
        drop(gone); // after the lock
    }

    /// Takes a kernel that does not compile out of those that are known.
    pub(super) fn forget_kernel(&self, kernel: &KernelInner) {
        let mut kernels = self.lock(&self.inner.kernels);
        if kernels.by_spec.get(&kernel.spec).is_some_and(|known| known.kernel.id == kernel.id) {
            kernels.by_spec.remove(&kernel.spec);
        }
    }

    /// What a cell holds, or what is put into it now: a kernel that is asked for at its first use.
    pub(crate) fn kernel_in<'a>(
        &self,
        cell: &'a OnceLock<Kernel>,
        spec: impl FnOnce() -> Result<KernelSpec>,
    ) -> Result<&'a Kernel> {
        if let Some(kernel) = cell.get() {
            return self.want(kernel).map(|()| kernel);
        }
        let kernel = self.kernel(spec()?)?;
        Ok(cell.get_or_init(|| kernel))
    }

    /// Records one dispatch into `pass`; of an empty grid only what it would bind is made. `params` are the kernel's
    /// uniform block.
    ///
    /// Errors: [`ErrorKind::Unsupported`] for too large a grid, [`ErrorKind::Argument`] for a buffer of another [`Gpu`] or one
    /// that its app has destroyed, [`ErrorKind::CommandsLost`] for one whose content is lost; those of the device.
    pub(crate) fn dispatch<P: bytemuck::Pod>(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        kernel: &Kernel,
        params: &P,
        buffers: &[&Buffer],
        grid: Grid,
    ) -> Result<()> {
        self.dispatch_over(pass, kernel, params, buffers, grid, &[])
    }

    /// [`Gpu::dispatch`] of a kernel that writes every element of the buffers in `whole`, and reads none of them.
    pub(crate) fn dispatch_over<P: bytemuck::Pod>(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        kernel: &Kernel,
        params: &P,
        buffers: &[&Buffer],
        grid: Grid,
        whole: &[&Buffer],
    ) -> Result<()> {
        let k = &kernel.inner;
        debug_assert_eq!(k.spec.bindings.len(), buffers.len(), "{}", k.spec.name);
        let limit = self.capabilities().max_workgroups;
        if grid.0.max(grid.1).max(grid.2) > limit {
            let what = format!("{}: a grid of {grid:?} workgroups exceeds {limit} per dimension", k.spec.name);
            return Err(ErrorKind::Unsupported { what }.into());
        }
        let slot = self.param_slot(bytemuck::bytes_of(params))?;
        let group = self.bind_group(k, &slot.buffer, buffers)?;
        if grid.0 == 0 || grid.1 == 0 || grid.2 == 0 {
            return self.want(kernel);
        }
        let (own, params, offset) = (self.is_own(pass), &slot.buffer, slot.offset);
        if own && self.only_named(k) {
            return Ok(());
        }
        let pipeline = match own && self.waits(k) {
            true => None,
            false => Some(self.pipeline(k)?),
        };
        // Recorded, one that is destroyed would take all else that is recorded with it.
        buffers.iter().filter(|buffer| buffer.is_of_app()).try_for_each(|buffer| self.expect_there(buffer))?;
        self.note(pass, &k.spec.bindings, buffers, whole)?;
        let Some(pipeline) = pipeline else {
            self.keep_waiting((k, buffers), &group, offset, grid);
            return Ok(());
        };
        self.put(pass, (k.spec.name, pipeline), (&group, offset), grid);
        if own {
            self.tape_dispatch(&Recorded { kernel: k, pipeline, params, group: &group, offset, buffers, grid });
        }
        Ok(())
    }

    /// Records a dispatch that is noted.
    pub(super) fn put(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        (name, pipeline): (&'static str, &wgpu::ComputePipeline),
        (group, offset): (&wgpu::BindGroup, u32),
        grid: Grid,
    ) {
        self.profiled(pass, name, |pass| {
            pass.set_pipeline(pipeline);
            pass.set_bind_group(0, group, &[offset]);
            pass.dispatch_workgroups(grid.0, grid.1, grid.2);
        });
        self.inner.counters.dispatches.fetch_add(1, Ordering::Relaxed);
    }

    fn bind_group(&self, k: &KernelInner, params: &Buffer, buffers: &[&Buffer]) -> Result<wgpu::BindGroup> {
        let name = k.spec.name;
        debug_assert!(buffers.len() + 2 <= MOST_IDS, "{name}");
        let mut key = [0u64; MOST_IDS];
        let ids = [k.layout.id, params.id()].into_iter().chain(buffers.iter().map(|b| b.id()));
        key.iter_mut().zip(ids).for_each(|(place, id)| *place = id);
        let key = &key[..MOST_IDS.min(2 + buffers.len())];
        if let Some(group) = self.lock(&self.inner.bind_groups).get(key) {
            return Ok(group.clone());
        }
        for b in buffers {
            b.expect_gpu(self)?;
            let limit = self.capabilities().max_binding_bytes;
            if b.size_bytes() > limit {
                let what = format!("a binding of {name}");
                return Err(ErrorKind::TooLarge { what, needed_bytes: b.size_bytes(), limit_bytes: limit }.into());
            }
        }
        let mut entries = vec![wgpu::BindGroupEntry {
            binding: 0,
            resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer: params.raw(),
                offset: 0,
                size: NonZeroU64::new(PARAM_BYTES as u64),
            }),
        }];
        entries.extend(
            buffers
                .iter()
                .enumerate()
                .map(|(i, b)| wgpu::BindGroupEntry { binding: i as u32 + 1, resource: b.raw().as_entire_binding() }),
        );
        let group = self.scoped(name, || {
            self.inner.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(name),
                layout: &k.layout.layout,
                entries: &entries,
            })
        });
        let group = group.map_err(|e| refused_of_app(buffers, e))?;
        self.inner.counters.bind_groups.fetch_add(1, Ordering::Relaxed);
        self.lock(&self.inner.bind_groups).insert(key.to_vec(), group.clone());
        Ok(group)
    }

    /// Drops the bind groups that hold a buffer; called when its last owner goes.
    pub(super) fn forget_buffer(&self, id: u64) {
        self.lock(&self.inner.bind_groups).retain(|key, _| !key[1..].contains(&id));
        self.forget_tapes(id);
    }
}

/// What is refused of buffers among which an app's are is the app's mistake.
fn refused_of_app(buffers: &[&Buffer], e: Error) -> Error {
    let apps: Vec<_> = buffers.iter().filter(|buffer| buffer.is_of_app()).collect();
    match e.kind() {
        ErrorKind::Gpu { .. } if !apps.is_empty() => {
            ErrorKind::argument("tensor", format!("one of {apps:?}, of the app's own, cannot be used: {e}"))
        }
        _ => e,
    }
}
