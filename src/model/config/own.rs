//! `config.json` of this crate's own folders. Pure.

use super::keys::Keys;
use super::{AttentionConfig, Config};
use crate::error::Result;

/// The keys of this crate's own folders: all but `sliding_window` are required.
pub(super) fn config(keys: &Keys<'_>) -> Result<Config> {
    keys.word("tokenizer", &["bytes"])?;
    let head_dim = keys.size("head_dim", 1 << 14)?;
    let rms_norm_eps = keys.number("rms_norm_eps", 1e-12..=1e-1)? as f32;
    let max_positions = keys.size("max_position_embeddings", 1 << 24)?;
    let (attention, hidden_size) = (attention(keys)?, keys.size("hidden_size", 1 << 16)?);
    let q_heads = keys.size("num_attention_heads", 1 << 14)?;
    let config = Config {
        vocab_size: keys.size("vocab_size", 1 << 24)?,
        layers: keys.size("num_hidden_layers", 1 << 10)?,
        intermediate_size: keys.size("intermediate_size", 1 << 20)?,
        rms_norm_eps,
        latent_norm_eps: rms_norm_eps,
        rope_theta: keys.number("rope_theta", 1.0..=1e12)?,
        rope_interleaved: keys.flag("rope_interleaved")?,
        max_positions,
        window: match keys.has("sliding_window") {
            true => Some(keys.size("sliding_window", max_positions)?),
            false => None,
        },
        tied: keys.flag("tie_word_embeddings")?,
        ..Config::new(attention, hidden_size, q_heads, head_dim)
    };
    if config.vocab_size < 256 {
        return Err(keys.bad("vocab_size", "is below 256, the tokens of tokenizer \"bytes\""));
    }
    let (rope_key, groups_key, groups) = match config.attention {
        AttentionConfig::Gqa { kv_heads } => ("head_dim", "num_key_value_heads", kv_heads),
        AttentionConfig::Gta { kv_heads, .. } => ("rope_dim", "num_key_value_heads", kv_heads),
        AttentionConfig::Latent { latent_heads, .. } => ("rope_dim", "latent_heads", latent_heads),
    };
    keys.check_pairs(rope_key, config.rope_dim())?;
    keys.check_groups(groups_key, groups, config.q_heads)?;
    if matches!(config.attention, AttentionConfig::Gta { rope_dim, .. } if rope_dim > config.head_dim) {
        return Err(keys.bad("rope_dim", &format!("exceeds head_dim = {}", config.head_dim)));
    }
    Ok(config)
}

fn attention(keys: &Keys<'_>) -> Result<AttentionConfig> {
    let width = 1 << 14;
    let variant = keys.word("attention", &["gqa", "gta", "gla", "mla"])?;
    Ok(match variant {
        "gqa" => AttentionConfig::Gqa { kv_heads: keys.size("num_key_value_heads", width)? },
        "gta" => AttentionConfig::Gta {
            kv_heads: keys.size("num_key_value_heads", width)?,
            rope_dim: keys.size("rope_dim", width)?,
        },
        _ => {
            let latent_heads = keys.size("latent_heads", width)?;
            if variant == "mla" && latent_heads != 1 {
                return Err(keys.bad("latent_heads", "is not 1, as \"attention\": \"mla\" wants"));
            }
            AttentionConfig::Latent {
                latent_heads,
                latent_dim: keys.size("latent_dim", width)?,
                q_latent_dim: Some(keys.size("q_latent_dim", 1 << 16)?),
                rope_dim: keys.size("rope_dim", width)?,
            }
        }
    })
}
