//! Wide channels of keys: those that a cache of integers keeps in f16 as well, `HeadLayout::gqa_wide`.
//!
//! Equation, of a key x (after rotation) and the set W of its group's wide channels:
//! ```text
//! h[c] = f16(x[c]) for c in W,  x' = x - h on W and x elsewhere,  score = q . x' + sum over W of q[c] h[c]
//! ```
//! Only x' is rounded to integers. Source: none; keeping large features apart in more bits is from Dettmers et al., LLM.int8()
//! (arXiv 2208.07339), there for weights and activations.

use super::{count_rows, expect_shape};
use crate::error::Result;
use crate::kv::WideChannels;

/// A token's row as a cache with wide channels holds it, before rounding to integers: from what [`append`](super::append)
/// leaves.
///
/// - `kv`: (groups * state_dim,), keys rotated
/// - returns: (groups * state_dim + rope_dim,), the states with what f16 leaves of their wide channels, then those in f16, by
///   group: what [`round_to_i8`](super::round_to_i8) takes
///
/// # Errors
///
/// [`ErrorKind::Shape`](crate::ErrorKind::Shape) for a row that is not of the layout.
pub fn keep_wide(channels: &WideChannels, layer: usize, kv: &[f64]) -> Result<Vec<f64>> {
    let heads = channels.heads();
    expect_shape("kv", kv.len(), &[heads.kv_dim()])?;
    let (mut row, mut halves) = (kv.to_vec(), Vec::new());
    for (group, state) in row.chunks_exact_mut(heads.state_dim()).enumerate() {
        for channel in channels.of(layer, group) {
            let x = &mut state[*channel as usize];
            let half = f64::from(half::f16::from_f64(x.clamp(-65504.0, 65504.0)));
            halves.push(half);
            *x -= half;
        }
    }
    row.extend(halves);
    Ok(row)
}

/// Queries for such rows.
///
/// - `q`: (rows, q_heads, head_dim), rotated
/// - returns: (rows, q_heads, head_dim + groups * wide), the wide channels of a head once more in the place of its group
///
/// # Errors
///
/// [`ErrorKind::Shape`](crate::ErrorKind::Shape) for queries that are not whole tokens.
pub fn wide_queries(channels: &WideChannels, layer: usize, q: &[f64]) -> Result<Vec<f64>> {
    let heads = channels.heads();
    count_rows("q", q.len(), heads.q_heads() * heads.nope_dim())?;
    let mut all = Vec::new();
    for (row, query) in q.chunks_exact(heads.nope_dim()).enumerate() {
        let own = row % heads.q_heads() / heads.heads_per_group();
        all.extend_from_slice(query);
        for group in 0..heads.groups() {
            let of = |channel: &u32| if group == own { query[*channel as usize] } else { 0.0 };
            all.extend(channels.of(layer, group).iter().map(of));
        }
    }
    Ok(all)
}
