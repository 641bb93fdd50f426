//! Devices that the tests of a binary share, so that each kernel compiles once; and what comes from them.

use super::tier::{self, gpu_with};
use latten::{DType, Gpu, GpuOptions, Tensor, Tier};
use std::sync::{Mutex, OnceLock};

/// A device that tests take in turn. It keeps more kernels than an app would: the tests of a binary ask for some thousands,
/// many of them again and again, and a software GPU takes seconds to compile one. Not all of them: each takes megabytes there.
fn shared(options: GpuOptions) -> Gpu {
    let gpu = gpu_with(options);
    gpu.keep_idle_kernels(1 << 8);
    gpu
}

/// How many tests have devices of their own at once, at most.
pub const PLACES: usize = 4;

/// Tests that run at the same time have devices of their own: a software GPU compiles on one core per device, and that is
/// most of the suite's time. A test leaves its devices, with their kernels, to the next one.
struct Place(usize);

/// Tests that are at each place.
static TAKEN: Mutex<[usize; PLACES]> = Mutex::new([0; PLACES]);

impl Place {
    /// One that the fewest other tests have.
    fn take() -> Place {
        let mut taken = TAKEN.lock().unwrap();
        let places = std::thread::available_parallelism().map_or(2, usize::from).min(PLACES);
        let least = (0..places).min_by_key(|i| taken[*i]).unwrap();
        taken[least] += 1;
        Place(least)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        TAKEN.lock().unwrap()[self.0] -= 1;
    }
}

/// The place of the test that runs in this thread, from its first device to its end. A thread that a test starts would have a
/// place, and devices, of its own: hand it the test's.
pub fn place() -> usize {
    thread_local! { static MINE: Place = Place::take(); }
    MINE.with(|place| place.0)
}

/// The adapter under test, with the tier of kernels under test: the one that `LATTEN_TEST_TIER` names, else latten's own
/// choice. No adapter is a failure, never a silent pass.
pub fn gpu() -> &'static Gpu {
    static GPUS: [OnceLock<Gpu>; PLACES] = [const { OnceLock::new() }; PLACES];
    GPUS[place()].get_or_init(|| {
        let gpu = shared(GpuOptions::default());
        eprintln!("adapter: {}, {:?}", gpu.capabilities().adapter, gpu.capabilities().tier);
        gpu
    })
}

/// The same, but of no tier whose products round their input to f16: those have tests, and bounds, of their own.
pub fn exact_gpu() -> &'static Gpu {
    static GPUS: [OnceLock<Gpu>; PLACES] = [const { OnceLock::new() }; PLACES];
    match tier::wanted() {
        Some(Tier::Matrix) => {
            GPUS[place()].get_or_init(|| shared(GpuOptions { tier: Some(Tier::Subgroup), ..Default::default() }))
        }
        _ => gpu(),
    }
}

/// A device of each tier that the adapter has, those that must be asked for too; [`gpu`] is one of them. In a run for
/// one tier, that alone.
pub fn tiers() -> Vec<&'static Gpu> {
    static OTHERS: [OnceLock<Vec<Gpu>>; PLACES] = [const { OnceLock::new() }; PLACES];
    let own = gpu().capabilities().tier;
    let others = OTHERS[place()].get_or_init(|| {
        let asked = [Tier::Portable, Tier::Matrix].into_iter().filter(|tier| tier::wanted().is_none() && *tier != own);
        let got = asked.map(|tier| (tier, shared(GpuOptions { tier: Some(tier), ..Default::default() })));
        // Asked for more than there is, latten gives the best there is, which is here already.
        got.filter(|(tier, gpu)| gpu.capabilities().tier == *tier).map(|(_, gpu)| gpu).collect()
    });
    [gpu()].into_iter().chain(others).collect()
}

/// [`tiers`] for the case of this number in a list. In a default run on a software GPU, which takes seconds to compile each
/// kernel, cases are on one tier each, in turn: `all` stands for the long run, which has every case on every tier.
pub fn tiers_in_turn(number: usize, all: bool) -> Vec<&'static Gpu> {
    let tiers = tiers();
    match all || !gpu().capabilities().is_software() {
        true => tiers,
        false => vec![tiers[number % tiers.len()]],
    }
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
