//! Root-mean-square norm, with a gain of its own for each group (each latent head, §3.3.2 of arXiv 2505.21487).
//!
//! Equation: `y = x / sqrt(mean(x^2) + eps) * gain`. Source: Zhang, Sennrich, arXiv 1910.07467, §4.

use super::{count_rows, dot};
use crate::error::Result;

/// Normalises each group of each row by itself. A plain norm has one group.
///
/// - `x`: (rows, groups, dim)
/// - `gain`: (groups, dim)
/// - returns: (rows, groups, dim)
///
/// # Errors
///
/// [`ErrorKind::Shape`](crate::ErrorKind::Shape) for a slice that is not of the shape said above.
pub fn rms_norm(x: &[f64], gain: &[f64], dim: usize, eps: f64) -> Result<Vec<f64>> {
    count_rows("gain", gain.len(), dim)?;
    count_rows("x", x.len(), gain.len())?;
    let mut y = Vec::new();
    for row in x.chunks_exact(gain.len()) {
        for (x, gain) in row.chunks_exact(dim).zip(gain.chunks_exact(dim)) {
            let inv_rms = 1.0 / (dot(x, x) / dim as f64 + eps).sqrt();
            y.extend(x.iter().zip(gain).map(|(x, gain)| x * inv_rms * gain));
        }
    }
    Ok(y)
}
