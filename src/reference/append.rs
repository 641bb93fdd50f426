//! What happens to a new token's row on its way into the cache: its keys are rotated.
//!
//! Source: arXiv 2505.21487, §3.3.1 (GTA: the tied state is never rotated, the one rope key is) and §3.3.2 (GLA: latents
//! are cached after their norm, beside the rotated key). Where the row is written is the cache's business, not arithmetic.

use super::{expect_shape, rope, Rotation};
use crate::attention::heads::HeadLayout;
use crate::error::Result;

/// Rotates, in place, the part of one token's row that is a key with position.
///
/// - `kv`: (groups * state_dim + rope_dim,), the states of all groups and then the rope key
/// - `rotation`: over the width of the rotated part
///
/// | layout | rotated |
/// |---|---|
/// | rope_dim > 0 (GTA, GLA, MLA) | the rope key, the last rope_dim elements |
/// | rope_dim = 0, key apart from the value (GQA) | the first nope_dim elements of every state |
/// | rope_dim = 0, value overlaps the key (GTA, GLA without a rope key) | nothing: rotating would change the value |
pub fn append(layout: &HeadLayout, kv: &mut [f64], position: u32, rotation: &Rotation) -> Result<()> {
    expect_shape("kv", kv.len(), &[layout.kv_dim()])?;
    let (states, rope_key) = kv.split_at_mut(layout.groups() * layout.state_dim());
    if layout.rope_dim() > 0 {
        rope(rope_key, position, rotation)?;
    } else if layout.v_offset() >= layout.nope_dim() {
        for state in states.chunks_exact_mut(layout.state_dim()) {
            rope(&mut state[..layout.nope_dim()], position, rotation)?;
        }
    }
    Ok(())
}
