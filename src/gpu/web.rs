//! Browsers: error scopes that answer later, and memory that must be given back by hand.
//!
//! WebGPU's promises are only kept when the page's own code returns to the event loop. So a call cannot wait for its
//! error scopes; their answers are kept, in order, and looked at by whoever waits next: a readback. And a buffer whose
//! last handle is dropped stays until JavaScript's garbage collector finds it, which sees a small object and not the
//! memory behind it; so buffers are destroyed, once what is recorded and names them has been submitted. Natively wgpu does
//! all of this, and nothing here is used but the count of what is compiled.

use super::Gpu;
use crate::error::Result;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};

/// What only browsers need.
#[derive(Default)]
pub(super) struct Web {
    /// Error scopes that have not answered, oldest first.
    scopes: Mutex<Vec<Scope>>,
    /// Buffers without an owner that recorded commands may name.
    retired: Mutex<Vec<wgpu::Buffer>>,
}

struct Scope {
    context: String,
    answer: Answer,
    /// A pipeline is compiled once this has answered.
    compiles: bool,
}

type Answer = Pin<Box<dyn Future<Output = Option<wgpu::Error>> + Send>>;

/// Scopes after which those that have answered are sorted out. A step has about thirty; loading a model, hundreds.
const MANY_SCOPES: usize = 256;

impl Gpu {
    /// Closes scopes, in the order they were opened, whose answers [`Gpu::answered`] looks at.
    pub(super) fn await_later(&self, context: &str, scopes: [wgpu::ErrorScopeGuard; 3]) {
        let popped = scopes.into_iter().rev().map(|scope| -> Answer { Box::pin(scope.pop()) });
        let mut waiting = self.lock(&self.inner.web.scopes);
        waiting.extend(popped.map(|answer| Scope { context: context.into(), answer, compiles: false }));
        if waiting.len() >= MANY_SCOPES {
            // A page that reads nothing for long. An error among them stays: it is what the next readback returns.
            let mut cx = Context::from_waker(Waker::noop());
            waiting.retain_mut(|scope| match scope.answer.as_mut().poll(&mut cx) {
                Poll::Pending => true,
                Poll::Ready(None) => {
                    self.count_compiled(scope.compiles);
                    false
                }
                Poll::Ready(error) => {
                    scope.answer = Box::pin(std::future::ready(error));
                    true
                }
            });
        }
    }

    /// A pipeline was just made: it is compiled when its scopes, the last ones, have answered; natively it is already.
    pub(super) fn compiles(&self) {
        match self.lock(&self.inner.web.scopes).last_mut() {
            Some(scope) => scope.compiles = true,
            None => self.count_compiled(true),
        }
    }

    fn count_compiled(&self, compiled: bool) {
        self.inner.counters.compiled.fetch_add(compiled.into(), Ordering::Relaxed);
    }

    /// Waits for all error scopes so far; the first error among them.
    pub(super) async fn answered(&self) -> Result<()> {
        let scopes = std::mem::take(&mut *self.lock(&self.inner.web.scopes));
        let mut first = None;
        for scope in scopes {
            let error = scope.answer.await;
            self.count_compiled(scope.compiles);
            first = first.or(error.map(|error| self.error_of(&scope.context, error)));
        }
        // A lost device answers with nothing; its own error says more than what followed from it.
        self.check_flag()?;
        first.map_or(Ok(()), Err)
    }

    /// After a submit, or where nothing was recorded: frees what was retired before. The caller holds the lock of what is
    /// recorded.
    pub(super) fn free_retired(&self) {
        self.lock(&self.inner.web.retired).drain(..).for_each(|buffer| buffer.destroy());
    }
}

/// Frees a buffer that has no owner any more: now, or after the next submit where a recorded command may name it.
pub(super) fn retire(gpu: Option<&Gpu>, buffer: &wgpu::Buffer) {
    // With the device went what it had recorded.
    let Some(gpu) = gpu else { return buffer.destroy() };
    // Locked by whoever is recording just now, whose commands may name it too.
    let idle = gpu.inner.pending.try_lock().is_ok_and(|pending| pending.encoder.is_none());
    match idle {
        true => buffer.destroy(),
        false => gpu.lock(&gpu.inner.web.retired).push(buffer.clone()),
    }
}
