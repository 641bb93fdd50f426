//! GPU time of single dispatches, by timestamps inside passes: where a step's time goes.

use super::Gpu;
use crate::error::{ErrorKind, Result};

/// Dispatches of one profile: the largest query set has 4,096 timestamps.
const MAX_DISPATCHES: usize = 2048;

/// The time of one dispatch.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct DispatchTime {
    /// The kernel's name, that of its file under `shaders/`.
    pub kernel: &'static str,
    /// When the work before it was done (GPU microseconds), counted from the first dispatch.
    pub from_us: f64,
    /// From there to its own end (GPU microseconds): with the wait between them. The wait for a dispatch of a later submit is not
    /// in it: that is between its `from_us` and the end of the one before.
    pub us: f64,
}

/// Dispatches since [`Gpu::start_profile`].
pub(super) struct Profile {
    set: wgpu::QuerySet,
    kernels: Vec<&'static str>,
}

impl Gpu {
    /// From now on takes the time of each dispatch, up to 2,048 of them, until [`Gpu::take_profile`]; an unfinished profile is
    /// dropped. The timestamps themselves cost some microseconds a dispatch: they show shares, not speed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] where the device was not made with [`GpuOptions::profile`](crate::GpuOptions) or, by
    /// an app, with `TIMESTAMP_QUERY_INSIDE_PASSES`.
    pub fn start_profile(&self) -> Result<()> {
        let needed = wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES;
        if !self.inner.device.features().contains(needed) {
            return Err(ErrorKind::Unsupported { what: "timestamps inside passes".into() }.into());
        }
        let (ty, count) = (wgpu::QueryType::Timestamp, 2 * MAX_DISPATCHES as u32);
        let desc = wgpu::QuerySetDescriptor { label: Some("profile"), ty, count };
        let set = self.scoped("profile", || self.inner.device.create_query_set(&desc))?;
        *self.lock(&self.inner.profile) = Some(Profile { set, kernels: Vec::new() });
        Ok(())
    }

    /// Ends the profile and returns its dispatches in the order of recording. What an app has recorded in passes of its own
    /// must have been submitted.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] without [`Gpu::start_profile`]; those of the device.
    pub async fn take_profile(&self) -> Result<Vec<DispatchTime>> {
        let taken = self.lock(&self.inner.profile).take();
        let Profile { set, kernels } =
            taken.ok_or_else(|| ErrorKind::argument("profile", "take_profile without start_profile"))?;
        self.send_recorded()?;
        if kernels.is_empty() {
            return Ok(Vec::new());
        }
        let times = self.timestamps_us(&set, 2 * kernels.len()).await?;
        let first = times.first().copied().unwrap_or(0.0);
        let times = times.chunks_exact(2).map(|t| (t[0] - first, (t[1] - t[0]).max(0.0)));
        let dispatch = |(kernel, (from_us, us))| DispatchTime { kernel, from_us, us };
        Ok(kernels.into_iter().zip(times).map(dispatch).collect())
    }

    /// Records a dispatch between two timestamps, if a profile is being taken and has room.
    pub(super) fn profiled(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        kernel: &'static str,
        record: impl FnOnce(&mut wgpu::ComputePass<'_>),
    ) {
        let mut profile = self.lock(&self.inner.profile);
        let Some(Profile { set, kernels }) = profile.as_mut().filter(|p| p.kernels.len() < MAX_DISPATCHES) else {
            return record(pass);
        };
        let first = 2 * kernels.len() as u32;
        kernels.push(kernel);
        pass.write_timestamp(set, first);
        record(pass);
        pass.write_timestamp(set, first + 1);
    }
}
