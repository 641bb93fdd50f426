//! How a `Gpu` is made: the device, and, before its matrix kernels are used, their self-test.

use crate::error::{ErrorKind, Result};
use crate::gpu::{Gpu, GpuOptions, Tier};
use crate::self_test;

impl Gpu {
    /// The best adapter: a discrete GPU, else an integrated or virtual one, else a software one.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoAdapter`] with what was found and what to install; [`ErrorKind::Unsupported`].
    pub async fn new() -> Result<Self> {
        Self::with_options(GpuOptions::default()).await
    }

    /// [`Gpu::new`] with choices.
    ///
    /// Where [`Tier::Matrix`] is asked for and the device has it, its kernels run a small decode first, which takes as long
    /// as compiling three of them and is compared with [`reference`](mod@crate::reference) on the host. If it is wrong, or
    /// a kernel does not compile, or the device is lost over it, the kernels of [`Tier::Subgroup`] are used instead: the
    /// log has a warning with the numbers, and [`Capabilities::tier`] is below [`Capabilities::device_tier`].
    ///
    /// # Errors
    ///
    /// As [`Gpu::new`]; [`ErrorKind::NoAdapter`] also where none fits the name, [`ErrorKind::Unsupported`] also
    /// where the device refuses the limits; [`ErrorKind::OutOfMemory`] in the self-test.
    ///
    /// [`Capabilities::tier`]: super::Capabilities::tier
    /// [`Capabilities::device_tier`]: super::Capabilities::device_tier
    pub async fn with_options(options: GpuOptions) -> Result<Self> {
        let gpu = Self::open(&options).await?;
        if gpu.capabilities().tier < Tier::Matrix {
            return Ok(gpu);
        }
        // On a handle of its own, which takes what the test made with it.
        let outcome = self_test::run(&gpu.at_tier(Tier::Matrix)).await;
        if let Some(why) = device_lost(&outcome) {
            warn(&gpu, &why);
            return Self::open(&GpuOptions { tier: Some(Tier::Subgroup), ..options }).await;
        }
        settle(gpu, outcome)
    }

    /// The same device with the kernels of [`Tier::Matrix`], where it has their features and they pass the self-test of
    /// [`Gpu::with_options`]; else with those it has. For an app's own device ([`Gpu::from_wgpu`]), before anything is made on
    /// it: tensors, caches and kernels of `self` are refused by the result.
    ///
    /// # Errors
    ///
    /// Those of the device, [`ErrorKind::DeviceLost`] among them.
    pub async fn with_matrix_kernels(self) -> Result<Self> {
        let tier = self.capabilities().tier;
        if tier >= Tier::Matrix || self.capabilities().device_tier < Tier::Matrix {
            return Ok(self);
        }
        let gpu = self.at_tier(Tier::Matrix);
        let outcome = self_test::run(&self.at_tier(Tier::Matrix)).await;
        settle(gpu, outcome)
    }
}

/// What a self-test leaves: the device as it is, or, for a fault in words or an error of its kernels, the tier below.
fn settle(gpu: Gpu, outcome: Result<Option<String>>) -> Result<Gpu> {
    let why = match outcome {
        Ok(None) => return Ok(gpu),
        Ok(Some(fault)) => fault,
        Err(e) if matches!(e.kind(), ErrorKind::Gpu { .. } | ErrorKind::Unsupported { .. }) => e.to_string(),
        Err(e) => return Err(e),
    };
    warn(&gpu, &why);
    Ok(gpu.at_tier(Tier::Subgroup))
}

fn device_lost(outcome: &Result<Option<String>>) -> Option<String> {
    let lost = outcome.as_ref().err().filter(|e| matches!(e.kind(), ErrorKind::DeviceLost { .. }));
    lost.map(ToString::to_string)
}

fn warn(gpu: &Gpu, why: &str) {
    let adapter = &gpu.capabilities().adapter;
    log::warn!("latten: the matrix kernels of {adapter} are not used, they failed their self-test: {why}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::Decode;
    use crate::gpu::DType;
    use crate::kv::{Gta, HeadLayout};

    fn error(kind: ErrorKind) -> Result<Option<String>> {
        Err(kind.into())
    }

    #[test]
    fn what_fails_falls_back_and_goes_on() {
        let gpu = pollster::block_on(Gpu::new()).expect("a GPU adapter, software ones count");
        let heads = HeadLayout::gta(Gta { q_heads: 4, kv_heads: 2, head_dim: 16, rope_dim: 8 }).unwrap();
        let (context, message) = ("decode_matrix".to_string(), "no such thing".to_string());
        for outcome in [
            Ok(Some("NMSE 1".into())),
            error(ErrorKind::Gpu { context, message }),
            error(ErrorKind::Unsupported { what: "coopLoad".into() }),
        ] {
            let below = settle(gpu.at_tier(Tier::Matrix), outcome).unwrap();
            let c = below.capabilities();
            assert!(c.tier <= Tier::Subgroup && c.device_tier == gpu.capabilities().device_tier);
            assert_eq!(below.device(), gpu.device(), "the same device");
            Decode::new(&below, heads, DType::F16).unwrap();
        }
    }

    #[test]
    fn what_passes_stays_and_other_errors_are_errors() {
        let gpu = pollster::block_on(Gpu::new()).expect("a GPU adapter, software ones count");
        assert_eq!(settle(gpu.clone(), Ok(None)).unwrap().capabilities().tier, gpu.capabilities().tier);
        let lost = || error(ErrorKind::DeviceLost { message: "gone".into() });
        assert!(matches!(settle(gpu.clone(), lost()).unwrap_err().kind(), ErrorKind::DeviceLost { .. }));
        let memory = || error(ErrorKind::OutOfMemory { message: "full".into() });
        assert!(matches!(settle(gpu, memory()).unwrap_err().kind(), ErrorKind::OutOfMemory { .. }));
        // A loss is what with_options opens another device for.
        assert!(device_lost(&lost()).is_some_and(|why| why.contains("gone")));
        assert_eq!([memory(), Ok(None), Ok(Some("wrong".into()))].map(|o| device_lost(&o)), [None, None, None]);
    }

    /// A device below the tier is not changed by asking for more.
    #[test]
    fn matrix_kernels_only_where_the_device_has_them() {
        let gpu = pollster::block_on(Gpu::new()).expect("a GPU adapter, software ones count");
        let before = gpu.counters();
        let after = pollster::block_on(gpu.clone().with_matrix_kernels()).unwrap();
        assert_eq!(after.capabilities().tier, gpu.capabilities().tier);
        assert_eq!(after.counters(), before, "nothing was compiled or run");
    }
}
