//! Comparison with the f64 reference, and of errors with what they should be.

use latten::{DType, Error};

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
        let same = match w {
            w if w.is_finite() => g.is_finite(),
            w if w.is_nan() => g.is_nan(),
            w => f64::from(*g) == *w,
        };
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

/// As [`compare`], with `|got - want| <= tolerance * max(1, rms of want)`. Where all that is wanted is 0, so is all that is
/// got.
pub fn assert_close(case: &str, got: &[f32], want: &[f64], tolerance: f64, nmse: f64) {
    let square = want.iter().filter(|w| w.is_finite()).map(|w| w * w).sum::<f64>();
    let scale = (square / want.len() as f64).sqrt().max(1.0);
    let nmse = if square > 0.0 { nmse } else { 0.0 };
    compare(case, got, want, Bound { absolute: tolerance * scale, nmse, scale: 0.0 });
}

/// Normalised mean square error.
pub fn nmse(got: &[f32], want: &[f64]) -> f64 {
    let error: f64 = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum();
    error / want.iter().map(|w| w * w).sum::<f64>()
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

/// The text of an error, or nothing.
pub fn message<T>(result: Result<T, Error>) -> String {
    result.err().map(|e| e.to_string()).unwrap_or_default()
}
