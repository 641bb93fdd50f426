//! Kernels compiled: each once, whoever asks first; several on threads, where the platform has them. wgpu holds no lock over a
//! driver's compiler (`Device::create_compute_pipeline` of wgpu-core), and its error scopes are those of a thread.

use super::kernel::{KernelInner, KernelSpec};
use super::layout::Layout;
use super::{Gpu, Tier};
use crate::error::{Error, ErrorKind, Result};
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// A kernel's pipeline, once it is compiled.
#[derive(Default)]
pub(super) struct Pipeline {
    made: OnceLock<wgpu::ComputePipeline>,
    /// Held by who compiles it.
    making: Mutex<()>,
}

impl Pipeline {
    pub(super) fn is_there(&self) -> bool {
        self.made.get().is_some()
    }
}

/// What it took to compile a kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct CompileTime {
    /// The kernel's name, that of its file under `shaders/`. Kernels of one name differ in their constants, types and parts.
    pub kernel: &'static str,
    /// When it was begun, counted from the first one.
    pub from: Duration,
    /// From then until its pipeline was there. Several threads compile at once: the sum may be more than has passed.
    pub time: Duration,
}

/// Kernels compiled, when they were begun and how long they took.
pub(super) type CompileTimes = Vec<(&'static str, Instant, Duration)>;

/// Times that are kept until they are taken.
const MOST_TIMES: usize = 1024;
/// Of a thread that compiles, as a program's first has it (bytes): compilers recurse.
const STACK: usize = 8 << 20;

impl Gpu {
    /// The kernels that were compiled since this was last called, or since the [`Gpu`] was made, in the order in which they were
    /// done; the first 1,024 of them. Empty in browsers, which compile later.
    pub fn take_compile_times(&self) -> Vec<CompileTime> {
        let times = std::mem::take(&mut *self.lock(&self.inner.compile_times));
        let first = times.iter().map(|(_, begun, _)| *begun).min();
        let from = |begun: Instant| first.map_or(Duration::ZERO, |first| begun.saturating_duration_since(first));
        times.into_iter().map(|(kernel, begun, time)| CompileTime { kernel, from: from(begun), time }).collect()
    }

    fn note_compile_time(&self, spec: &KernelSpec, begun: Instant) {
        let (kernel, time) = (spec.name, begun.elapsed());
        log::debug!("latten: {kernel} compiled in {:.1} ms, {:?}", 1e3 * time.as_secs_f64(), spec.consts);
        let mut times = self.lock(&self.inner.compile_times);
        if times.len() < MOST_TIMES {
            times.push((kernel, begun, time));
        }
    }

    /// A kernel's pipeline, compiled now if it is not there: by this thread, or by another that has begun.
    ///
    /// Errors: those of the device, [`ErrorKind::Gpu`] for a kernel that does not compile, each time it is asked for.
    pub(super) fn pipeline<'a>(&self, kernel: &'a KernelInner) -> Result<&'a wgpu::ComputePipeline> {
        let Pipeline { made, making } = &kernel.pipeline;
        if let Some(pipeline) = made.get() {
            return Ok(pipeline);
        }
        let _making = self.lock(making);
        if let Some(pipeline) = made.get() {
            return Ok(pipeline);
        }
        match self.compile(&kernel.spec, &kernel.layout) {
            Ok(pipeline) => Ok(made.get_or_init(|| pipeline)),
            Err(error) => {
                self.forget_kernel(kernel);
                Err(error)
            }
        }
    }

    /// Compiles kernels, on as many threads as run at once.
    ///
    /// Errors: as [`Gpu::pipeline`], of the first of them that has one. The others are compiled all the same.
    pub(super) fn compile_all(&self, kernels: &[Arc<KernelInner>]) -> Result<()> {
        let mut missing: Vec<_> = kernels.iter().enumerate().filter(|(_, k)| !k.pipeline.is_there()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        // Where scopes answer late, it is by their order that their kernels are known.
        let most = if self.answers_late() { 1 } else { thread::available_parallelism().map_or(1, NonZero::get) };
        let threads = most.min(missing.len());
        if 1 < threads && threads < missing.len() {
            // The largest first, or one thread ends long after the others.
            missing.sort_by_cached_key(|(_, kernel)| std::cmp::Reverse(kernel.spec.assemble().text.len()));
        }
        let (next, first) = (AtomicUsize::new(0), Mutex::new(None::<(usize, Error)>));
        let work = || {
            while let Some((place, kernel)) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                let Err(error) = self.pipeline(kernel) else { continue };
                let mut first = self.lock(&first);
                if first.as_ref().is_none_or(|(other, _)| place < other) {
                    *first = Some((*place, error));
                }
            }
        };
        thread::scope(|scope| {
            for _ in 1..threads {
                // Where there are no threads, or no more of them, this one does it all.
                let _ = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work);
            }
            work();
        });
        let first = first.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        first.map_or(Ok(()), |(_, error)| Err(error))
    }

    fn compile(&self, spec: &KernelSpec, layout: &Layout) -> Result<wgpu::ComputePipeline> {
        // Browsers have no such clock, and compile later.
        let begun = (!cfg!(target_arch = "wasm32")).then(Instant::now);
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
        if let Some(begun) = begun {
            self.note_compile_time(spec, begun);
        }
        Ok(pipeline)
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
