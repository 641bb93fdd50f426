//! Browsers: error scopes that answer later, and memory that must be given back by hand.
//!
//! WebGPU's promises are only kept when the page's own code returns to the event loop. So a call cannot wait for its
//! error scopes; their answers are kept, in order, and looked at by whoever waits next: a readback. And a buffer whose
//! last handle is dropped stays until JavaScript's garbage collector finds it, which sees a small object and not the
//! memory behind it; so buffers are destroyed, once what is recorded and names them has been submitted. Natively wgpu does
//! all of this, and nothing here is used but the count of what is compiled.

use super::fate::Fate;
use super::Gpu;
use crate::error::{Error, Result};
use std::collections::VecDeque;
use std::future::{poll_fn, Future};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// What only browsers need.
#[derive(Default)]
pub(super) struct Web {
    /// Error scopes that have not answered, oldest first.
    scopes: Mutex<Scopes>,
    /// The first error that belongs to no batch and that nobody has been told.
    error: Mutex<Option<Error>>,
    /// Who waits for scopes.
    waiting: Arc<Waiting>,
    /// Buffers without an owner that recorded commands may name.
    retired: Mutex<Vec<wgpu::Buffer>>,
    /// Whether errors come late here too.
    #[cfg(test)]
    late: std::sync::atomic::AtomicBool,
}

#[derive(Default)]
struct Scopes {
    queue: VecDeque<Scope>,
    /// Scopes closed so far.
    closed: u64,
}

struct Scope {
    number: u64,
    context: String,
    answer: Answer,
    /// What is lost if this answers with an error.
    batch: Vec<Arc<Fate>>,
    /// A pipeline is compiled once this has answered.
    compiles: bool,
}

type Answer = Pin<Box<dyn Future<Output = Option<wgpu::Error>> + Send>>;

/// A scope wakes one waker, and any number may wait.
#[derive(Default)]
struct Waiting(Mutex<Vec<Waker>>);

impl Wake for Waiting {
    fn wake(self: Arc<Self>) {
        let wakers = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// Scopes after which those that have answered are sorted out. A step has about thirty; loading a model, hundreds.
const MANY_SCOPES: usize = 256;

impl Gpu {
    /// Whether what a call did wrong becomes known only later.
    pub(crate) fn answers_late(&self) -> bool {
        #[cfg(test)]
        if self.inner.web.late.load(std::sync::atomic::Ordering::Relaxed) {
            return true;
        }
        cfg!(target_arch = "wasm32")
    }

    /// Lets errors come late, as in browsers.
    #[cfg(test)]
    pub(crate) fn answer_late(&self) {
        self.inner.web.late.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// Closes scopes, in the order they were opened, whose answers [`Gpu::answered`] looks at. An error of theirs is the loss
    /// of `batch`, if there is one.
    pub(super) fn await_later(&self, context: &str, scopes: [wgpu::ErrorScopeGuard; 3], batch: &[Arc<Fate>]) {
        let mut waiting = self.lock(&self.inner.web.scopes);
        for scope in scopes.into_iter().rev() {
            batch.iter().for_each(|fate| fate.await_answer());
            let (number, answer): (_, Answer) = (waiting.closed, Box::pin(scope.pop()));
            waiting.queue.push_back(Scope {
                number,
                context: context.into(),
                answer,
                batch: batch.to_vec(),
                compiles: false,
            });
            waiting.closed += 1;
        }
        if waiting.queue.len() >= MANY_SCOPES {
            // A page that reads nothing for long. An error among them is what the next readback returns.
            let mut cx = Context::from_waker(Waker::noop());
            for mut scope in std::mem::take(&mut waiting.queue) {
                match scope.answer.as_mut().poll(&mut cx) {
                    Poll::Pending => waiting.queue.push_back(scope),
                    Poll::Ready(error) => self.take_answer(scope, error),
                }
            }
        }
    }

    /// A pipeline was just made: it is compiled when its scopes, the last ones, have answered; natively it is already.
    pub(super) fn compiles(&self) {
        match self.lock(&self.inner.web.scopes).queue.back_mut() {
            Some(scope) => scope.compiles = true,
            None => self.count_compiled(true),
        }
    }

    fn count_compiled(&self, compiled: bool) {
        self.inner.counters.compiled.fetch_add(compiled.into(), Ordering::Relaxed);
    }

    /// Waits for all error scopes so far. The first error among them that belongs to no batch; those of batches are losses,
    /// of which those are told whom they concern.
    pub(crate) async fn answered(&self) -> Result<()> {
        let closed = self.lock(&self.inner.web.scopes).closed;
        poll_fn(|cx| self.poll_answers(cx, closed)).await;
        // A lost device answers with nothing; its own error says more than what followed from it.
        self.check_flag()?;
        self.lock(&self.inner.web.error).take().map_or(Ok(()), Err)
    }

    /// Waits for a future, and takes the answers that come in the meantime: so whoever looks at the counters sees kernels being
    /// compiled one by one, though a result comes after all of them.
    pub(super) async fn while_answers_come<T>(&self, mut future: impl Future<Output = T> + Unpin) -> T {
        let closed = self.lock(&self.inner.web.scopes).closed;
        poll_fn(|cx| {
            let _ = self.poll_answers(cx, closed);
            Pin::new(&mut future).poll(cx)
        })
        .await
    }

    /// Nothing is taken out before it has answered: a wait that is dropped, or another beside it, misses none.
    fn poll_answers(&self, cx: &mut Context<'_>, closed: u64) -> Poll<()> {
        let web = &self.inner.web;
        let mut scopes = self.lock(&web.scopes);
        if scopes.queue.front().is_none_or(|scope| scope.number >= closed) {
            return Poll::Ready(());
        }
        let mut wakers = self.lock(&web.waiting.0);
        if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            wakers.push(cx.waker().clone());
        }
        drop(wakers);
        let all = Waker::from(web.waiting.clone());
        let mut cx = Context::from_waker(&all);
        while let Some(mut scope) = scopes.queue.pop_front() {
            if scope.number >= closed {
                scopes.queue.push_front(scope);
                break;
            }
            match scope.answer.as_mut().poll(&mut cx) {
                Poll::Pending => {
                    scopes.queue.push_front(scope);
                    return Poll::Pending;
                }
                Poll::Ready(error) => self.take_answer(scope, error),
            }
        }
        Poll::Ready(())
    }

    fn take_answer(&self, scope: Scope, error: Option<wgpu::Error>) {
        self.count_compiled(scope.compiles);
        if let Some(error) = error {
            let error = self.error_of(&scope.context, error);
            match scope.batch.is_empty() {
                true => drop(self.lock(&self.inner.web.error).get_or_insert(error)),
                false => drop(self.lose(&scope.batch, error)),
            }
        }
        scope.batch.iter().for_each(|fate| fate.answered());
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
    let idle = gpu.inner.commands.pending.try_lock().is_ok_and(|pending| pending.encoder.is_none());
    match idle {
        true => buffer.destroy(),
        false => gpu.lock(&gpu.inner.web.retired).push(buffer.clone()),
    }
}
