//! Pipelines, bind groups and dispatch.

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

    /// What the device must have: whatever the text uses.
    pub(crate) fn tier(&self) -> Tier {
        let code = || self.parts.iter().flat_map(|p| p.text.lines()).map(|l| l.split("//").next().unwrap_or(""));
        if self.consts.contains(&("wgpu_cooperative_matrix", Const::Enable)) {
            Tier::Matrix
        } else if code().any(|line| line.contains("subgroup")) {
            Tier::Subgroup
        } else {
            Tier::Portable
        }
    }
}

/// A compiled kernel. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Kernel {
    pub(super) inner: Arc<KernelInner>,
}

pub(super) struct KernelInner {
    pub(super) name: &'static str,
    pub(super) id: u64,
    pub(super) pipeline: wgpu::ComputePipeline,
    layout: Layout,
    pub(super) bindings: Vec<Access>,
    gpu: Weak<GpuInner>,
}

/// Kernels that nobody holds and that are kept all the same, so that what is dropped and made again compiles nothing:
/// where [`Gpu::keep_idle_kernels`] says nothing else.
const IDLE_KERNELS: usize = 32;

/// Compiled kernels by what they were made of: all that someone holds, and the last asked for of the others.
pub(super) struct Kernels {
    by_spec: HashMap<KernelSpec, Compiled>,
    clock: u64,
    /// Most kernels that nobody holds.
    most_idle: usize,
    /// Whether some were let go since the device was last asked to free what it need not keep.
    let_go: bool,
}

struct Compiled {
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
        let compiled = self.by_spec.get_mut(spec)?;
        compiled.asked = self.clock;
        Some(Kernel { inner: compiled.kernel.clone() })
    }

    /// Takes out those that nobody holds beyond the most. `leaving` has one holder more, who is about to go.
    fn sweep(&mut self, leaving: u64) -> Vec<Arc<KernelInner>> {
        // Only who has the lock makes another holder of one that has none.
        let idle = |c: &Compiled| Arc::strong_count(&c.kernel) == 1 + usize::from(c.kernel.id == leaving);
        let mut asked: Vec<u64> = self.by_spec.values().filter(|c| idle(c)).map(|c| c.asked).collect();
        let Some(surplus) = asked.len().checked_sub(self.most_idle).filter(|n| *n > 0) else { return Vec::new() };
        asked.sort_unstable();
        let last = asked[surplus - 1];
        let mut gone = Vec::new();
        self.by_spec.retain(|_, c| {
            let stays = c.asked > last || !idle(c);
            if !stays {
                gone.push(c.kernel.clone());
            }
            stays
        });
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

    /// Compiles a kernel, or returns it from the cache.
    pub(crate) fn kernel(&self, spec: KernelSpec) -> Result<Kernel> {
        if let Some(kernel) = self.lock(&self.inner.kernels).get(&spec) {
            return Ok(kernel);
        }
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
        let made = self.compile(&spec)?;
        let mut kernels = self.lock(&self.inner.kernels);
        // Another thread may have been faster: one pipeline of a kind, so that its bind groups are found.
        let kernel = kernels.get(&spec).unwrap_or_else(|| made.clone());
        let asked = kernels.clock;
        kernels.by_spec.entry(spec).or_insert_with(|| Compiled { kernel: kernel.inner.clone(), asked });
        drop(kernels); // before `made`, which may go here
        Ok(kernel)
    }

    /// Lets go of kernels that nobody holds, beyond those that are kept.
    fn forget_kernels(&self, leaving: u64) {
        let mut kernels = self.lock(&self.inner.kernels);
        let gone = kernels.sweep(leaving);
        if gone.is_empty() {
            return;
        }
        kernels.let_go = true;
        drop(kernels); // before `gone`, which goes here
    }

    /// What a cell holds, or what is put into it now: a kernel that is compiled at its first use.
    pub(crate) fn kernel_in<'a>(
        &self,
        cell: &'a OnceLock<Kernel>,
        spec: impl FnOnce() -> Result<KernelSpec>,
    ) -> Result<&'a Kernel> {
        if let Some(kernel) = cell.get() {
            return Ok(kernel);
        }
        let kernel = self.kernel(spec()?)?;
        Ok(cell.get_or_init(|| kernel))
    }

    fn compile(&self, spec: &KernelSpec) -> Result<Kernel> {
        let source = spec.assemble();
        let text = &source.text;
        #[cfg(test)]
        let text = &match self.inner.poison_workgroup.load(Ordering::Relaxed) && spec.workgroup_bytes > 0 {
            true => super::poison_tests::poisoned(text),
            false => text.clone(),
        };
        #[cfg(test)]
        let text = &match spec.tier() > self.capabilities().tier && spec.tier() == Tier::Matrix {
            true => super::emulation_tests::without_matrices(text),
            false => text.clone(),
        };
        let device = &self.inner.device;
        let layout = self.layout(spec)?;
        let made = self.scoped(spec.name, || {
            let module = shader_module(device, spec, text);
            device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(spec.name),
                layout: Some(&layout.pipeline),
                module: &module,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions {
                    // Every kernel writes its workgroup memory before it reads it: gpu/poison_tests.rs.
                    zero_initialize_workgroup_memory: false,
                    ..Default::default()
                },
                cache: self.inner.pipeline_cache.as_ref().map(|file| file.cache()),
            })
        });
        let pipeline = made.map_err(|e| match e.kind() {
            ErrorKind::Gpu { context, message } => {
                ErrorKind::Gpu { context: context.clone(), message: source.locate(message) }.into()
            }
            _ => e,
        })?;
        self.inner.counters.pipelines.fetch_add(1, Ordering::Relaxed);
        self.compiles();
        if let Some(file) = &self.inner.pipeline_cache {
            file.note_pipeline();
        }
        let id = self.next_id();
        let (name, bindings, gpu) = (spec.name, spec.bindings.clone(), Arc::downgrade(&self.inner));
        Ok(Kernel { inner: Arc::new(KernelInner { name, id, pipeline, layout, bindings, gpu }) })
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
        debug_assert_eq!(k.bindings.len(), buffers.len(), "{}", k.name);
        let limit = self.capabilities().max_workgroups;
        if grid.0.max(grid.1).max(grid.2) > limit {
            let what = format!("{}: a grid of {grid:?} workgroups exceeds {limit} per dimension", k.name);
            return Err(ErrorKind::Unsupported { what }.into());
        }
        let slot = self.param_slot(bytemuck::bytes_of(params))?;
        let group = self.bind_group(kernel, &slot.buffer, buffers)?;
        if grid.0 == 0 || grid.1 == 0 || grid.2 == 0 {
            return Ok(());
        }
        // Recorded, one that is destroyed would take all else that is recorded with it.
        buffers.iter().filter(|buffer| buffer.is_of_app()).try_for_each(|buffer| self.expect_there(buffer))?;
        let own = self.note(pass, &k.bindings, buffers, whole)?;
        self.profiled(pass, k.name, |pass| {
            pass.set_pipeline(&k.pipeline);
            pass.set_bind_group(0, &group, &[slot.offset]);
            pass.dispatch_workgroups(grid.0, grid.1, grid.2);
        });
        self.inner.counters.dispatches.fetch_add(1, Ordering::Relaxed);
        if own {
            let (params, offset) = (&slot.buffer, slot.offset);
            self.tape_dispatch(&Recorded { kernel: k, params, group: &group, offset, buffers, grid });
        }
        Ok(())
    }

    fn bind_group(&self, kernel: &Kernel, params: &Buffer, buffers: &[&Buffer]) -> Result<wgpu::BindGroup> {
        let k = &kernel.inner;
        debug_assert!(buffers.len() + 2 <= MOST_IDS, "{}", k.name);
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
                let what = format!("a binding of {}", k.name);
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
        let group = self.scoped(k.name, || {
            self.inner.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(k.name),
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

/// The module of a kernel's text. wgpu clamps every index at run time; to kernels of cooperative matrices, whose time is
/// that of workgroup memory, this is a tenth of the speed (GLA-2 of 64 rows on an H100: 527 us without, 569 with).
#[allow(unsafe_code)]
fn shader_module(device: &wgpu::Device, spec: &KernelSpec, text: &str) -> wgpu::ShaderModule {
    let desc = wgpu::ShaderModuleDescriptor { label: Some(spec.name), source: wgpu::ShaderSource::Wgsl(text.into()) };
    if spec.tier() < Tier::Matrix {
        return device.create_shader_module(desc);
    }
    let checks = wgpu::ShaderRuntimeChecks { bounds_checks: false, ..wgpu::ShaderRuntimeChecks::checked() };
    // SAFETY: these kernels come with this crate and not from its user. They index workgroup and private arrays by
    // constants and the lane alone, below the arrays' lengths, and buffers by what the host has checked against their
    // sizes and what they clamp themselves (pages). Loops stay bounded.
    unsafe { device.create_shader_module_trusted(desc, checks) }
}
