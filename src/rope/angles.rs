//! How keys and queries are rotated to their positions, and the angles. Pure.

use super::RopeScaling;
use crate::error::Result;

/// How the key part of an appended row is rotated to its position (RoPE).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum RopePairs {
    /// Not at all: the rows come rotated.
    #[default]
    None,
    /// Pairs `(i, i + d/2)` (NeoX, Llama, the paper's models).
    Half,
    /// Pairs `(2i, 2i + 1)` (DeepSeek checkpoints, GPT-J).
    Interleaved,
}

/// The frequencies of a rotation, and which elements it pairs.
#[derive(Debug, Clone, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Rope {
    /// Radians per position of each pair: `rope_dim / 2` of them, see [`RopeScaling::inv_freq`].
    pub inv_freq: Vec<f32>,
    /// Which elements are a pair.
    pub pairs: RopePairs,
}

impl Rope {
    /// `inv_freq[i] = theta^(-2 i / rope_dim)`. `rope_dim` is what the layout rotates,
    /// [`HeadLayout::rotated_dim`](crate::HeadLayout::rotated_dim): of GQA the whole head.
    ///
    /// # Errors
    ///
    /// As [`RopeScaling::inv_freq`].
    pub fn new(rope_dim: usize, theta: f64, pairs: RopePairs) -> Result<Self> {
        Ok(Rope { inv_freq: RopeScaling::None.inv_freq(rope_dim, theta)?, pairs })
    }

    /// Elements that are rotated.
    pub fn rope_dim(&self) -> usize {
        self.inv_freq.len().saturating_mul(2)
    }
}

/// `(positions, pairs, 2)` cosines and sines, from frequencies in radians per position. The angle is one f32 product, as
/// in the models' training code; its cosine and sine are exact to f32, which a GPU's own are not at large positions.
pub fn cos_sin_table(inv_freq: &[f32], positions: &[u32]) -> Vec<f32> {
    let mut table = Vec::with_capacity(2 * positions.len() * inv_freq.len());
    for &position in positions {
        for &frequency in inv_freq {
            let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
            table.extend([cos as f32, sin as f32]);
        }
    }
    table
}
