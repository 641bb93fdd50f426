//! Numbers that go to the host and come back changed, in the middle of a step: what several devices exchange.
//!
//! The wait is a loop that asks the device: a driver's own wait takes some 40 us longer to come back (`docs/sharding.md`).

use super::{DType, Gpu, HostPart, Tensor};
use crate::error::Result;
use std::panic::{catch_unwind, AssertUnwindSafe};

/// Looks at the device before each of which the core is not given to others: some hundred microseconds.
const LOOKS: u32 = 256;

impl Gpu {
    /// What a session of several ranks does between its submits; public for those who time it. Submits what is recorded, hands the elements of an F32 tensor to `change` and writes them back. What was recorded is done
    /// by then. `values` is memory that the next exchange uses again.
    ///
    /// # Errors
    ///
    /// Those of the device and of `change`; [`ErrorKind::DType`](crate::ErrorKind::DType),
    /// [`ErrorKind::CommandsLost`](crate::ErrorKind::CommandsLost).
    #[doc(hidden)]
    pub fn exchange(
        &self,
        tensor: &Tensor,
        values: &mut Vec<f32>,
        change: impl FnOnce(&mut [f32]) -> Result<()>,
    ) -> Result<()> {
        self.exchange_beside(&[tensor], values, change)
    }

    /// [`Gpu::exchange`] of several tensors, one behind the other in `values`, of which the first is written back.
    pub(crate) fn exchange_beside(
        &self,
        tensors: &[&Tensor],
        values: &mut Vec<f32>,
        change: impl FnOnce(&mut [f32]) -> Result<()>,
    ) -> Result<()> {
        tensors.iter().try_for_each(|tensor| tensor.dtype().expect("tensor", DType::F32))?;
        let download = self.start_download(tensors)?;
        self.timed(HostPart::Wait, || self.look_until(|| download.is_there()))?;
        values.clear();
        self.take_download(download, |bytes| {
            values.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        })?;
        values.truncate(tensors.iter().map(|tensor| tensor.len()).sum());
        change(values)?;
        tensors.first().map_or(Ok(()), |tensor| self.upload(tensor, &values[..tensor.len()]))
    }

    /// Asks the device until `there` says that what is waited for has come.
    fn look_until(&self, there: impl Fn() -> bool) -> Result<()> {
        let mut looks = 0;
        let mut look = || {
            while !there() {
                self.inner.device.poll(wgpu::PollType::Poll)?;
                looks += 1;
                if looks > LOOKS {
                    std::thread::yield_now();
                }
            }
            Ok::<_, wgpu::PollError>(())
        };
        match self.scoped("wait", || catch_unwind(AssertUnwindSafe(&mut look)))? {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(self.mark_lost(format!("waiting for the device: {e}"))),
            Err(_) => Err(self.mark_lost("waiting for the device panicked".into())),
        }
    }
}
