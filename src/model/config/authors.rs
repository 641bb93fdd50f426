//! `config.json` of models around the attention layers that the authors of GTA and GLA published: Llama's, with a key
//! of its own for each. Pure.

use super::keys::Keys;
use super::AttentionConfig;
use crate::error::Result;

const WIDTH: usize = 1 << 14;
/// The latents of their GLA layer, and the widths of one and of the query's, in heads.
const LATENT_HEADS: usize = 2;
const LATENT_WIDTH: usize = 2;
const Q_LATENT_WIDTH: usize = 8;
const GTA: &str = "rope_dim";
const GLA: &str = "qk_rope_dim";

/// Whether a Llama has one of these layers.
pub(crate) fn are(keys: &Keys<'_>) -> bool {
    keys.has(GTA) || keys.has(GLA)
}

/// The attention, of which the file has no more than the width of what rotates.
pub(crate) fn attention(keys: &Keys<'_>, q_heads: usize, head_dim: usize) -> Result<AttentionConfig> {
    if keys.has(GTA) && keys.has(GLA) {
        return Err(keys.bad(GTA, &format!("stands beside {GLA}: one is GTA's, the other GLA's")));
    }
    let key = if keys.has(GTA) { GTA } else { GLA };
    let rope_dim = keys.size(key, if key == GTA { head_dim } else { WIDTH })?;
    keys.check_pairs(key, rope_dim)?;
    // The part of a head for which angles are made must be what rotates.
    let part = keys.number_or("partial_rotary_factor", 1e-6..=1e3, rope_dim as f64 / head_dim as f64)?;
    if (part * head_dim as f64 + 1e-3) as usize != rope_dim {
        let why = format!("of head_dim = {head_dim} is not {key} = {rope_dim}");
        return Err(keys.bad("partial_rotary_factor", &why));
    }
    if key == GTA {
        let kv_heads = keys.size("num_key_value_heads", WIDTH)?;
        keys.check_groups("num_key_value_heads", kv_heads, q_heads)?;
        return Ok(AttentionConfig::Gta { kv_heads, rope_dim });
    }
    if !q_heads.is_multiple_of(LATENT_HEADS) {
        return Err(keys.bad("num_attention_heads", &format!("is not a multiple of {LATENT_HEADS}, the latent heads")));
    }
    Ok(AttentionConfig::Latent {
        latent_heads: LATENT_HEADS,
        latent_dim: LATENT_WIDTH * head_dim,
        q_latent_dim: Some(Q_LATENT_WIDTH * head_dim),
        rope_dim,
    })
}
