//! How keys and queries are rotated to their positions, and the angles. Pure.

/// How the key part of an appended row is rotated to its position (RoPE).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Rotation {
    /// Not at all: the rows come rotated.
    #[default]
    None,
    /// Pairs `(i, i + d/2)` (NeoX, Llama, the paper's models).
    Half,
    /// Pairs `(2i, 2i + 1)` (DeepSeek checkpoints, GPT-J).
    Interleaved,
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
