//! What happens to a new token's row on its way into the cache: its keys are rotated.
//!
//! Source: arXiv 2505.21487, §3.3.1 (GTA: the tied state is never rotated, the one rope key is) and §3.3.2 (GLA: latents
//! are cached after their norm, beside the rotated key). Where the row is written is the cache's business, not arithmetic.

use super::{expect_shape, rope, Rope};
use crate::error::Result;
use crate::kv::heads::HeadLayout;

/// Rotates, in place, the part of one token's row that is a key with position.
///
/// - `kv`: (groups * state_dim + rope_dim,), the states of all groups and then the rope key
/// - `rotation`: over the width of the rotated part
///
/// | layout | rotated |
/// |---|---|
/// | rope_dim > 0 (GTA, GLA, MLA) | the rope key, the last rope_dim elements |
/// | rope_dim = 0 or wide channels, key apart from the value (GQA) | the first nope_dim elements of every state |
/// | rope_dim = 0, value overlaps the key (GTA, GLA without a rope key) | nothing: rotating would change the value |
///
/// # Errors
///
/// [`ErrorKind::Shape`](crate::ErrorKind::Shape) for a row that is not of `kv_dim` elements.
pub fn append(layout: &HeadLayout, kv: &mut [f64], position: u32, rotation: &Rope) -> Result<()> {
    expect_shape("kv", kv.len(), &[layout.kv_dim()])?;
    let (states, rope_key) = kv.split_at_mut(layout.groups() * layout.state_dim());
    if layout.narrow().rope_dim() > 0 {
        rope(rope_key, position, rotation)?;
    } else if layout.v_offset() >= layout.nope_dim() {
        for state in states.chunks_exact_mut(layout.state_dim()) {
            rope(&mut state[..layout.nope_dim()], position, rotation)?;
        }
    }
    Ok(())
}

/// The largest integer of an i8 cache.
pub const I8_LEVELS: u32 = 127;
/// The largest integer of an i4 cache.
pub const I4_LEVELS: u32 = 7;

/// What a cache of integers holds of one span of a state: whole numbers of `-levels` to `levels` ([`I8_LEVELS`] or
/// [`I4_LEVELS`]), and the scale that they are multiplied by, an f32. A span without a value of 1e-30 or more is zeros with
/// scale 0.
///
/// ```text
/// scale = max |x| / levels,  q = round(x / scale)
/// ```
/// With a largest value of `a` standard deviations the mean squared error is `(a / levels)^2 / 12` of the mean square. i8: 4e-5
/// for normal values (a = 2.8 over a span of 128), 1.6e-5 for uniform ones (a = 1.73). i4: 1.3e-2 and 5e-3. By
/// rate-distortion theory no code of 8 bits per independent normal value does better than 2^-16 = 1.5e-5, none of 4 than
/// 2^-8 = 3.9e-3.
pub fn quantise_span(values: &[f64], levels: u32) -> (Vec<f64>, f64) {
    let levels = f64::from(levels);
    let top = values.iter().fold(0.0f64, |top, x| top.max(x.abs()));
    if top < 1e-30 {
        return (vec![0.0; values.len()], 0.0);
    }
    let whole = values.iter().map(|x| (x * (levels / top)).round_ties_even()).collect();
    (whole, f64::from((top / levels) as f32))
}

/// Rounds, in place, one token's row, as [`append`] leaves it, to what an i8 cache holds of it: the key and the value of
/// each state, or a state that is both, by [`quantise_span`]; the rope key to f16.
///
/// - `kv`: (groups * state_dim + rope_dim,); where keys have wide channels, from [`keep_wide`](super::keep_wide)
///
/// # Errors
///
/// [`ErrorKind::Shape`](crate::ErrorKind::Shape) for a row that is not of the layout.
pub fn round_to_i8(layout: &HeadLayout, kv: &mut [f64]) -> Result<()> {
    round_to_integers(layout, kv, I8_LEVELS)
}

/// [`round_to_i8`] for an i4 cache.
///
/// # Errors
///
/// [`ErrorKind::Shape`](crate::ErrorKind::Shape) for a row that is not of the layout.
pub fn round_to_i4(layout: &HeadLayout, kv: &mut [f64]) -> Result<()> {
    round_to_integers(layout, kv, I4_LEVELS)
}

fn round_to_integers(layout: &HeadLayout, kv: &mut [f64], levels: u32) -> Result<()> {
    expect_shape("kv", kv.len(), &[layout.groups() * layout.state_dim() + layout.rope_dim()])?;
    let (states, rope_key) = kv.split_at_mut(layout.groups() * layout.state_dim());
    let span = if layout.v_offset() == 0 { layout.state_dim() } else { layout.v_offset() };
    for state in states.chunks_exact_mut(layout.state_dim()) {
        for span in state.chunks_mut(span) {
            let (whole, scale) = quantise_span(span, levels);
            span.iter_mut().zip(whole).for_each(|(x, q)| *x = q * scale);
        }
    }
    rope_key.iter_mut().for_each(|x| *x = f64::from(half::f16::from_f64(x.clamp(-65504.0, 65504.0))));
    Ok(())
}
