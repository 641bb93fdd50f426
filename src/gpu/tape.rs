//! Recorded work that repeats: a step of a loop records the same dispatches as the one before, so these are kept as wgpu takes them
//! (pipeline, bind group, offset, grid) and given to the next pass as they are, without a look at shapes, parameters or caches.
//!
//! A tape is found by a key of its user's, which has all that the work hangs on but for what buffers there are. That needs no key:
//! a tape goes with the first of its buffers that goes. What a tape binds lives no longer for its sake.

use super::fate::Fate;
use super::kernel::{Grid, KernelInner};
use super::{Access, Buffer, Gpu};
use crate::error::Result;
use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Tapes that are kept. A stream of one session has two, by its two plans.
const MOST_TAPES: usize = 16;

/// The tapes of a device.
#[derive(Default)]
pub(super) struct Tapes {
    /// The last used at the end.
    kept: Mutex<Vec<Arc<Tape>>>,
    /// Buffers that have gone so far.
    gone: AtomicU64,
}

/// Dispatches in order.
#[derive(Default)]
struct Tape {
    key: Vec<u64>,
    dispatches: Vec<TapedDispatch>,
    /// Dispatches before each cut, where something else is done than to dispatch.
    cuts: Vec<usize>,
    /// What they bind, by number.
    buffers: Vec<u64>,
    /// Of what they write.
    written: Vec<Arc<Fate>>,
}

struct TapedDispatch {
    /// None where it is that of the dispatch before.
    pipeline: Option<wgpu::ComputePipeline>,
    group: wgpu::BindGroup,
    offset: u32,
    grid: Grid,
}

/// A tape that is being recorded by this thread.
struct Taping {
    /// The device, by the address of what its handles share.
    gpu: usize,
    tape: Tape,
    /// The kernel of the last dispatch.
    last: Option<u64>,
    /// Whether it may be used: it may not where an app's buffer is bound, which could be destroyed.
    good: bool,
}

thread_local! {
    static TAPING: RefCell<Option<Taping>> = const { RefCell::new(None) };
}

/// Ends the tape of this thread.
struct EndOfTape;

impl Drop for EndOfTape {
    fn drop(&mut self) {
        TAPING.set(None);
    }
}

/// A dispatch that has just been recorded.
pub(super) struct Recorded<'a> {
    pub(super) kernel: &'a KernelInner,
    pub(super) pipeline: &'a wgpu::ComputePipeline,
    pub(super) params: &'a Buffer,
    pub(super) group: &'a wgpu::BindGroup,
    pub(super) offset: u32,
    pub(super) buffers: &'a [&'a Buffer],
    pub(super) grid: Grid,
}

impl Gpu {
    /// Records what was recorded under this key before, or calls `record` and keeps what that records the second time. Under one
    /// key `record` must record the same, as long as all buffers are there that it binds, and do nothing else.
    ///
    /// Errors: those of `record`; of the device.
    pub(crate) fn record_again(&self, key: &[u64], record: impl FnOnce() -> Result<()>) -> Result<()> {
        self.record_again_cut(key, &mut || Ok(()), |_| record())
    }

    /// [`Gpu::record_again`] of work that is cut: `record` calls what it is given between its parts, and that calls `between`, as do
    /// later calls at the same places.
    ///
    /// Errors: as there; those of `between`.
    pub(crate) fn record_again_cut(
        &self,
        key: &[u64],
        between: &mut dyn FnMut() -> Result<()>,
        record: impl FnOnce(&mut dyn FnMut() -> Result<()>) -> Result<()>,
    ) -> Result<()> {
        // Single dispatches are timed, or looked at one by one for what is lost; or nothing is recorded.
        if self.losses() > 0 || self.lock(&self.inner.profile).is_some() || self.only_names() {
            return record(between);
        }
        match self.tape(key) {
            Some(tape) if !tape.dispatches.is_empty() => self.play(&tape, between),
            Some(_) => self.record_tape(key, || {
                record(&mut || {
                    self.cut_tape();
                    between()
                })
            }),
            // Much comes once and never again.
            None => {
                self.keep_tape(Tape { key: key.to_vec(), ..Tape::default() }, || true);
                record(between)
            }
        }
    }

    fn record_tape(&self, key: &[u64], record: impl FnOnce() -> Result<()>) -> Result<()> {
        let gone = &self.inner.tapes.gone;
        let before = gone.load(Ordering::Acquire);
        let tape = Tape { key: key.to_vec(), ..Tape::default() };
        TAPING.set(Some(Taping { gpu: self.address(), tape, last: None, good: true }));
        let end = EndOfTape; // also where `record` fails or panics
        record()?;
        let taping = TAPING.take();
        drop(end);
        if let Some(Taping { mut tape, good: true, .. }) = taping {
            tape.buffers.sort_unstable();
            tape.buffers.dedup();
            // Whoever goes from the look on finds it among those that are kept.
            self.keep_tape(tape, || gone.load(Ordering::Acquire) == before);
        }
        Ok(())
    }

    /// Keeps a tape in place of another of its key, or of the one that was not used the longest, if `may` says so then.
    fn keep_tape(&self, tape: Tape, may: impl FnOnce() -> bool) {
        let mut kept = self.lock(&self.inner.tapes.kept);
        if may() {
            kept.retain(|other| other.key != tape.key);
            if kept.len() >= MOST_TAPES {
                kept.remove(0);
            }
            kept.push(Arc::new(tape));
        }
    }

    /// Whether both are handles of one device.
    #[cfg(feature = "model")]
    pub(crate) fn is_same(&self, other: &Gpu) -> bool {
        self.address() == other.address()
    }

    /// What tells the device from others while it is there.
    pub(super) fn address(&self) -> usize {
        Arc::as_ptr(&self.inner).addr()
    }

    fn tape(&self, key: &[u64]) -> Option<Arc<Tape>> {
        let mut kept = self.lock(&self.inner.tapes.kept);
        let place = kept.iter().rposition(|tape| tape.key == key)?;
        let tape = kept.remove(place);
        kept.push(tape.clone());
        Some(tape)
    }

    fn play(&self, tape: &Tape, between: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let mut first = 0;
        for cut in &tape.cuts {
            self.play_part(tape, &tape.dispatches[first..*cut])?;
            between()?;
            first = *cut;
        }
        self.play_part(tape, &tape.dispatches[first..])
    }

    fn play_part(&self, tape: &Tape, dispatches: &[TapedDispatch]) -> Result<()> {
        if dispatches.is_empty() {
            return Ok(());
        }
        self.record(|pass| {
            for TapedDispatch { pipeline, group, offset, grid } in dispatches {
                if let Some(pipeline) = pipeline {
                    pass.set_pipeline(pipeline);
                }
                pass.set_bind_group(0, group, &[*offset]);
                pass.dispatch_workgroups(grid.0, grid.1, grid.2);
            }
            self.list_written(&tape.written);
            self.inner.counters.dispatches.fetch_add(dispatches.len() as u64, Ordering::Relaxed);
            Ok(())
        })
    }

    /// Keeps a dispatch of latten's own pass, if this thread records a tape.
    pub(super) fn tape_dispatch(&self, dispatch: &Recorded<'_>) {
        TAPING.with_borrow_mut(|taping| {
            let Some(taping) = taping.as_mut().filter(|taping| taping.gpu == self.address()) else { return };
            let Recorded { kernel, pipeline, params, group, offset, buffers, grid } = *dispatch;
            taping.good &= !buffers.iter().any(|buffer| buffer.is_of_app());
            let pipeline = (taping.last != Some(kernel.id)).then(|| pipeline.clone());
            taping.last = Some(kernel.id);
            taping.tape.dispatches.push(TapedDispatch { pipeline, group: group.clone(), offset, grid });
            taping.tape.buffers.push(params.id());
            taping.tape.buffers.extend(buffers.iter().map(|buffer| buffer.id()));
            for (_, buffer) in kernel.spec.bindings.iter().zip(buffers).filter(|(access, _)| **access == Access::Write)
            {
                let new = |fate: &&Arc<Fate>| !taping.tape.written.iter().any(|known| Arc::ptr_eq(known, fate));
                taping.tape.written.extend(buffer.fate().filter(new).cloned());
            }
        });
    }

    /// Notes that something else comes between what this thread's tape has and what follows, in another pass.
    fn cut_tape(&self) {
        TAPING.with_borrow_mut(|taping| {
            if let Some(taping) = taping.as_mut().filter(|taping| taping.gpu == self.address()) {
                taping.tape.cuts.push(taping.tape.dispatches.len());
                taping.last = None;
            }
        });
    }

    /// A dispatch is recorded later than its place on the tape of this thread: that is not kept.
    pub(super) fn spoil_tape(&self) {
        TAPING.with_borrow_mut(|taping| taping.iter_mut().for_each(|taping| taping.good = false));
    }

    /// Drops the tapes that bind a buffer; called when its last owner goes.
    pub(super) fn forget_tapes(&self, id: u64) {
        let tapes = &self.inner.tapes;
        tapes.gone.fetch_add(1, Ordering::AcqRel);
        let mut kept = self.lock(&tapes.kept);
        let (gone, stay) =
            std::mem::take(&mut *kept).into_iter().partition(|tape| tape.buffers.binary_search(&id).is_ok());
        *kept = stay;
        drop(kept);
        let _gone: Vec<Arc<Tape>> = gone;
    }
}
