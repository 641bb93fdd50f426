//! How many workgroups fill a device: a short sweep of a streaming kernel, since wgpu does not tell the core count.

use super::{number, part, Access, Buffer, Gpu, Kernel, KernelSpec};
use crate::error::{ErrorKind, Result};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const LANES: usize = 64;
/// What one workgroup reads; the time of a dispatch then depends little on their number (bytes).
const SHARE_BYTES: u64 = 128 << 10;
/// The buffer: larger than last-level caches where the device is fast enough to tell (bytes).
const GPU_BYTES: u64 = 256 << 20;
const SOFTWARE_BYTES: u64 = 8 << 20;
/// A count this close to the best rate fills the device.
const ENOUGH: f64 = 0.95;
/// A decode workgroup computes between its loads, so a device takes this many times what streaming takes.
const WORKGROUPS_PER_STREAM: usize = 2;
/// Dispatches per count; the fastest counts.
const REPEATS: usize = 3;
/// Time to bring the clocks up, and after which no larger count is tried.
const WARM: Duration = Duration::from_millis(60);
const ENOUGH_TIME: Duration = Duration::from_millis(300);

/// What [`Gpu::measure_parallelism`] found.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Parallelism {
    /// The fewest workgroups that read memory at 95% of the best rate seen (workgroups of 64 lanes).
    pub workgroups: usize,
    /// What to give to [`GpuOptions::target_workgroups`](super::GpuOptions) or
    /// [`Decode::with_target_workgroups`](crate::Decode::with_target_workgroups).
    pub target_workgroups: usize,
    /// The sweep: workgroups, and the rate that they reached (gigabytes per second).
    pub samples: Vec<(usize, f64)>,
}

/// By [`Capabilities::adapter`](super::Capabilities): devices of one adapter are alike.
static MEASURED: Mutex<Option<HashMap<String, Parallelism>>> = Mutex::new(None);

impl Gpu {
    /// Measures how many workgroups keep this device busy, in less than half a second; once per adapter and process,
    /// after which the first result is returned. Nothing calls it but the app: a device has a guess by its type
    /// ([`Capabilities::target_workgroups`](super::Capabilities)) until it is given something better. Measure while the
    /// device is otherwise idle, store the number with the adapter's description, and pass it back at the next start:
    ///
    /// ```no_run
    /// # use latten::{Gpu, GpuOptions};
    /// # fn load(adapter: &str) -> Option<usize> { None }
    /// # fn store(adapter: &str, workgroups: usize) {}
    /// # async fn f() -> latten::Result<()> {
    /// let mut gpu = Gpu::new().await?;
    /// let adapter = gpu.capabilities().adapter.clone();
    /// let stored: Option<usize> = load(&adapter);
    /// let target_workgroups = match stored {
    ///     Some(workgroups) => workgroups,
    ///     None => gpu.measure_parallelism().await?.target_workgroups,
    /// };
    /// store(&adapter, target_workgroups);
    /// gpu = Gpu::with_options(GpuOptions {
    ///     adapter: Some(adapter),
    ///     target_workgroups: Some(target_workgroups),
    ///     ..Default::default()
    /// })
    /// .await?;
    /// # Ok(()) }
    /// ```
    ///
    /// On a device of the app's own, [`Decode::with_target_workgroups`](crate::Decode::with_target_workgroups) takes it.
    /// Times are GPU timestamps, or, where the device has none, the wall clock.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] in a browser without timestamps, which has no clock that would do;
    /// [`ErrorKind::OutOfMemory`] for its buffer of up to 256 MiB, which is freed again; those of the device.
    pub async fn measure_parallelism(&self) -> Result<Parallelism> {
        let adapter = self.capabilities().adapter.clone();
        let measured = || MEASURED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = measured().as_ref().and_then(|all| all.get(&adapter).cloned()) {
            return Ok(found);
        }
        let found = self.sweep().await?;
        Ok(measured().get_or_insert_default().entry(adapter).or_insert(found).clone())
    }

    async fn sweep(&self) -> Result<Parallelism> {
        if cfg!(target_arch = "wasm32") && !self.capabilities().timestamps {
            return Err(ErrorKind::Unsupported { what: "timestamp queries, to measure parallelism".into() }.into());
        }
        let stream = Stream::new(self)?;
        let limit = self.capabilities().max_workgroups as usize;
        let mut clock = Clock::start();
        while clock.elapsed() < WARM {
            stream.us(self, 1024.min(limit), 1).await?;
            clock.count_dispatch();
        }
        let mut clock = Clock::start();
        let mut samples = Vec::new();
        // Doubling, with the steps between; two doublings without a gain are the end.
        for workgroups in counts().take_while(|count| *count <= limit) {
            let us = stream.us(self, workgroups, REPEATS).await?;
            clock.count_dispatch();
            samples.push((workgroups, workgroups as f64 * SHARE_BYTES as f64 / us.max(0.1) / 1e3));
            if clock.elapsed() > ENOUGH_TIME || settled(&samples) {
                break;
            }
        }
        let workgroups = fewest(&samples);
        Ok(Parallelism { workgroups, target_workgroups: WORKGROUPS_PER_STREAM * workgroups, samples })
    }
}

/// 1, 2, 3, 4, 6, 8, 12, 16, ..
fn counts() -> impl Iterator<Item = usize> {
    std::iter::once(1).chain((1..20).flat_map(|log2| [1 << log2, 3 << (log2 - 1)]))
}

/// Whether the last four counts, two doublings, were no better than what was before them.
fn settled(samples: &[(usize, f64)]) -> bool {
    let Some(before) = samples.len().checked_sub(4).filter(|before| *before > 0) else { return false };
    let best = |samples: &[(usize, f64)]| samples.iter().map(|sample| sample.1).fold(0.0, f64::max);
    // A tiny device is settled early by noise alone; a few counts more cost nothing.
    samples.len() > 12 && best(&samples[before..]) <= 1.02 * best(&samples[..before])
}

fn fewest(samples: &[(usize, f64)]) -> usize {
    let best = samples.iter().map(|sample| sample.1).fold(0.0, f64::max);
    samples.iter().find(|sample| sample.1 >= ENOUGH * best).map_or(1, |sample| sample.0)
}

/// The wall clock; in browsers, which have none here, dispatches are counted instead.
struct Clock {
    start: Option<Instant>,
    dispatches: u32,
}

impl Clock {
    fn start() -> Self {
        let start = if cfg!(target_arch = "wasm32") { None } else { Some(Instant::now()) };
        Clock { start, dispatches: 0 }
    }

    fn count_dispatch(&mut self) {
        self.dispatches += 1;
    }

    fn elapsed(&self) -> Duration {
        self.start.map_or(Duration::from_millis(10) * self.dispatches, |start| start.elapsed())
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct StreamParams {
    pub(crate) words: u32,
    pub(crate) first: u32,
}

struct Stream {
    kernel: Kernel,
    source: Buffer,
    sink: Buffer,
    /// Where the next dispatch begins (shares): past what the last ones left in a cache.
    next: AtomicU32,
}

impl Stream {
    fn new(gpu: &Gpu) -> Result<Self> {
        let bytes = if gpu.capabilities().is_software() { SOFTWARE_BYTES } else { GPU_BYTES };
        let bytes = bytes.min(gpu.capabilities().max_binding_bytes) / SHARE_BYTES * SHARE_BYTES;
        let source = gpu.create_buffer("stream", bytes)?;
        gpu.clear(std::slice::from_ref(&source))?;
        let (kernel, sink) = (gpu.kernel(spec())?, gpu.create_buffer("sink", 16)?);
        Ok(Stream { kernel, source, sink, next: AtomicU32::new(0) })
    }

    fn dispatch(&self, gpu: &Gpu, pass: &mut wgpu::ComputePass<'_>, workgroups: usize) -> Result<()> {
        let shares = (self.source.size_bytes() / SHARE_BYTES) as u32;
        let first = self.next.fetch_add(workgroups as u32, Ordering::Relaxed) % shares;
        let params = StreamParams { words: (SHARE_BYTES / 16) as u32, first };
        gpu.dispatch(pass, &self.kernel, &params, &[&self.source, &self.sink], (workgroups as u32, 1, 1))
    }

    /// The least time of a dispatch of so many workgroups (microseconds).
    async fn us(&self, gpu: &Gpu, workgroups: usize, repeats: usize) -> Result<f64> {
        if gpu.capabilities().timestamps {
            let times = gpu.time_passes(repeats, |pass, _| self.dispatch(gpu, pass, workgroups)).await?;
            return Ok(times.into_iter().fold(f64::INFINITY, f64::min));
        }
        let mut least = f64::INFINITY;
        for _ in 0..repeats {
            let start = Instant::now();
            gpu.record(|pass| self.dispatch(gpu, pass, workgroups))?;
            gpu.submit()?;
            gpu.wait()?;
            least = least.min(start.elapsed().as_secs_f64() * 1e6);
        }
        Ok(least)
    }
}

pub(crate) fn spec() -> KernelSpec {
    KernelSpec {
        name: "stream",
        consts: vec![("LANES", number(LANES))],
        parts: vec![part!("gpu/stream.wgsl")],
        bindings: vec![Access::Read, Access::Write],
        workgroup_bytes: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::GpuOptions;

    #[test]
    fn the_fewest_that_fill_the_device() {
        assert_eq!(counts().take(9).collect::<Vec<_>>(), [1, 2, 3, 4, 6, 8, 12, 16, 24]);
        let samples: Vec<(usize, f64)> = counts().take(14).map(|n| (n, 100.0 * (n.min(50) as f64))).collect();
        assert_eq!(fewest(&samples), 48);
        assert_eq!((fewest(&[]), fewest(&[(7, 0.0)])), (1, 7));
        assert!(!settled(&samples[..4]) && !settled(&samples));
        let flat: Vec<(usize, f64)> = counts().take(14).map(|n| (n, 3.0)).collect();
        assert!(settled(&flat));
    }

    /// With timestamps and by the wall clock; on whatever adapter is there, in time, and the same when asked again.
    #[test]
    fn a_device_is_measured_once() {
        let gpu = pollster::block_on(Gpu::new()).expect("a GPU adapter, software ones count");
        let plain =
            pollster::block_on(Gpu::with_options(GpuOptions { no_features: true, ..Default::default() })).unwrap();
        for gpu in [&gpu, &plain] {
            let found = pollster::block_on(gpu.sweep()).unwrap();
            println!("{found:?}");
            let best = found.samples.iter().map(|sample| sample.1).fold(0.0, f64::max);
            assert!(found.workgroups >= 1 && found.target_workgroups == 2 * found.workgroups, "{found:?}");
            assert!(best > 0.01 && found.samples.iter().any(|sample| sample.0 == found.workgroups), "{found:?}");
        }
        let first = pollster::block_on(gpu.measure_parallelism()).unwrap();
        assert_eq!(pollster::block_on(plain.measure_parallelism()).unwrap(), first);
    }
}
