//! Devices that the tests of a binary share, so that each kernel compiles once; and what comes from them.

use super::tier::{self, gpu_with};
use latten::{DType, Gpu, GpuOptions, Tensor, Tier};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::OnceLock;

/// A device that tests take in turn. It keeps every kernel: the tests of a binary ask for some thousands of kernels, many of
/// them again and again, and a software GPU takes seconds to compile one.
fn shared(options: GpuOptions) -> Gpu {
    let gpu = gpu_with(options);
    gpu.keep_idle_kernels(1 << 14);
    gpu
}

/// The adapter under test, with the tier of kernels under test: the one that `LATTEN_TEST_TIER` names, else latten's own
/// choice. No adapter is a failure, never a silent pass.
pub fn gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(|| {
        let gpu = shared(GpuOptions::default());
        eprintln!("adapter: {}, {:?}", gpu.capabilities().adapter, gpu.capabilities().tier);
        gpu
    })
}

/// The same, but of no tier whose products round their input to f16: those have tests, and bounds, of their own.
pub fn exact_gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    match tier::wanted() {
        Some(Tier::Matrix) => {
            GPU.get_or_init(|| shared(GpuOptions { tier: Some(Tier::Subgroup), ..Default::default() }))
        }
        _ => gpu(),
    }
}

/// A device of each tier that the adapter has, those that must be asked for too; [`gpu`] is one of them. In a run for
/// one tier, that alone.
pub fn tiers() -> Vec<&'static Gpu> {
    static OTHERS: OnceLock<Vec<Gpu>> = OnceLock::new();
    let own = gpu().capabilities().tier;
    let others = OTHERS.get_or_init(|| {
        let asked = [Tier::Portable, Tier::Matrix].into_iter().filter(|tier| tier::wanted().is_none() && *tier != own);
        let got = asked.map(|tier| (tier, shared(GpuOptions { tier: Some(tier), ..Default::default() })));
        // Asked for more than there is, latten gives the best there is, which is here already.
        got.filter(|(tier, gpu)| gpu.capabilities().tier == *tier).map(|(_, gpu)| gpu).collect()
    });
    [gpu()].into_iter().chain(others).collect()
}

/// One of a few devices, by test thread: software GPUs compile on one core per device.
pub fn gpu_of_thread() -> &'static Gpu {
    static GPUS: [OnceLock<Gpu>; 4] = [const { OnceLock::new() }; 4];
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! { static MINE: usize = NEXT.fetch_add(1, Ordering::Relaxed); }
    let devices = std::thread::available_parallelism().map_or(2, usize::from).min(GPUS.len());
    GPUS[MINE.with(|i| i % devices)].get_or_init(|| shared(GpuOptions::default()))
}

/// Waits for a future.
pub fn wait<T>(future: impl std::future::Future<Output = T>) -> T {
    pollster::block_on(future)
}

pub fn tensor(gpu: &Gpu, shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::from_slice(gpu, shape, values, DType::F32).unwrap()
}

pub fn download(gpu: &Gpu, tensor: &Tensor) -> Vec<f32> {
    wait(gpu.download(tensor)).unwrap()
}
