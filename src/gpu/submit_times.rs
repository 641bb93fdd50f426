//! Where the time of submits goes: timers of what the host does for them, and timestamps at the ends of latten's own passes.
//!
//! Timers are off unless someone asks for them: then a call of the clock at both ends of a part, a few for each submit; else one
//! look at a flag.

use super::Gpu;
use crate::error::{ErrorKind, Result};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Passes whose times are taken: the largest query set has 4,096 timestamps.
const MAX_TIMED_PASSES: usize = 2048;

/// What the host and the device spent between [`Gpu::start_submit_times`] and [`Gpu::take_submit_times`].
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct SubmitTimes {
    /// Submits.
    pub submits: u64,
    /// Dispatches recorded.
    pub dispatches: u64,
    /// Host: planning, uploads and recording of a session's steps, without what is below.
    pub record: Duration,
    /// Host: ending encoders, where wgpu checks and translates what was recorded.
    pub finish: Duration,
    /// Host: the queue's submit, and asking whether the device is there.
    pub submit: Duration,
    /// Host: waiting for results. What the device still has to do when the host has nothing else to do.
    pub wait: Duration,
    /// Device: latten's own passes, the first 2,048, in the order of recording. A session's step is one, or two where pages were
    /// copied for it. Empty where the device has no timestamps, or where commands were lost.
    pub passes: Vec<PassTime>,
}

/// The device's time of one pass.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct PassTime {
    /// When it began (GPU microseconds), counted from the first of them.
    pub from_us: f64,
    /// From its first dispatch to the end of its last (GPU microseconds).
    pub us: f64,
}

/// A part of the host's work.
#[derive(Debug, Clone, Copy)]
pub(crate) enum HostPart {
    Record,
    Finish,
    Submit,
    Wait,
}

/// A timer that runs, if timers are on: since when, and what the other parts had taken by then (ns).
pub(crate) struct HostClock(Option<(Instant, u64)>);

/// Timers of one device.
#[derive(Default)]
pub(super) struct HostTimers {
    on: AtomicBool,
    /// By [`HostPart`] (ns).
    spent: [AtomicU64; 4],
    passes: Mutex<Option<TimedPasses>>,
    begun: Mutex<Begun>,
}

/// Timestamps at both ends of passes.
struct TimedPasses {
    set: wgpu::QuerySet,
    count: u32,
}

/// Counts when the timers were turned on.
#[derive(Clone, Copy, Default)]
struct Begun {
    submits: u64,
    dispatches: u64,
    losses: u64,
}

impl Gpu {
    /// From now on takes the time of what the host does for submits, and of latten's own passes on the device where it has
    /// timestamps, until [`Gpu::take_submit_times`]; times that were not taken are dropped. Costs the host a few calls of its
    /// clock a submit, and the device nothing that can be measured: unlike [`Gpu::start_profile`] it shows speed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] in browsers; those of the device.
    pub fn start_submit_times(&self) -> Result<()> {
        if cfg!(target_arch = "wasm32") {
            return Err(ErrorKind::Unsupported { what: "a clock for single calls".into() }.into());
        }
        let timers = &self.inner.timers;
        let count = 2 * MAX_TIMED_PASSES as u32;
        let desc = wgpu::QuerySetDescriptor { label: Some("submit times"), ty: wgpu::QueryType::Timestamp, count };
        let set = match self.capabilities().timestamps {
            true => Some(self.scoped("submit times", || self.inner.device.create_query_set(&desc))?),
            false => None,
        };
        *self.lock(&timers.passes) = set.map(|set| TimedPasses { set, count: 0 });
        timers.spent.iter().for_each(|spent| spent.store(0, Ordering::Relaxed));
        *self.lock(&timers.begun) = self.counts();
        timers.on.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Ends the timers and returns what they found.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] without [`Gpu::start_submit_times`]; those of the device.
    pub async fn take_submit_times(&self) -> Result<SubmitTimes> {
        let timers = &self.inner.timers;
        if !timers.on.swap(false, Ordering::Relaxed) {
            return Err(ErrorKind::argument("submit_times", "take_submit_times without start_submit_times"));
        }
        let (begun, passes) = (*self.lock(&timers.begun), self.lock(&timers.passes).take());
        self.send_recorded()?;
        let now = self.counts();
        let timed = match passes.filter(|passes| passes.count > 0 && now.losses == begun.losses) {
            Some(TimedPasses { set, count }) => self.timestamps_us(&set, 2 * count as usize).await?,
            None => Vec::new(),
        };
        let first = timed.first().copied().unwrap_or(0.0);
        let pass = |t: &[f64]| PassTime { from_us: t[0] - first, us: (t[1] - t[0]).max(0.0) };
        let spent = |part: HostPart| Duration::from_nanos(timers.spent[part as usize].load(Ordering::Relaxed));
        Ok(SubmitTimes {
            submits: now.submits - begun.submits,
            dispatches: now.dispatches - begun.dispatches,
            record: spent(HostPart::Record),
            finish: spent(HostPart::Finish),
            submit: spent(HostPart::Submit),
            wait: spent(HostPart::Wait),
            passes: timed.chunks_exact(2).map(pass).collect(),
        })
    }

    fn counts(&self) -> Begun {
        let counters = self.counters();
        Begun { submits: counters.submits, dispatches: counters.dispatches, losses: self.losses() }
    }

    /// Starts a timer, if timers are on.
    pub(crate) fn clock(&self) -> HostClock {
        let timers = &self.inner.timers;
        HostClock(timers.on.load(Ordering::Relaxed).then(|| (Instant::now(), timers.all_spent())))
    }

    /// Adds what a timer has counted to a part, without what other parts took meanwhile.
    pub(crate) fn stop(&self, clock: HostClock, part: HostPart) {
        let Some((start, before)) = clock.0 else { return };
        let timers = &self.inner.timers;
        let others = timers.all_spent().saturating_sub(before);
        let own = (start.elapsed().as_nanos() as u64).saturating_sub(others); // no truncation before 500 years
        timers.spent[part as usize].fetch_add(own, Ordering::Relaxed);
    }

    /// Calls `work`, and counts its time for a part if timers are on.
    pub(super) fn timed<T>(&self, part: HostPart, work: impl FnOnce() -> T) -> T {
        let clock = self.clock();
        let value = work();
        self.stop(clock, part);
        value
    }

    /// Opens a pass of latten's own, between two timestamps where times are taken.
    pub(super) fn begin_pass<'e>(&self, encoder: &'e mut wgpu::CommandEncoder) -> wgpu::ComputePass<'e> {
        if !self.inner.timers.on.load(Ordering::Relaxed) {
            return encoder.begin_compute_pass(&Default::default());
        }
        let mut passes = self.lock(&self.inner.timers.passes);
        let room = passes.as_mut().filter(|passes| (passes.count as usize) < MAX_TIMED_PASSES);
        let timestamp_writes = room.map(|passes| {
            let first = 2 * passes.count;
            passes.count += 1;
            wgpu::ComputePassTimestampWrites {
                query_set: &passes.set,
                beginning_of_pass_write_index: Some(first),
                end_of_pass_write_index: Some(first + 1),
            }
        });
        encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes })
    }
}

impl HostTimers {
    fn all_spent(&self) -> u64 {
        self.spent.iter().map(|spent| spent.load(Ordering::Relaxed)).sum()
    }
}
