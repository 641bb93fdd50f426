//! How much work one dispatch may hold, measured.

use crate::error::{ErrorKind, Result};
use crate::gpu::{DType, Gpu, Tensor};
use crate::nn::{Linear, LinearArgs, Span, Weight};
use std::time::Instant;

/// What the app calls no pause, in seconds: of which attention, slower per FLOP than products, gets half.
const LONGEST: f64 = 0.05;
/// A product of this size has every kernel busy, and takes 30 ms where a core makes 4 GFLOP/s.
const ROWS: usize = 64;
const WIDTH: usize = 1024;
/// A result is waited for after so many products at the most, or after this time.
const MOST: usize = 256;
const ENOUGH: f64 = 0.01;

/// FLOP that a dispatch may hold so that it takes at most about 50 ms on this device: for
/// [`GpuOptions::dispatch_flop`](crate::GpuOptions), where the default for its type is far off. By the host's clock, from
/// products of an f16 matrix with 64 rows; takes some tens of milliseconds, on a slow device less than a second. Measure on
/// an idle device, and take the least of several.
///
/// # Errors
///
/// [`ErrorKind::Unsupported`] in browsers, whose clock is not read; those of the device.
pub async fn measure_dispatch_flop(gpu: &Gpu) -> Result<u64> {
    if cfg!(target_arch = "wasm32") {
        return Err(ErrorKind::Unsupported { what: "the host's clock in a browser".into() }.into());
    }
    let values: Vec<f32> = (0..WIDTH * WIDTH).map(|i| (i % 251) as f32 / 251.0 - 0.5).collect();
    let linear = Linear::new(gpu, &Weight::new(gpu, [1, WIDTH, WIDTH], &values, DType::F16)?, None)?;
    let input = Tensor::from_slice(gpu, &[ROWS, WIDTH], &values[..ROWS * WIDTH], DType::F32)?;
    let output = Tensor::zeros(gpu, &[ROWS, WIDTH], DType::F32)?;
    let mut count = 1;
    // The first run compiles.
    let mut warm = false;
    loop {
        let start = Instant::now();
        for _ in 0..count {
            linear.run(LinearArgs::new(ROWS, Span::of(&input), Span::of(&output)))?;
        }
        gpu.download::<f32>(&output.view(&[1, 4])?).await?;
        let seconds = start.elapsed().as_secs_f64();
        if warm && (seconds >= ENOUGH || count >= MOST) {
            let flop = 2.0 * (count * ROWS * WIDTH * WIDTH) as f64;
            return Ok((flop / seconds.max(1e-9) * LONGEST / 2.0) as u64);
        }
        count *= if warm { 4 } else { 1 };
        warm = true;
    }
}
