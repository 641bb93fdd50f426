//! What the kernel tests share: the adapter, seeded random numbers, a few layouts, comparison.

use crate::tier;
pub use crate::tier::gpu_with;
use latten::{Gla, Gpu, GpuOptions, Gqa, Gta, HeadLayout, Mla, Tier};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::OnceLock;

/// The device under test, shared by tests so that each kernel compiles once: of the tier that `LATTEN_TEST_TIER` names,
/// else of latten's own choice. No adapter is a failure, never a silent pass.
pub fn gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(|| {
        let gpu = gpu_with(GpuOptions::default());
        println!("adapter: {}, {:?}", gpu.capabilities().adapter, gpu.capabilities().tier);
        gpu
    })
}

/// A device of each tier that the adapter has, those that must be asked for too; [`gpu`] is one of them. In a run for
/// one tier, that alone.
pub fn tiers() -> Vec<&'static Gpu> {
    static OTHERS: OnceLock<Vec<Gpu>> = OnceLock::new();
    let own = gpu().capabilities().tier;
    let others = OTHERS.get_or_init(|| {
        let asked = [Tier::Portable, Tier::Matrix].into_iter().filter(|tier| tier::wanted().is_none() && *tier != own);
        let got = asked.map(|tier| (tier, gpu_with(GpuOptions { tier: Some(tier), ..Default::default() })));
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
    GPUS[MINE.with(|i| i % devices)].get_or_init(|| gpu_with(GpuOptions::default()))
}

/// SplitMix64: seeded, the same everywhere.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// About normal, on a 1/256 grid and below 4: exact in f16 and f32.
    pub fn value(&mut self) -> f32 {
        let sum: f64 = (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0;
        ((sum * 256.0).round() / 256.0).clamp(-1018.0 / 256.0, 1018.0 / 256.0) as f32
    }

    pub fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.value()).collect()
    }
}

/// One small layout of each kind: between them every slot, tiles of one to 64 rows, odd row counts.
pub fn layouts() -> Vec<HeadLayout> {
    vec![
        HeadLayout::mha(3, 32).unwrap(),
        HeadLayout::gqa(Gqa { q_heads: 8, kv_heads: 2, head_dim: 32 }).unwrap(),
        HeadLayout::mqa(9, 48).unwrap(),
        HeadLayout::gta(Gta { q_heads: 8, kv_heads: 4, head_dim: 64, rope_dim: 32 }).unwrap(),
        HeadLayout::gla(Gla { q_heads: 6, latent_heads: 2, latent_dim: 128, rope_dim: 32 }).unwrap(),
        HeadLayout::mla(Mla { q_heads: 8, latent_dim: 128, rope_dim: 64 }).unwrap(),
    ]
}

/// The layout whose kernels compile fastest, for what does not depend on one.
pub fn small() -> HeadLayout {
    HeadLayout::gta(Gta { q_heads: 4, kv_heads: 2, head_dim: 16, rope_dim: 8 }).unwrap()
}

/// Waits for a future.
pub fn wait<T>(future: impl std::future::Future<Output = T>) -> T {
    pollster::block_on(future)
}

/// Bits, for comparisons in which NaN equals itself and 0 is not -0.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// How far results may be from the reference.
#[derive(Debug, Clone, Copy)]
pub struct Bound {
    pub absolute: f64,
    /// Mean squared error relative to the mean square of `scale`, or of the wanted values if that is 0.
    pub nmse: f64,
    pub scale: f64,
}

/// Positions of NaN and infinity first, then absolute error, then NMSE; returns NMSE and largest absolute error.
pub fn compare(what: &str, got: &[f32], want: &[f64], bound: Bound) -> (f64, f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let same = if w.is_finite() { g.is_finite() } else { f64::from(*g) == *w };
        assert!(same, "{what}[{i}]: got {g}, wanted {w}");
    }
    let finite = || got.iter().zip(want).enumerate().filter(|(_, (_, w))| w.is_finite());
    let (mut error, mut norm, mut worst) = (0.0, 0.0, 0.0f64);
    for (i, (g, w)) in finite() {
        let d = (f64::from(*g) - w).abs();
        assert!(d <= bound.absolute, "{what}[{i}]: got {g}, wanted {w}, off by {d:e}, allowed {:e}", bound.absolute);
        error += d * d;
        norm += if bound.scale > 0.0 { bound.scale * bound.scale } else { w * w };
        worst = worst.max(d);
    }
    let nmse = if norm > 0.0 { error / norm } else { error };
    assert!(nmse <= bound.nmse, "{what}: NMSE {nmse:e}, allowed {:e}", bound.nmse);
    (nmse, worst)
}
