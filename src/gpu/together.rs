//! Kernels that a piece of work needs, compiled together.
//!
//! A kernel is made in two steps: it is asked for, which names it, and it is compiled. Outside of a scope both are one. In a scope,
//! which is of one thread, kernels are only named. At the end of [`Gpu::together`] all that were asked for are compiled, on
//! several threads. What the work dispatches in the meantime waits from the first kernel on that is not compiled, and is recorded
//! after that in the order in which it came: so nobody records twice, and nobody must know beforehand what will be dispatched.
//! In [`Gpu::lazily`] nothing is compiled but what is dispatched: that is for whoever makes kernels that may never be used.

use super::fate::Fate;
use super::kernel::{Grid, Kernel, KernelInner};
use super::{Access, Buffer, Gpu};
use crate::error::Result;
use std::cell::RefCell;
use std::sync::Arc;

/// What becomes of kernels that are asked for, and of dispatches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Naming {
    /// Kernels are compiled when they are dispatched.
    Lazily,
    /// They are compiled at the end, and dispatches of those that are not there wait for that.
    Together,
    /// They are compiled at the end, and nothing is dispatched.
    Names,
}

/// The scope that a thread is in.
struct Named {
    /// The device, by the address of what its handles share.
    gpu: usize,
    naming: Naming,
    /// In the order in which they were asked for.
    kernels: Vec<Arc<KernelInner>>,
    waiting: Vec<WaitingDispatch>,
}

/// A dispatch that waits for its kernel, or behind one that does. What it binds may serve others in the meantime, as it may when it
/// is recorded: they come behind it.
struct WaitingDispatch {
    kernel: Arc<KernelInner>,
    group: wgpu::BindGroup,
    offset: u32,
    /// Of what it writes.
    written: Vec<Arc<Fate>>,
    grid: Grid,
}

thread_local! {
    static NAMED: RefCell<Option<Named>> = const { RefCell::new(None) };
}

/// Ends the scope of this thread, also where the work fails or panics.
struct EndOfNaming;

impl Drop for EndOfNaming {
    fn drop(&mut self) {
        drop(NAMED.take());
    }
}

impl Gpu {
    /// Calls `work`, and compiles all kernels together that it asks for and that are not there. What it dispatches with them is
    /// recorded after that.
    ///
    /// Errors: those of `work`; then of the first of its kernels that does not compile, and of what it has dispatched.
    pub(crate) fn together<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.in_scope(Naming::Together, work)
    }

    /// Calls `work`, which makes kernels that may not all be used: each is compiled when it is first dispatched, or asked for
    /// elsewhere.
    ///
    /// Errors: those of `work`.
    pub(crate) fn lazily<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.in_scope(Naming::Lazily, work)
    }

    /// Calls `work` and compiles together what it would dispatch into latten's own pass, but records nothing there.
    ///
    /// Errors: as [`Gpu::together`].
    #[cfg(feature = "model")]
    pub(crate) fn compile_for(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        self.in_scope(Naming::Names, work)
    }

    fn in_scope<T>(&self, naming: Naming, work: impl FnOnce() -> Result<T>) -> Result<T> {
        if NAMED.with_borrow(Option::is_some) {
            return work(); // the outer one counts
        }
        let (kernels, waiting) = (Vec::new(), Vec::new());
        NAMED.set(Some(Named { gpu: self.address(), naming, kernels, waiting }));
        let _end = EndOfNaming;
        let value = work()?;
        let named = self.in_named(|named| (std::mem::take(&mut named.kernels), std::mem::take(&mut named.waiting)));
        named.map_or(Ok(()), |named| self.compile_and_put(named))?;
        Ok(value)
    }

    /// Sees to it that a kernel is compiled: now, or with the others of this thread's scope.
    pub(crate) fn want(&self, kernel: &Kernel) -> Result<()> {
        let k = &kernel.inner;
        match k.pipeline.is_there() || self.in_named(|named| named.add(k)).is_some() {
            true => Ok(()),
            false => self.pipeline(k).map(drop),
        }
    }

    /// Whether a dispatch into latten's own pass is to wait ([`Gpu::keep_waiting`]).
    pub(super) fn waits(&self, kernel: &KernelInner) -> bool {
        let waits = |named: &mut Named| !(named.waiting.is_empty() && kernel.pipeline.is_there());
        self.in_named(|named| named.naming == Naming::Together && waits(named)).unwrap_or(false)
    }

    /// Keeps a dispatch that waits, checked and noted.
    pub(super) fn keep_waiting(
        &self,
        (kernel, buffers): (&Arc<KernelInner>, &[&Buffer]),
        group: &wgpu::BindGroup,
        offset: u32,
        grid: Grid,
    ) {
        let writes = kernel.spec.bindings.iter().zip(buffers).filter(|(access, _)| **access == Access::Write);
        let written = writes.filter_map(|(_, buffer)| buffer.fate().cloned()).collect();
        let (kernel, group) = (kernel.clone(), group.clone());
        self.in_named(|named| {
            named.add(&kernel);
            named.waiting.push(WaitingDispatch { kernel, group, offset, written, grid });
        });
        self.spoil_tape();
    }

    /// Whether this thread's dispatches only say which kernels they need, as this one does then.
    pub(super) fn only_named(&self, kernel: &Arc<KernelInner>) -> bool {
        self.in_named(|named| {
            let only = named.naming == Naming::Names;
            if only {
                named.add(kernel);
            }
            only
        })
        .unwrap_or(false)
    }

    /// Whether this thread's dispatches only say which kernels they need.
    pub(crate) fn only_names(&self) -> bool {
        self.in_named(|named| named.naming == Naming::Names).unwrap_or(false)
    }

    /// Before anything else is put behind what is recorded: records what waits.
    pub(super) fn put_waiting(&self) -> Result<()> {
        let all = |named: &mut Named| {
            let waits = !named.waiting.is_empty();
            waits.then(|| (std::mem::take(&mut named.kernels), std::mem::take(&mut named.waiting)))
        };
        self.in_named(all).flatten().map_or(Ok(()), |named| self.compile_and_put(named))
    }

    fn compile_and_put(&self, (kernels, waiting): (Vec<Arc<KernelInner>>, Vec<WaitingDispatch>)) -> Result<()> {
        self.compile_all(&kernels)?;
        match waiting.is_empty() {
            true => Ok(()),
            false => self.record(|pass| {
                waiting.iter().try_for_each(|WaitingDispatch { kernel, group, offset, written, grid }| {
                    let pipeline = self.pipeline(kernel)?;
                    // It was noted for what was recorded then; others may have sent that.
                    self.list_written(written);
                    self.put(pass, (kernel.spec.name, pipeline), (group, *offset), *grid);
                    Ok(())
                })
            }),
        }
    }

    fn in_named<T>(&self, f: impl FnOnce(&mut Named) -> T) -> Option<T> {
        NAMED.with_borrow_mut(|named| named.as_mut().filter(|named| named.gpu == self.address()).map(f))
    }
}

impl Named {
    fn add(&mut self, kernel: &Arc<KernelInner>) {
        if self.naming != Naming::Lazily && !self.kernels.iter().any(|known| known.id == kernel.id) {
            self.kernels.push(kernel.clone());
        }
    }
}

#[cfg(test)]
#[path = "together_tests.rs"]
mod tests;
