//! Commands: recorded into one pass that stays open, and sent together; and what becomes of them where that fails.
//!
//! All callers record into the same batch, so what spoils it takes everyone's work. Three things keep that apart:
//!
//! - What a call can be refused for is checked before it records anything. What it adds at the end of a batch (the copy of a
//!   download) is in an encoder of its own, so that a fault there is the caller's alone.
//! - Every buffer has a [`Fate`]. A batch lists what it is to write; where it is lost (an app destroyed a buffer, memory ran
//!   out), these are marked, and what is marked is neither read nor bound until it has been wholly written anew. So nobody
//!   gets a result that was not computed: whoever asks for it hears of the loss. A pass of an app's own is not in a batch, but
//!   what it makes of buffers that one writes is listed too.
//! - A count of lost batches ([`Gpu::losses`]) serves who writes the same scratch memory again and again and knows where
//!   a piece of work begins and ends (a step of a session). That memory has no fate.

use super::fate::Fate;
use super::{Access, Buffer, Gpu, HostPart};
use crate::error::{Error, ErrorKind, Result};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// Commands recorded and not yet sent, and the losses of those before.
#[derive(Default)]
pub(super) struct Commands {
    pub(super) pending: Mutex<Pending>,
    /// Where the pass of [`Pending`] lies: what tells it from an app's.
    own_pass: AtomicUsize,
    /// The number of the batch that is being recorded. Changes under the lock of what is pending.
    batch: AtomicU64,
    /// What that batch is to write.
    written: Mutex<Vec<Arc<Fate>>>,
    /// The submit, by its number, since which the device was asked whether it lives: [`Gpu::check_alive_for_next`].
    asked_alive: AtomicU64,
    /// How often an app said that its passes are submitted.
    pub(super) passes_submitted: AtomicU64,
    /// The last submit that went well, for whoever waits for it and not for what comes after it.
    last_submission: Mutex<Option<wgpu::SubmissionIndex>>,
    /// Batches that were lost.
    losses: AtomicU64,
    last_loss: Mutex<String>,
    /// For asking whether a buffer is there.
    probe: OnceLock<wgpu::BindGroupLayout>,
}

/// One storage buffer.
const PROBE: wgpu::BindGroupLayoutDescriptor<'_> = wgpu::BindGroupLayoutDescriptor {
    label: None,
    entries: &[wgpu::BindGroupLayoutEntry {
        binding: 0,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Storage { read_only: true },
            has_dynamic_offset: false,
            min_binding_size: None,
        },
        count: None,
    }],
};

#[derive(Default)]
pub(super) struct Pending {
    // The pass holds the encoder open, so it is declared, and dropped, first.
    pass: Option<wgpu::ComputePass<'static>>,
    pub(super) encoder: Option<wgpu::CommandEncoder>,
}

/// What sending came to.
struct Sent {
    /// Why the batch was lost, if it was.
    lost: Option<Error>,
    /// The rest: what the caller added, or sending nothing.
    rest: Result<()>,
}

/// What a caller adds behind a batch.
struct Last<'a> {
    /// What it reads.
    reads: &'a [&'a Buffer],
    fate: &'a [Arc<Fate>],
    commands: &'a dyn Fn(&mut wgpu::CommandEncoder),
}

/// What a caller has sent: in browsers it becomes known later whether that went well.
pub(super) struct Ticket(Arc<Fate>);

impl Ticket {
    /// Once [`Gpu::answered`] has returned. Errors: [`ErrorKind::CommandsLost`].
    pub(super) fn check(&self, gpu: &Gpu) -> Result<()> {
        match self.0.loss() > 0 {
            true => Err(gpu.loss("a copy".into())),
            false => Ok(()),
        }
    }
}

fn address(pass: &wgpu::ComputePass<'_>) -> usize {
    std::ptr::from_ref(pass).addr()
}

impl Gpu {
    /// Records commands into the pass that is open, opening one if need be.
    pub(crate) fn record(&self, commands: impl FnOnce(&mut wgpu::ComputePass<'_>) -> Result<()>) -> Result<()> {
        self.check_flag()?;
        let mut pending = self.lock(&self.inner.commands.pending);
        if pending.encoder.is_none() {
            self.check_alive_for_next()?;
        }
        let Pending { pass, encoder } = &mut *pending;
        let encoder = encoder.get_or_insert_with(|| self.inner.device.create_command_encoder(&Default::default()));
        let pass = pass.get_or_insert_with(|| self.begin_pass(encoder).forget_lifetime());
        self.inner.commands.own_pass.store(address(pass), Ordering::Relaxed);
        commands(pass)
    }

    /// Records commands that belong in no pass. One that is open ends before them.
    pub(super) fn record_beside_passes(&self, commands: impl FnOnce(&mut wgpu::CommandEncoder)) -> Result<()> {
        self.put_waiting()?;
        self.check_flag()?;
        let mut pending = self.lock(&self.inner.commands.pending);
        if pending.encoder.is_none() {
            self.check_alive_for_next()?;
        }
        pending.pass = None;
        let new = || self.inner.device.create_command_encoder(&Default::default());
        commands(pending.encoder.get_or_insert_with(new));
        Ok(())
    }

    /// [`Gpu::check_alive`], once for all that goes with the next submit, commands and writes: asking costs as much as a
    /// dispatch. A device that is lost later is noticed when they are sent, and before a result is read.
    pub(super) fn check_alive_for_next(&self) -> Result<()> {
        let submits = self.inner.counters.submits.load(Ordering::Relaxed) + 1;
        if self.inner.commands.asked_alive.load(Ordering::Relaxed) == submits {
            return self.check_flag();
        }
        self.check_alive()?;
        self.inner.commands.asked_alive.store(submits, Ordering::Relaxed);
        Ok(())
    }

    /// Whether a pass is latten's own.
    pub(super) fn is_own(&self, pass: &wgpu::ComputePass<'_>) -> bool {
        address(pass) == self.inner.commands.own_pass.load(Ordering::Relaxed)
    }

    /// Called by each dispatch, before it is recorded: refuses what would read buffers whose content is lost, and lists what
    /// it writes. `whole` are those outputs of which it leaves nothing as it was. Returns whether the pass is latten's own.
    pub(super) fn note(
        &self,
        pass: &wgpu::ComputePass<'_>,
        access: &[Access],
        buffers: &[&Buffer],
        whole: &[&Buffer],
    ) -> Result<bool> {
        let (commands, own) = (&self.inner.commands, self.is_own(pass));
        // Who records holds the lock. In an app's pass: after whatever is being sent just now.
        let _sent = (!own).then(|| self.lock(&commands.pending));
        if commands.losses.load(Ordering::Relaxed) > 0 {
            let renewed = |buffer: &Buffer| whole.iter().any(|b| b.id() == buffer.id());
            self.expect_kept(buffers.iter().filter(|b| !renewed(b)).copied())?;
            whole.iter().for_each(|buffer| buffer.renew());
        }
        if !own {
            let round = commands.passes_submitted.load(Ordering::Relaxed) + 1;
            buffers.iter().for_each(|buffer| buffer.lend(round));
        }
        let batch = commands.batch.load(Ordering::Relaxed);
        let is_in = |buffer: &&Buffer| buffer.fate().is_some_and(|fate| fate.is_in(batch));
        if !own && !buffers.iter().any(is_in) {
            return Ok(own);
        }
        let writes = access.iter().zip(buffers).filter(|(access, _)| **access == Access::Write);
        self.list_written(writes.filter_map(|(_, buffer)| buffer.fate()));
        Ok(own)
    }

    /// Lists what the batch that is being recorded is to write. The caller holds the lock of what is pending.
    pub(super) fn list_written<'a>(&self, fates: impl IntoIterator<Item = &'a Arc<Fate>>) {
        let commands = &self.inner.commands;
        let batch = commands.batch.load(Ordering::Relaxed);
        for fate in fates.into_iter().filter(|fate| fate.enter(batch)) {
            self.lock(&commands.written).push(fate.clone());
        }
    }

    /// Fails where commands that were to write one of these buffers are lost.
    pub(crate) fn expect_kept<'a>(&self, buffers: impl IntoIterator<Item = &'a Buffer>) -> Result<()> {
        match buffers.into_iter().find(|buffer| buffer.is_lost()) {
            Some(buffer) => Err(self.loss(format!("{buffer:?}"))),
            None => Ok(()),
        }
    }

    /// Batches lost so far.
    pub(crate) fn losses(&self) -> u64 {
        self.inner.commands.losses.load(Ordering::Acquire)
    }

    /// Fails where a batch was lost since [`Gpu::losses`] was `before`: `what` may have been in it.
    pub(crate) fn expect_no_loss(&self, before: u64, what: &str) -> Result<()> {
        match self.losses() == before {
            true => Ok(()),
            false => Err(self.loss(what.into())),
        }
    }

    /// The error of what was in a lost batch.
    pub(crate) fn loss(&self, what: String) -> Error {
        ErrorKind::CommandsLost { what, message: self.lock(&self.inner.commands.last_loss).clone() }.into()
    }

    /// Whether commands are recorded and not sent.
    pub(crate) fn is_pending(&self) -> bool {
        self.lock(&self.inner.commands.pending).encoder.is_some()
    }

    /// Whether the batch that is being recorded is to write this buffer.
    pub(crate) fn is_recorded(&self, buffer: &Buffer) -> bool {
        let batch = self.inner.commands.batch.load(Ordering::Relaxed);
        buffer.fate().is_some_and(|fate| fate.is_in(batch))
    }

    /// Fails if an app has destroyed the buffer: nothing tells but a call that refuses it, of which the cheapest is a bind
    /// group. Asked once per batch. A browser answers too late to be asked.
    pub(super) fn expect_there(&self, buffer: &Buffer) -> Result<()> {
        let commands = &self.inner.commands;
        let batch = commands.batch.load(Ordering::Relaxed);
        let Some(fate) = buffer.fate().filter(|fate| !self.answers_late() && !fate.was_asked(batch)) else {
            return Ok(());
        };
        let device = &self.inner.device;
        let group = self.scoped_in("binding", &[], || {
            let layout = commands.probe.get_or_init(|| device.create_bind_group_layout(&PROBE));
            let size = NonZeroU64::new(buffer.size_bytes().min(16));
            let binding = wgpu::BufferBinding { buffer: buffer.raw(), offset: 0, size };
            let entries = [wgpu::BindGroupEntry { binding: 0, resource: wgpu::BindingResource::Buffer(binding) }];
            device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout, entries: &entries })
        });
        self.check_alive_for_next()?;
        group.map_err(|e| ErrorKind::argument("tensor", format!("{buffer:?} cannot be used: {e}")))?;
        fate.note_asked(batch);
        Ok(())
    }

    /// Sends what was recorded to the device; does not wait. Call it before submitting commands of your own that read
    /// what `run` writes.
    ///
    /// # Errors
    ///
    /// Those of the device. Then what was recorded, by whomever, is lost, and whoever asks for it is told:
    /// [`ErrorKind::CommandsLost`].
    pub fn submit(&self) -> Result<()> {
        let Sent { lost, rest } = self.send(None, false);
        lost.map_or(rest, Err)
    }

    /// [`Gpu::submit`] in the service of something else, of which others' losses are none.
    pub(crate) fn send_recorded(&self) -> Result<()> {
        self.send(None, false).rest
    }

    /// The same, even of nothing: sends what was written to tensors, which else stays on the host until then.
    pub(crate) fn flush(&self) -> Result<()> {
        self.send(None, true).rest
    }

    /// Sends what was recorded, and behind it, in the same submit, commands that read `reads`.
    ///
    /// Errors: those of the added commands alone; [`ErrorKind::CommandsLost`] where what they read is lost.
    pub(super) fn submit_with(
        &self,
        reads: &[&Buffer],
        commands: impl Fn(&mut wgpu::CommandEncoder),
    ) -> Result<Ticket> {
        let fate = Arc::new(Fate::default());
        let last = Last { reads, fate: std::slice::from_ref(&fate), commands: &commands };
        self.send(Some(last), true).rest?;
        Ok(Ticket(fate))
    }

    /// Ends the batch and sends it, with what is added (`always`: even if there is nothing).
    ///
    /// The lock is held until the queue has it: whoever finds nothing pending may rely on all earlier work of every
    /// thread being in the queue, or its loss being known.
    fn send(&self, last: Option<Last<'_>>, always: bool) -> Sent {
        if let Err(error) = self.put_waiting() {
            return Sent { lost: None, rest: Err(error) };
        }
        let commands = &self.inner.commands;
        let mut pending = self.lock(&commands.pending);
        pending.pass = None;
        let recorded = pending.encoder.take();
        if recorded.is_none() && !always {
            self.free_retired();
            return Sent { lost: None, rest: Ok(()) };
        }
        let mut batch = match recorded.is_some() {
            true => {
                commands.batch.fetch_add(1, Ordering::Relaxed);
                std::mem::take(&mut *self.lock(&commands.written))
            }
            false => Vec::new(),
        };
        let sent = self.send_batch(recorded, &mut batch, last.as_ref());
        // Its memory serves the next.
        batch.clear();
        *self.lock(&commands.written) = batch;
        self.free_retired();
        sent
    }

    fn send_batch(
        &self,
        recorded: Option<wgpu::CommandEncoder>,
        batch: &mut Vec<Arc<Fate>>,
        last: Option<&Last<'_>>,
    ) -> Sent {
        let finished = recorded
            .map(|encoder| self.timed(HostPart::Finish, || self.scoped_in("recording", batch, || encoder.finish())));
        let (recorded, mut lost) = match finished.transpose() {
            Ok(recorded) => (recorded, None),
            Err(error) => (None, Some(self.lose(batch, error))),
        };
        let mut rest = last.map(|last| self.finish_last(last)).transpose();
        let added = rest.as_mut().ok().and_then(Option::take);
        if recorded.is_some() || rest.is_ok() {
            let with_batch = recorded.is_some();
            // A browser's answer concerns all that went together.
            batch.extend(last.iter().flat_map(|last| last.fate).cloned());
            let sent = self.submit_buffers(recorded.into_iter().chain(added), batch);
            batch.truncate(batch.len() - last.map_or(0, |last| last.fate.len()));
            match sent {
                Ok(()) => {}
                Err(error) if with_batch => {
                    lost = Some(self.lose(batch, error));
                    // What was added may be good, and may read nothing of what is lost.
                    let again = rest.and_then(|_| last.map(|last| self.finish_last(last)).transpose());
                    rest = again.and_then(|added| self.submit_buffers(added, &[]).map(|()| None));
                }
                Err(error) => rest = Err(error),
            }
        }
        Sent { lost, rest: rest.map(|_| ()) }
    }

    fn finish_last(&self, last: &Last<'_>) -> Result<wgpu::CommandBuffer> {
        self.expect_kept(last.reads.iter().copied())?;
        let copy = || {
            let mut encoder = self.inner.device.create_command_encoder(&Default::default());
            (last.commands)(&mut encoder);
            encoder.finish()
        };
        self.timed(HostPart::Finish, || self.scoped_in("copy", last.fate, copy))
    }

    fn submit_buffers(
        &self,
        commands: impl IntoIterator<Item = wgpu::CommandBuffer>,
        batch: &[Arc<Fate>],
    ) -> Result<()> {
        let clock = self.clock();
        // Not with buffers that a lost device made: using them may panic.
        self.check_alive()?;
        self.inner.counters.submits.fetch_add(1, Ordering::Relaxed);
        let index = self.scoped_in("submit", batch, || self.inner.queue.submit(commands))?;
        *self.lock(&self.inner.commands.last_submission) = Some(index);
        let alive = self.check_alive();
        self.stop(clock, HostPart::Submit);
        alive
    }

    /// The last submit that went well, if there was one.
    pub(super) fn last_submission(&self) -> Option<wgpu::SubmissionIndex> {
        self.lock(&self.inner.commands.last_submission).clone()
    }

    /// Sends commands of an encoder of the caller's own.
    pub(super) fn finish_and_submit(&self, encoder: wgpu::CommandEncoder) -> Result<()> {
        let commands = self.scoped("recording", || encoder.finish())?;
        self.submit_buffers([commands], &[])
    }

    /// Marks what a batch was to write.
    pub(super) fn lose(&self, batch: &[Arc<Fate>], error: Error) -> Error {
        let commands = &self.inner.commands;
        // Under the lock of its words, so that numbers differ.
        let mut last = self.lock(&commands.last_loss);
        *last = error.to_string();
        let number = commands.losses.load(Ordering::Relaxed) + 1;
        batch.iter().for_each(|fate| fate.set_loss(number));
        commands.losses.store(number, Ordering::Release);
        error
    }
}

#[cfg(test)]
#[path = "commands_tests.rs"]
mod tests;
