//! Reading results: one copy, one submit, one wait; and streams of copies through host memory of a fixed size.

use super::commands::Ticket;
use super::tensor::Buffer;
use super::{DType, Element, Gpu, HostPart, Tensor};
use crate::error::{ErrorKind, Result};
use std::future::Future;
use std::ops::Range;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

/// Staging buffers kept for the next readback.
const KEPT: usize = 4;

impl Gpu {
    /// The values of a tensor, after everything recorded so far: as [`f32`] those of F32, F16 and BF16, as [`u32`] those of
    /// U32. Submits and waits.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::DeviceLost`], [`ErrorKind::Gpu`], [`ErrorKind::DType`]; [`ErrorKind::CommandsLost`] where commands that were
    /// to write the tensor are lost; [`ErrorKind::Argument`] for a tensor of another [`Gpu`], or an app's buffer without
    /// `COPY_SRC`.
    pub async fn download<T: Element>(&self, tensor: &Tensor) -> Result<Vec<T>> {
        T::check("tensor", tensor.dtype())?;
        Ok(T::read(tensor.dtype(), &self.read(tensor).await?))
    }

    async fn read(&self, tensor: &Tensor) -> Result<Vec<u8>> {
        let download = self.start_download(&[tensor])?;
        Ok(self.finish_download(download).await?.swap_remove(0))
    }

    /// Submits what is recorded and, in the same submit, copies of tensors (one at least) for the host. While they are under
    /// way the host may do something else, and submit more.
    pub(crate) fn start_download(&self, tensors: &[&Tensor]) -> Result<Download> {
        self.check_alive()?;
        let (mut runs, mut size) = (Vec::with_capacity(tensors.len()), 0);
        for tensor in tensors {
            tensor.buffer.expect_usage(self, wgpu::BufferUsages::COPY_SRC, "a download")?;
            self.expect_there(&tensor.buffer)?;
            let bytes = (tensor.len() * tensor.dtype().size_bits() / 8) as u64;
            runs.push(size..size + bytes);
            size += bytes.next_multiple_of(4);
        }
        let staging = self.staging(size)?;
        let buffers: Vec<&Buffer> = tensors.iter().map(|tensor| &tensor.buffer).collect();
        let sent = self.submit_with(&buffers, |encoder| {
            for (from, run) in buffers.iter().zip(&runs) {
                let bytes = (run.end - run.start).next_multiple_of(4);
                encoder.copy_buffer_to_buffer(from.raw(), 0, &staging, run.start, bytes);
            }
        });
        let ticket = match sent {
            Ok(ticket) => ticket,
            Err(error) => {
                self.keep(HostBuffer { buffer: staging }); // nothing has touched it
                return Err(error);
            }
        };
        let mapping = self.start_map(&staging, size)?;
        let reading = Reading { into: HostBuffer { buffer: staging }, mapping, size, ticket };
        Ok(Download { buffers: buffers.into_iter().cloned().collect(), reading, runs })
    }

    /// Waits for the bytes of each tensor.
    pub(crate) async fn finish_download(&self, download: Download) -> Result<Vec<Vec<u8>>> {
        let Download { buffers, reading: Reading { into, mapping, size, ticket }, runs } = download;
        self.mapped(mapping).await?;
        let bytes = |all: &[u8]| runs.iter().map(|run| all[run.start as usize..run.end as usize].to_vec()).collect();
        let data = with_mapped(&into.buffer, size, bytes)?;
        self.lock(&self.inner.readback).push(into.buffer);
        ticket.check(self)?;
        // Where errors come late, this one has come by now.
        self.expect_kept(&buffers)?;
        Ok(data)
    }

    /// The bytes of a sole tensor that is there, where they lie; what waits for it is done elsewhere ([`Download::is_there`]).
    #[cfg(feature = "model")]
    pub(super) fn take_download<T>(&self, download: Download, take: impl FnOnce(&[u8]) -> T) -> Result<T> {
        let Download { buffers, reading: Reading { into, mapping, size, ticket }, .. } = download;
        if let Some(Err(message)) = super::ready(mapping.answer) {
            self.check_alive()?;
            return Err(self.mark_lost(format!("mapping a result: {message}")));
        }
        let taken = with_mapped(&into.buffer, size, take)?;
        self.lock(&self.inner.readback).push(into.buffer);
        ticket.check(self)?;
        self.expect_kept(&buffers)?;
        Ok(taken)
    }

    /// A staging buffer of at least `size` bytes, from the last ones used if one fits.
    fn staging(&self, size: u64) -> Result<wgpu::Buffer> {
        let mut kept = self.lock(&self.inner.readback);
        let fit = kept.iter().enumerate().filter(|(_, b)| b.size() >= size).min_by_key(|(_, b)| b.size());
        if let Some(i) = fit.map(|(i, _)| i) {
            return Ok(kept.swap_remove(i));
        }
        if kept.len() >= KEPT {
            kept.drain(..).for_each(|buffer| super::web::retire(Some(self), &buffer));
        }
        drop(kept);
        let desc = wgpu::BufferDescriptor {
            label: Some("readback"),
            size: size.next_power_of_two().max(1024),
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        };
        let buffer = self.scoped("readback", || self.inner.device.create_buffer(&desc))?;
        self.inner.counters.buffers.fetch_add(1, Ordering::Relaxed);
        Ok(buffer)
    }

    /// Waits for all that was submitted; in browsers it returns at once.
    pub(super) fn wait(&self) -> Result<()> {
        self.poll(wgpu::PollType::wait_indefinitely())
    }

    /// Lets wgpu look at what the device has done.
    pub(super) fn poll(&self, how: wgpu::PollType) -> Result<()> {
        // wgpu panics here, whatever the scopes, where the driver says that the device is lost.
        let poll = || self.inner.device.poll(how);
        match self.scoped("wait", || catch_unwind(AssertUnwindSafe(poll)))? {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(e)) => Err(self.mark_lost(format!("waiting for the device: {e}"))),
            Err(_) => Err(self.mark_lost("waiting for the device panicked".into())),
        }
    }

    /// Maps, waits, copies out, unmaps.
    pub(super) async fn map(&self, buffer: &wgpu::Buffer, size: u64) -> Result<Vec<u8>> {
        let mapping = self.start_map(buffer, size)?;
        self.mapped(mapping).await?;
        with_mapped(buffer, size, <[u8]>::to_vec)
    }

    /// Asks for a buffer that the last submit writes, if any does.
    fn start_map(&self, buffer: &wgpu::Buffer, size: u64) -> Result<Mapping> {
        let answer = OneShot::default();
        let sender = answer.clone();
        self.inner.counters.readbacks.fetch_add(1, Ordering::Relaxed);
        self.scoped("map", || {
            buffer
                .map_async(wgpu::MapMode::Read, 0..size, move |result| sender.send(result.map_err(|e| e.to_string())));
        })?;
        Ok(Mapping { answer, after: self.last_submission() })
    }

    async fn mapped(&self, mapping: Mapping) -> Result<()> {
        let Mapping { answer, after } = mapping;
        // Browsers complete maps from their event loop; everywhere else this is the wait. For what was submitted later nobody
        // waits here: it may be the next step.
        let wait = wgpu::PollType::Wait { submission_index: after, timeout: None };
        self.timed(HostPart::Wait, || self.poll(wait))?;
        let mapped = self.while_answers_come(answer).await;
        // What browsers have to say about the calls before it has come by then.
        self.answered().await?;
        if let Err(message) = mapped {
            self.check_alive()?;
            return Err(self.mark_lost(format!("mapping a result: {message}")));
        }
        Ok(())
    }

    /// Waits, in browsers too, for all that was submitted.
    pub(crate) async fn finished(&self) -> Result<()> {
        let answer = OneShot::default();
        let sender = answer.clone();
        self.scoped("wait", || self.inner.queue.on_submitted_work_done(move || sender.send(())))?;
        self.wait()?;
        answer.await;
        self.answered().await?;
        self.check_alive()
    }

    /// Host memory that a stream of copies passes through: `size` bytes, a multiple of 4.
    pub(crate) fn host_buffer(&self, size: u64) -> Result<HostBuffer> {
        Ok(HostBuffer { buffer: self.staging(size)? })
    }

    /// Submits what is recorded and then copies of parts of `from` into host memory, of which `size` bytes are to be read.
    /// While they are under way the host may do something else, and the other buffer of a pair be read.
    pub(crate) fn start_read(&self, from: &Buffer, into: HostBuffer, size: u64, runs: &[Run]) -> Result<Reading> {
        from.expect_usage(self, wgpu::BufferUsages::COPY_SRC, "a copy")?;
        let ticket = self.submit_with(&[from], |encoder| copy_runs(encoder, from.raw(), &into.buffer, runs))?;
        let mapping = self.start_map(&into.buffer, size)?;
        Ok(Reading { into, mapping, size, ticket })
    }

    /// Submits what is recorded and then copies of parts of one buffer into another.
    pub(crate) fn copy(&self, from: &Buffer, into: &Buffer, runs: &[Run]) -> Result<()> {
        from.expect_usage(self, wgpu::BufferUsages::COPY_SRC, "a copy")?;
        into.expect_usage(self, wgpu::BufferUsages::COPY_DST, "a copy")?;
        self.submit_with(&[from], |encoder| copy_runs(encoder, from.raw(), into.raw(), runs)).map(drop)
    }

    /// Records copies of parts of one buffer into another, between what was recorded before and what comes after.
    pub(crate) fn record_copies(&self, from: &Buffer, into: &Buffer, runs: &[Run]) -> Result<()> {
        match runs {
            [] => Ok(()),
            runs => self.record_beside_passes(|encoder| copy_runs(encoder, from.raw(), into.raw(), runs)),
        }
    }

    /// Records that a tensor becomes zeros, between what was recorded before and what comes after.
    #[cfg(feature = "model")]
    pub(crate) fn record_clear(&self, tensor: &Tensor) -> Result<()> {
        let bytes = (tensor.len() * tensor.dtype().size_bits() / 8) as u64;
        self.spoil_tape(); // a tape has dispatches alone
        self.record_beside_passes(|encoder| {
            encoder.clear_buffer(tensor.buffer.raw(), 0, Some(bytes.next_multiple_of(4)));
        })
    }

    /// Waits for a copy (and all else that was submitted).
    pub(crate) async fn arrived(&self, reading: Reading) -> Result<Arrived> {
        self.mapped(reading.mapping).await?;
        reading.ticket.check(self)?;
        Ok(Arrived { buffer: reading.into, size: reading.size })
    }

    /// Keeps host memory for the next readback.
    pub(crate) fn keep(&self, buffer: HostBuffer) {
        let mut kept = self.lock(&self.inner.readback);
        if kept.len() < KEPT {
            kept.push(buffer.buffer);
        }
    }
}

/// One copy between buffers, in bytes, multiples of 4.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) size: u64,
}

fn copy_runs(encoder: &mut wgpu::CommandEncoder, from: &wgpu::Buffer, into: &wgpu::Buffer, runs: &[Run]) {
    for run in runs {
        encoder.copy_buffer_to_buffer(from, run.from, into, run.to, run.size);
    }
}

/// Host memory for copies from the device.
pub(crate) struct HostBuffer {
    buffer: wgpu::Buffer,
}

/// A buffer that was asked for, and the submit after which it comes.
struct Mapping {
    answer: OneShot<Result<(), String>>,
    after: Option<wgpu::SubmissionIndex>,
}

/// A copy into host memory that is under way. Dropped, it takes its memory with it.
pub(crate) struct Reading {
    into: HostBuffer,
    mapping: Mapping,
    size: u64,
    ticket: Ticket,
}

/// Tensors on their way to the host. Dropped, it takes its host memory with it.
pub(crate) struct Download {
    buffers: Vec<Buffer>,
    reading: Reading,
    /// Each tensor's bytes in the host memory.
    runs: Vec<Range<u64>>,
}

impl Download {
    /// Whether the device has said what became of it.
    #[cfg(feature = "model")]
    pub(super) fn is_there(&self) -> bool {
        self.reading.mapping.answer.state.lock().unwrap_or_else(PoisonError::into_inner).0.is_some()
    }
}

/// The bytes of a downloaded tensor of this dtype, as its elements.
pub(crate) fn elements<T: Element>(dtype: DType, bytes: &[u8]) -> Vec<T> {
    T::read(dtype, bytes)
}

/// A copy that has arrived.
pub(crate) struct Arrived {
    buffer: HostBuffer,
    size: u64,
}

impl Arrived {
    /// Hands the bytes to `f` where they lie, and returns the memory for the next copy.
    pub(crate) fn take<T>(self, f: impl FnOnce(&[u8]) -> T) -> Result<(T, HostBuffer)> {
        Ok((with_mapped(&self.buffer.buffer, self.size, f)?, self.buffer))
    }
}

/// Calls `f` with the bytes of a mapped buffer and unmaps it.
fn with_mapped<T>(buffer: &wgpu::Buffer, size: u64, f: impl FnOnce(&[u8]) -> T) -> Result<T> {
    let view = buffer
        .get_mapped_range(0..size)
        .map_err(|e| ErrorKind::Gpu { context: "map".into(), message: e.to_string() })?;
    let value = f(&view);
    drop(view);
    buffer.unmap();
    Ok(value)
}

/// A value that a callback delivers to a future.
struct OneShot<T> {
    state: Arc<Mutex<(Option<T>, Option<Waker>)>>,
}

impl<T> OneShot<T> {
    fn send(&self, value: T) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 = Some(value);
        if let Some(waker) = state.1.take() {
            waker.wake();
        }
    }
}

impl<T> Default for OneShot<T> {
    fn default() -> Self {
        OneShot { state: Arc::new(Mutex::new((None, None))) }
    }
}

impl<T> Clone for OneShot<T> {
    fn clone(&self) -> Self {
        OneShot { state: self.state.clone() }
    }
}

impl<T> Future for OneShot<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.0.take() {
            Some(value) => Poll::Ready(value),
            None => {
                state.1 = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}
