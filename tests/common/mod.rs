//! What GPU tests share: the adapter, seeded numbers, comparison with the f64 reference.
#![allow(dead_code)] // each test binary uses a part of it

pub mod checkout;
mod tier;

use latten::{DType, Error, Gpu, GpuOptions, Tensor, Tier};
use std::sync::OnceLock;
pub use tier::gpu_with;

/// The adapter under test, with the tier of kernels under test. No adapter is a failure, never a silent pass.
pub fn gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(|| {
        let gpu = gpu_with(GpuOptions::default());
        eprintln!("adapter: {}, {:?}", gpu.capabilities().adapter, gpu.capabilities().tier);
        gpu
    })
}

/// The same, but of no tier whose products round their input to f16: those have tests, and bounds, of their own.
pub fn exact_gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    match tier::wanted() {
        Some(Tier::Matrix) => {
            GPU.get_or_init(|| gpu_with(GpuOptions { tier: Some(Tier::Subgroup), ..Default::default() }))
        }
        _ => gpu(),
    }
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

    /// In [0, 1), exact in f32.
    pub fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// About normal with this deviation.
    pub fn normal(&mut self, deviation: f32) -> f32 {
        ((0..12).map(|_| f64::from(self.uniform())).sum::<f64>() - 6.0) as f32 * deviation
    }

    pub fn normals(&mut self, n: usize, deviation: f32) -> Vec<f32> {
        (0..n).map(|_| self.normal(deviation)).collect()
    }
}

/// As a tensor of `dtype` holds it.
pub fn rounded(values: &[f32], dtype: DType) -> Vec<f32> {
    match dtype {
        DType::F16 => values.iter().map(|&v| half::f16::from_f32(v).to_f32()).collect(),
        _ => values.to_vec(),
    }
}

pub fn f64s(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

pub fn tensor(gpu: &Gpu, shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::from_slice(gpu, shape, values, DType::F32).unwrap()
}

pub fn download(gpu: &Gpu, tensor: &Tensor) -> Vec<f32> {
    pollster::block_on(gpu.download(tensor)).unwrap()
}

/// Positions of NaN first, then `|got - want| <= tolerance * max(1, rms of want)`, then the normalised mean square error.
pub fn assert_close(case: &str, got: &[f32], want: &[f64], tolerance: f64, nmse: f64) {
    assert_eq!(got.len(), want.len(), "{case}: length");
    let square = want.iter().filter(|w| w.is_finite()).map(|w| w * w).sum::<f64>();
    let scale = (square / want.len() as f64).sqrt().max(1.0);
    let mut error = 0.0;
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let g = f64::from(g);
        assert_eq!(g.is_nan(), w.is_nan(), "{case}: element {i} is {g}, wanted {w}");
        if w.is_nan() {
            continue;
        }
        assert!((g - w).abs() <= tolerance * scale, "{case}: element {i} is {g}, wanted {w}, scale {scale}");
        error += (g - w) * (g - w);
    }
    assert!(error <= nmse * square, "{case}: normalised mean square error {:e}, at most {nmse:e}", error / square);
}

/// The error's kind must match the pattern.
#[macro_export]
macro_rules! assert_kind {
    ($result:expr, $pattern:pat) => {
        match $result {
            Ok(_) => panic!("no error, wanted {}", stringify!($pattern)),
            Err(e) => {
                let e: latten::Error = e;
                assert!(matches!(e.kind(), $pattern), "{e}: wanted {}", stringify!($pattern));
            }
        }
    };
}

pub fn message<T>(result: Result<T, Error>) -> String {
    result.err().map(|e| e.to_string()).unwrap_or_default()
}
