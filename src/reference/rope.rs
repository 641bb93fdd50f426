//! Rotary position embedding of one head.
//!
//! Equation: for pair i of a head x (rope_dim,) at position p: `angle = p * inv_freq[i]`,
//! `(a, b) <- (a cos - b sin, b cos + a sin)`, `inv_freq[i] = theta^(-2i / rope_dim)`.
//! Source: Su et al., "RoFormer", arXiv 2104.09864, §3.2; which elements are a pair: [`RopePairs`].

use super::{expect_result, expect_shape};
use crate::error::Result;

/// Which two elements of a head rotate together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairs {
    /// `(i, i + rope_dim / 2)`: NeoX, the paper's models, Llama checkpoints of Hugging Face.
    Half,
    /// `(2i, 2i + 1)`: DeepSeek checkpoints.
    Interleaved,
}

/// How exactly `position * inv_freq` is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Angles {
    /// `position as f32 * inv_freq as f32`, one f32 product, as in the kernels' host tables (and in the models' training
    /// code): the right choice to compare a kernel with. Sine and cosine of that angle are taken in f64.
    F32,
    /// In f64 throughout: the mathematical definition, which the oracle's vectors follow.
    Exact,
}

/// Everything about a rotation but the position.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Radians per position of each pair: (rope_dim / 2,). [`inv_freq`], or a scaled form of it (YaRN).
    pub inv_freq: Vec<f64>,
    /// Which elements are a pair.
    pub pairs: RopePairs,
    /// How the angle is rounded.
    pub angles: Angles,
}

impl Rope {
    /// The unscaled rotation of heads of width `rope_dim`, with the kernels' f32 angles.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Shape`](crate::ErrorKind::Shape) for a `rope_dim` above 2^22.
    pub fn new(theta: f64, rope_dim: usize, pairs: RopePairs) -> Result<Self> {
        Ok(Rope { inv_freq: inv_freq(theta, rope_dim)?, pairs, angles: Angles::F32 })
    }

    /// The same rotation with angles in f64, for comparison with the oracle.
    pub fn exact(self) -> Self {
        Rope { angles: Angles::Exact, ..self }
    }
}

/// `theta^(-2i / rope_dim)` for each pair i: (rope_dim / 2,).
///
/// # Errors
///
/// [`ErrorKind::Shape`](crate::ErrorKind::Shape) for a `rope_dim` above 2^22.
pub fn inv_freq(theta: f64, rope_dim: usize) -> Result<Vec<f64>> {
    expect_result("rope_dim", &[rope_dim])?;
    Ok((0..rope_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / rope_dim as f64)).collect())
}

/// Rotates one head in place to `position`.
///
/// - `x`: (rope_dim,), where rope_dim is twice the length of `rotation.inv_freq`
///
/// # Errors
///
/// [`ErrorKind::Shape`](crate::ErrorKind::Shape) for an `x` that is not two elements per frequency.
pub fn rope(x: &mut [f64], position: u32, rotation: &Rope) -> Result<()> {
    let half = rotation.inv_freq.len();
    expect_shape("x", x.len(), &[2 * half])?;
    for (i, &inv_freq) in rotation.inv_freq.iter().enumerate() {
        let angle = match rotation.angles {
            Angles::F32 => f64::from(position as f32 * inv_freq as f32),
            Angles::Exact => f64::from(position) * inv_freq,
        };
        let (a, b) = match rotation.pairs {
            RopePairs::Half => (i, i + half),
            RopePairs::Interleaved => (2 * i, 2 * i + 1),
        };
        let (sin, cos) = angle.sin_cos();
        (x[a], x[b]) = (x[a] * cos - x[b] * sin, x[b] * cos + x[a] * sin);
    }
    Ok(())
}
