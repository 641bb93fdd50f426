//! The matrix product of a layer, the SwiGLU activation, and the embedding look-up.
//!
//! Source: `y = W x + b` as in every model of arXiv 2505.21487; SwiGLU: Shazeer, "GLU Variants", arXiv 2002.05202.

use super::{count_rows, dot, expect_shape, rms_norm};
use crate::error::{ErrorKind, Result};

/// `y = x W^T + b`.
///
/// - `x`: (rows, in_dim)
/// - `weight`: (out_dim, in_dim)
/// - `bias`: (out_dim,), or none
/// - returns: (rows, out_dim)
///
/// # Errors
///
/// [`ErrorKind::Shape`](crate::ErrorKind::Shape) for a slice that is not of the shape said above.
pub fn linear(x: &[f64], weight: &[f64], bias: Option<&[f64]>, in_dim: usize) -> Result<Vec<f64>> {
    count_rows("x", x.len(), in_dim)?;
    let out_dim = count_rows("weight", weight.len(), in_dim)?;
    if let Some(bias) = bias {
        expect_shape("bias", bias.len(), &[out_dim])?;
    }
    let mut y = Vec::new();
    for x in x.chunks_exact(in_dim) {
        for (o, weight) in weight.chunks_exact(in_dim).enumerate() {
            y.push(dot(weight, x) + bias.map_or(0.0, |bias| bias[o]));
        }
    }
    Ok(y)
}

/// [`linear`] of rows that [`rms_norm`] has normalised, each as one group.
///
/// - `x`: (rows, in_dim), `gain`: (in_dim,)
/// - returns: (rows, out_dim)
///
/// # Errors
///
/// [`ErrorKind::Shape`](crate::ErrorKind::Shape) for a slice that is not of the shape said above.
pub fn norm_linear(x: &[f64], gain: &[f64], eps: f64, weight: &[f64], bias: Option<&[f64]>) -> Result<Vec<f64>> {
    linear(&rms_norm(x, gain, gain.len(), eps)?, weight, bias, gain.len())
}

/// The weights that 8-bit integers stand for: each row of `weight` (out_dim, in_dim) in steps of its largest magnitude
/// over 127.
///
/// - returns: (out_dim, in_dim)
///
/// # Errors
///
/// [`ErrorKind::Shape`](crate::ErrorKind::Shape) for a weight that is not whole rows.
pub fn quantised(weight: &[f64], in_dim: usize) -> Result<Vec<f64>> {
    count_rows("weight", weight.len(), in_dim)?;
    let mut rounded = Vec::new();
    for row in weight.chunks_exact(in_dim) {
        let step = row.iter().fold(0.0, |most: f64, w| most.max(w.abs())) / 127.0;
        rounded.extend(row.iter().map(|w| if step > 0.0 { (w / step).round() * step } else { 0.0 }));
    }
    Ok(rounded)
}

/// `silu(gate) * up`, where `silu(v) = v / (1 + exp(-v))`.
///
/// - `gate_up`: (rows, 2 * ffn_dim), each row `[gate | up]`
/// - returns: (rows, ffn_dim)
///
/// # Errors
///
/// [`ErrorKind::Shape`](crate::ErrorKind::Shape) for a slice that is not of the shape said above.
pub fn swiglu(gate_up: &[f64], ffn_dim: usize) -> Result<Vec<f64>> {
    let row_dim = ffn_dim.saturating_mul(2);
    count_rows("gate_up", gate_up.len(), row_dim)?;
    let mut y = Vec::new();
    for row in gate_up.chunks_exact(row_dim) {
        let (gate, up) = row.split_at(ffn_dim);
        for (gate, up) in gate.iter().zip(up) {
            y.push(gate / (1.0 + (-gate).exp()) * up);
        }
    }
    Ok(y)
}

/// `gelu(gate) * up`, where `gelu(v) = v (1 + tanh(sqrt(2 / pi) (v + 0.044715 v^3))) / 2` (Hendrycks, Gimpel, arXiv 1606.08415).
///
/// - `gate_up`: (rows, 2 * ffn_dim), each row `[gate | up]`
/// - returns: (rows, ffn_dim)
///
/// # Errors
///
/// [`ErrorKind::Shape`](crate::ErrorKind::Shape) for a slice that is not of the shape said above.
pub fn geglu(gate_up: &[f64], ffn_dim: usize) -> Result<Vec<f64>> {
    let row_dim = ffn_dim.saturating_mul(2);
    count_rows("gate_up", gate_up.len(), row_dim)?;
    let gelu = |v: f64| v * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v.powi(3))).tanh()) / 2.0;
    let of_row = |row: &[f64]| (0..ffn_dim).map(|i| gelu(row[i]) * row[ffn_dim + i]).collect::<Vec<_>>();
    Ok(gate_up.chunks_exact(row_dim).flat_map(of_row).collect())
}

/// `g sigmoid(alpha g) (u + 1)`, where `g = min(gate, limit)` and `u = clamp(up, -limit, limit)` (gpt-oss, arXiv 2508.10925).
///
/// - `gate_up`: (rows, 2 * ffn_dim), each row `[gate | up]`
/// - returns: (rows, ffn_dim)
///
/// # Errors
///
/// [`ErrorKind::Shape`](crate::ErrorKind::Shape) for a slice that is not of the shape said above,
/// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for a limit that is not above 0.
pub fn clamped_swiglu(gate_up: &[f64], ffn_dim: usize, (alpha, limit): (f64, f64)) -> Result<Vec<f64>> {
    let row_dim = ffn_dim.saturating_mul(2);
    count_rows("gate_up", gate_up.len(), row_dim)?;
    if limit.is_nan() || limit <= 0.0 {
        return Err(ErrorKind::argument("limit", format!("{limit} is not above 0")));
    }
    let one = |gate: f64, up: f64| {
        let gate = gate.min(limit);
        gate / (1.0 + (-alpha * gate).exp()) * (up.clamp(-limit, limit) + 1.0)
    };
    let of_row = |row: &[f64]| (0..ffn_dim).map(|i| one(row[i], row[ffn_dim + i])).collect::<Vec<_>>();
    Ok(gate_up.chunks_exact(row_dim).flat_map(of_row).collect())
}

/// The rows of `table` named by `tokens`.
///
/// - `table`: (vocab, dim)
/// - `tokens`: (rows,), each below vocab
/// - returns: (rows, dim)
///
/// # Errors
///
/// [`ErrorKind::Shape`](crate::ErrorKind::Shape) for a table that is not whole rows,
/// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for a token that is not in it.
pub fn embedding(table: &[f64], tokens: &[u32], dim: usize) -> Result<Vec<f64>> {
    let vocab = count_rows("table", table.len(), dim)?;
    let mut y = Vec::new();
    for &token in tokens {
        if token as usize >= vocab {
            return Err(ErrorKind::argument("tokens", format!("token {token} is not below vocab {vocab}")));
        }
        y.extend_from_slice(&table[token as usize * dim..][..dim]);
    }
    Ok(y)
}
