//! The device: [`Gpu`], made by latten or from an app's own; [`Tensor`]s on it, filled from the host and read back; what it can do
//! ([`Capabilities`]), and how long things take.
//!
//! Kernels are recorded, and submitted together when a result is read or [`Gpu::submit`] is called. The only folder that names
//! wgpu types in its internals.

pub(crate) mod bare;
mod capabilities;
mod commands;
mod compile;
mod device;
mod element;
pub(crate) mod elements;
#[cfg(test)]
mod emulation_tests;
#[cfg(feature = "model")]
mod exchange;
mod fate;
pub(crate) mod grid;
pub(crate) mod kernel;
mod layout;
mod lent;
mod numbers_hash;
pub(crate) mod parallelism;
mod params;
pub(crate) mod pieces;
mod pipeline_cache;
#[cfg(test)]
mod poison_tests;
mod profile;
mod readback;
pub(crate) mod shader;
mod span;
mod submit_times;
mod tape;
mod tensor;
mod timing;
mod together;
mod web;

pub use capabilities::{Capabilities, Tier};
pub(crate) use capabilities::{MATRIX_WORKGROUP_BYTES, MOST_WORKGROUPS, PORTABLE_WORKGROUP_BYTES};
pub use compile::CompileTime;
pub use device::{GpuOptions, LimitsChoice};
pub use element::Element;
pub(crate) use kernel::{Access, Kernel, KernelSpec};
pub use parallelism::Parallelism;
pub use profile::DispatchTime;
pub(crate) use readback::{elements, Arrived, Download, HostBuffer, Reading, Run};
pub(crate) use shader::{number, part, Const, Consts, ShaderPart};
pub use span::Span;
pub(crate) use span::{check_apart, Extent};
pub(crate) use submit_times::HostPart;
pub use submit_times::{PassTime, SubmitTimes};
pub(crate) use tensor::Buffer;
use tensor::BufferKind;
pub use tensor::{DType, Tensor};

use crate::error::{Error, ErrorKind, Result};
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

/// A GPU: device, queue, compiled kernels, and the commands recorded but not yet submitted. Cheap to clone.
///
/// Every `run` of a kernel only records, into one pass that stays open. Commands go to the device together: when a
/// result is read ([`Gpu::download`]), before memory is overwritten from the host ([`Gpu::upload`], and the plans and
/// step tables that go the same way), or on [`Gpu::submit`]. Clones share all of this, between threads too.
///
/// A call that is refused takes nothing with it. Where the device refuses what was recorded (an app destroyed a buffer that is
/// in it, memory ran out), all of it is lost, whoever recorded it: then every buffer that it was to write is refused, by
/// downloads and by other calls, with [`ErrorKind::CommandsLost`], until it is wholly written again.
///
/// Compiled kernels that nobody holds any more are kept for the next who asks, 32 of them.
#[derive(Clone)]
pub struct Gpu {
    inner: Arc<GpuInner>,
}

struct GpuInner {
    device: wgpu::Device,
    queue: wgpu::Queue,
    capabilities: Capabilities,
    commands: commands::Commands,
    kernels: Mutex<kernel::Kernels>,
    /// Key: kernel id, parameter buffer id, storage buffer ids.
    bind_groups: Mutex<HashMap<Vec<u64>, wgpu::BindGroup, numbers_hash::BuildNumbersHash>>,
    /// Of kernels, by what they bind.
    layouts: Mutex<HashMap<Vec<kernel::Access>, layout::Layout>>,
    params: Mutex<params::ParamPool>,
    readback: Mutex<Vec<wgpu::Buffer>>,
    scratch: Mutex<Option<Buffer>>,
    pipeline_cache: Option<Arc<pipeline_cache::PipelineCacheFile>>,
    profile: Mutex<Option<profile::Profile>>,
    compile_times: Mutex<compile::CompileTimes>,
    timers: submit_times::HostTimers,
    tapes: tape::Tapes,
    lost: Arc<Mutex<Option<String>>>,
    counters: CounterCells,
    /// What only browsers need.
    web: web::Web,
    /// Fill workgroup memory with NaN when a kernel begins.
    #[cfg(test)]
    poison_workgroup: std::sync::atomic::AtomicBool,
}

#[derive(Default)]
struct CounterCells {
    buffers: AtomicU64,
    pipelines: AtomicU64,
    compiled: AtomicU64,
    bind_groups: AtomicU64,
    dispatches: AtomicU64,
    submits: AtomicU64,
    readbacks: AtomicU64,
}

/// How many objects were created and calls made since the [`Gpu`] was: what a test of a decode loop compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Device buffers allocated.
    pub buffers: u64,
    /// Pipelines made.
    pub pipelines: u64,
    /// Those of them that are compiled. A browser compiles after the call that makes a pipeline: there this goes up while
    /// a result is awaited, so that an app can show how far it is. Natively as many as `pipelines`.
    pub compiled: u64,
    /// Bind groups made.
    pub bind_groups: u64,
    /// Dispatches recorded.
    pub dispatches: u64,
    /// Queue submissions.
    pub submits: u64,
    /// Waits for a result.
    pub readbacks: u64,
}

/// How kernels' buffers are used.
const STORAGE: wgpu::BufferUsages =
    wgpu::BufferUsages::STORAGE.union(wgpu::BufferUsages::COPY_SRC).union(wgpu::BufferUsages::COPY_DST);

impl Gpu {
    /// Limits and properties of the device, found out when this was made.
    pub fn capabilities(&self) -> &Capabilities {
        &self.inner.capabilities
    }

    /// The device, for an app that shares it.
    pub fn device(&self) -> &wgpu::Device {
        &self.inner.device
    }

    /// The queue, for an app that shares it.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.inner.queue
    }

    /// Creation and submission counts so far.
    pub fn counters(&self) -> Counters {
        let c = &self.inner.counters;
        let get = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        Counters {
            buffers: get(&c.buffers),
            pipelines: get(&c.pipelines),
            compiled: get(&c.compiled),
            bind_groups: get(&c.bind_groups),
            dispatches: get(&c.dispatches),
            submits: get(&c.submits),
            readbacks: get(&c.readbacks),
        }
    }

    /// Writes the pipeline cache of [`GpuOptions::pipeline_cache`], if there is one and pipelines were made since it was
    /// written. Happens by itself when the last clone of this goes; an app that may be killed calls it when it has warmed
    /// up. What fails is logged.
    pub fn save_pipeline_cache(&self) {
        if let Some(file) = &self.inner.pipeline_cache {
            file.save();
        }
    }

    /// Distinct over all devices: the key of a bind group must not fit the tensor of another one.
    fn next_id(&self) -> u64 {
        static IDS: AtomicU64 = AtomicU64::new(0);
        IDS.fetch_add(1, Ordering::Relaxed)
    }

    /// A panicking thread elsewhere leaves these maps consistent, so a poisoned lock is used as it is.
    fn lock<'a, T>(&self, mutex: &'a Mutex<T>) -> MutexGuard<'a, T> {
        mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Fails once the device is lost.
    ///
    /// wgpu reports a loss to the app's callback alone: calls on a lost device succeed, and give invalid objects. What
    /// tells the two apart is a call that must fail: a lost device swallows its error like every other. A query set
    /// without queries is refused before anything is made, so asking changes nothing, on any thread.
    pub(crate) fn check_alive(&self) -> Result<()> {
        self.check_flag()?;
        // In a browser nothing is answered at once; there the next readback fails.
        if cfg!(target_arch = "wasm32") {
            return Ok(());
        }
        let device = &self.inner.device;
        let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let _ = device.create_query_set(&wgpu::QuerySetDescriptor {
            label: None,
            ty: wgpu::QueryType::Occlusion,
            count: 0,
        });
        match ready(scope.pop()).flatten() {
            Some(_count_is_zero) => Ok(()),
            None => Err(self.mark_lost("it no longer reports errors".into())),
        }
    }

    fn check_flag(&self) -> Result<()> {
        match &*self.lock(&self.inner.lost) {
            Some(message) => Err(ErrorKind::DeviceLost { message: message.clone() }.into()),
            None => Ok(()),
        }
    }

    /// Runs API calls inside error scopes of our own; a user's device keeps its own handlers.
    pub(crate) fn scoped<T>(&self, context: &str, calls: impl FnOnce() -> T) -> Result<T> {
        let value = self.scoped_in(context, &[], calls);
        self.check_alive()?;
        value
    }

    /// [`Gpu::scoped`] of calls that may make a batch fail, which is to write `batch`, on a device that was asked whether it
    /// lives, or will be.
    fn scoped_in<T>(&self, context: &str, batch: &[Arc<fate::Fate>], calls: impl FnOnce() -> T) -> Result<T> {
        self.check_flag()?;
        let device = &self.inner.device;
        let scopes = [wgpu::ErrorFilter::Validation, wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Internal]
            .map(|filter| device.push_error_scope(filter));
        let value = calls();
        // Native scopes answer at once. A browser answers later: there the error surfaces at the next readback.
        if self.answers_late() {
            self.await_later(context, scopes, batch);
            return Ok(value);
        }
        let mut first = None;
        for scope in scopes.into_iter().rev() {
            first = first.or(ready(scope.pop()).flatten());
        }
        first.map_or(Ok(value), |error| Err(self.error_of(context, error)))
    }

    /// What wgpu says, as an error of this crate.
    fn error_of(&self, context: &str, error: wgpu::Error) -> Error {
        if let wgpu::Error::OutOfMemory { source } = &error {
            let kind = ErrorKind::OutOfMemory { message: format!("{context}: {source}") };
            return Error::from(kind).caused_by(error);
        }
        // It may tell of what came before a loss, which then is the reason.
        if let Err(lost) = self.check_alive() {
            return lost;
        }
        Error::from(ErrorKind::Gpu { context: context.into(), message: error.to_string() }).caused_by(error)
    }

    fn mark_lost(&self, message: String) -> Error {
        self.lock(&self.inner.lost).get_or_insert_with(|| message.clone());
        ErrorKind::DeviceLost { message }.into()
    }

    /// Memory for what one dispatch hands to the next one of the same call: shared by all, since dispatches run in order.
    /// Of the most bytes asked for so far, rounded up.
    pub(crate) fn scratch(&self, bytes: u64) -> Result<Buffer> {
        let mut scratch = self.lock(&self.inner.scratch);
        match &*scratch {
            Some(buffer) if buffer.size_bytes() >= bytes => Ok(buffer.clone()),
            _ => {
                let limit = self.capabilities().max_buffer_bytes.min(self.capabilities().max_binding_bytes);
                let size = bytes.max(1 << 20).checked_next_power_of_two().unwrap_or(bytes).min(limit).max(bytes);
                let buffer = self.create_scratch("scratch", size)?;
                *scratch = Some(buffer.clone());
                Ok(buffer)
            }
        }
    }

    pub(crate) fn create_buffer(&self, label: &str, bytes: u64) -> Result<Buffer> {
        self.create_buffer_as(label, bytes, STORAGE, BufferKind::Own)
    }

    /// A buffer of [`BufferKind::Scratch`].
    pub(crate) fn create_scratch(&self, label: &str, bytes: u64) -> Result<Buffer> {
        self.create_buffer_as(label, bytes, STORAGE, BufferKind::Scratch)
    }

    fn create_buffer_as(&self, label: &str, bytes: u64, usage: wgpu::BufferUsages, kind: BufferKind) -> Result<Buffer> {
        // Kernels see vec4<u32>, so sizes are multiples of 16.
        let size = bytes.max(16).next_multiple_of(16);
        let c = self.capabilities();
        let storage = usage.contains(wgpu::BufferUsages::STORAGE);
        let limit = if storage { c.max_buffer_bytes.min(c.max_binding_bytes) } else { c.max_buffer_bytes };
        if size > limit {
            return Err(ErrorKind::TooLarge { what: label.into(), needed_bytes: size, limit_bytes: limit }.into());
        }
        let desc = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false };
        let buffer = self.scoped(label, || self.inner.device.create_buffer(&desc))?;
        self.inner.counters.buffers.fetch_add(1, Ordering::Relaxed);
        Ok(Buffer::wrap(self, buffer, kind))
    }

    /// Fills buffers with zeros now, after everything recorded so far.
    pub(crate) fn clear(&self, buffers: &[Buffer]) -> Result<()> {
        buffers.iter().try_for_each(|buffer| buffer.expect_usage(self, wgpu::BufferUsages::COPY_DST, "clearing"))?;
        self.send_recorded()?;
        let losses: Vec<u64> = buffers.iter().map(Buffer::loss).collect();
        self.submit_with(&[], |encoder| {
            for buffer in buffers {
                encoder.clear_buffer(buffer.raw(), 0, None);
            }
        })?;
        buffers.iter().zip(losses).for_each(|(buffer, loss)| buffer.renew_after(loss));
        Ok(())
    }

    /// Overwrites parts of a buffer (offset in bytes, content), after everything recorded so far. Lengths and offsets are
    /// multiples of 4.
    pub(crate) fn write_parts(&self, buffer: &Buffer, parts: &[(u64, &[u8])]) -> Result<()> {
        buffer.expect_usage(self, wgpu::BufferUsages::COPY_DST, "an upload")?;
        // A write takes effect before the next submit, so what is recorded must be submitted first.
        self.send_recorded()?;
        let loss = buffer.loss();
        let parts = || parts.iter().filter(|(_, bytes)| !bytes.is_empty());
        self.check_alive_for_next()?;
        self.scoped_in("write", &[], || {
            for (offset, bytes) in parts() {
                self.inner.queue.write_buffer(buffer.raw(), *offset, bytes);
            }
        })?;
        // Beside what was written there is at most what fills up the last word of 16 bytes.
        if parts().any(|(offset, bytes)| *offset == 0 && buffer.is_filled_by(bytes.len())) {
            buffer.renew_after(loss);
        }
        Ok(())
    }

    fn adopt_buffer(&self, buffer: wgpu::Buffer) -> Buffer {
        Buffer::wrap(self, buffer, BufferKind::App)
    }

    /// Overwrites part of a buffer, after everything recorded so far. `bytes` must be a multiple of 4 long.
    pub(crate) fn write(&self, buffer: &Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        buffer.expect_gpu(self)?;
        match bytes.is_empty() {
            true => Ok(()),
            false => self.write_parts(buffer, &[(offset, bytes)]),
        }
    }

    /// Copies values into a whole tensor, after everything recorded so far, which is submitted: [`f32`] into F32 or (rounded
    /// to nearest even) F16 or BF16, [`u32`] into U32.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Shape`] where `values` has not the tensor's element count, [`ErrorKind::DType`], [`ErrorKind::Argument`] for
    /// an app's buffer without `COPY_DST`, those of the device.
    pub fn upload<T: Element>(&self, tensor: &Tensor, values: &[T]) -> Result<()> {
        if values.len() != tensor.len() {
            return Err(ErrorKind::shape("values", &[values.len()], crate::error::shape_text(tensor.shape())));
        }
        T::check("tensor", tensor.dtype())?;
        T::write(self, tensor, values)
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpu({})", self.capabilities().adapter)
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kernel({})", self.inner.spec.name)
    }
}

/// A future's value if it is there already.
pub(crate) fn ready<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}
