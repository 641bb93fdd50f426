//! GPU time of recorded work, by timestamp queries at the ends of a pass.

use super::Gpu;
use crate::error::{ErrorKind, Result};

/// Queries in one set: two per pass.
const MAX_PASSES: usize = 512;

impl Gpu {
    /// Runs `work` in `passes` compute passes of one submit and returns the GPU microseconds of each. `work` is given
    /// the pass and its index; it records with the kernels' `encode` forms.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] where the device has no timestamp queries; [`ErrorKind::Argument`] for 0 or
    /// more than 512 passes.
    pub async fn time_passes(
        &self,
        passes: usize,
        mut work: impl FnMut(&mut wgpu::ComputePass<'_>, usize) -> Result<()>,
    ) -> Result<Vec<f64>> {
        if !self.capabilities().timestamps {
            return Err(ErrorKind::Unsupported { what: "timestamp queries".into() }.into());
        }
        if passes == 0 || passes > MAX_PASSES {
            return Err(ErrorKind::argument("passes", format!("{passes} is not in 1..={MAX_PASSES}")));
        }
        self.send_recorded()?;
        let device = &self.inner.device;
        let desc = wgpu::QuerySetDescriptor { label: None, ty: wgpu::QueryType::Timestamp, count: 2 * passes as u32 };
        let set = self.scoped("timestamps", || device.create_query_set(&desc))?;
        let mut encoder = device.create_command_encoder(&Default::default());
        for i in 0..passes {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: None,
                timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                    query_set: &set,
                    beginning_of_pass_write_index: Some(2 * i as u32),
                    end_of_pass_write_index: Some(2 * i as u32 + 1),
                }),
            });
            work(&mut pass, i)?;
        }
        self.finish_and_submit(encoder)?;
        let times = self.timestamps_us(&set, 2 * passes).await?;
        Ok(times.chunks_exact(2).map(|t| (t[1] - t[0]).max(0.0)).collect())
    }

    /// The first `count` timestamps of a set, after those who write them were submitted, from the earliest on (GPU
    /// microseconds).
    pub(super) async fn timestamps_us(&self, set: &wgpu::QuerySet, count: usize) -> Result<Vec<f64>> {
        use wgpu::BufferUsages as U;
        let (device, bytes) = (&self.inner.device, 8 * count as u64);
        let buffer = |usage| {
            device.create_buffer(&wgpu::BufferDescriptor { label: None, size: bytes, usage, mapped_at_creation: false })
        };
        let (resolved, staging) =
            self.scoped("timestamps", || (buffer(U::QUERY_RESOLVE | U::COPY_SRC), buffer(U::MAP_READ | U::COPY_DST)))?;
        let mut encoder = device.create_command_encoder(&Default::default());
        encoder.resolve_query_set(set, 0..count as u32, &resolved, 0);
        encoder.copy_buffer_to_buffer(&resolved, 0, &staging, 0, bytes);
        self.finish_and_submit(encoder)?;
        let data = self.map(&staging, bytes).await?;
        let ticks: Vec<u64> = data
            .chunks_exact(8)
            .map(|b| u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
            .collect();
        let earliest = ticks.iter().copied().min().unwrap_or(0);
        let us_per_tick = f64::from(self.inner.queue.get_timestamp_period()) / 1000.0;
        Ok(ticks.into_iter().map(|tick| (tick - earliest) as f64 * us_per_tick).collect())
    }
}
