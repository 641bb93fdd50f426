//! Whole attention layers, from the inputs of a sequence to the output of its last token: GQA and GTA. GLA: `gla.rs`.
//!
//! ```text
//! GQA  q_h = RoPE(W_Q x)   k_j = RoPE(W_K x)   v_j = W_V x      y = W_O concat_h( softmax(q_h K_j^T / sqrt(head_dim)) V_j )
//! GTA  q_h = [ nope | RoPE(rope) ] of W_Q x    kv_j = W_KV x    k_R = RoPE(W_ropeK x + b)
//!      K_j = [ kv_j[..head_dim - rope_dim] | k_R ]   V_j = kv_j       and y as above
//! ```
//! Source: arXiv 2505.21487, §3.3.1 (GTA); Ainslie et al., arXiv 2305.13245, §2 (GQA).

use super::{append, decode, expect_shape, linear, rope, DecodeInputs, Rope};
use crate::error::{ErrorKind, Result};
use crate::kv::heads::{Gqa, Gta, HeadLayout};

/// The numbers of an attention layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerConfig {
    /// Width of the model.
    pub model_dim: usize,
    /// Query heads.
    pub q_heads: usize,
    /// KV heads, tied heads or latent heads.
    pub groups: usize,
    /// Width of a head before absorption (GLA, MLA: of its part without position).
    pub head_dim: usize,
    /// Width of the rope key; 0 for GQA, whose whole heads rotate.
    pub rope_dim: usize,
    /// Width of one cached state: 2 head_dim (GQA), head_dim (GTA), the width of ONE latent head (GLA, MLA).
    pub state_dim: usize,
    /// Width of the query latent (GLA, MLA), else 0.
    pub q_latent_dim: usize,
    /// Added to the mean square in the norms of the latents (GLA, MLA).
    pub eps: f64,
    /// Rope over head_dim (GQA) or rope_dim (all others).
    pub rotation: Rope,
}

/// Weights of a GQA layer.
#[derive(Debug, Clone, PartialEq)]
pub struct GqaWeights {
    /// (q_heads * head_dim, model_dim)
    pub w_q: Vec<f64>,
    /// (groups * head_dim, model_dim)
    pub w_k: Vec<f64>,
    /// (groups * head_dim, model_dim)
    pub w_v: Vec<f64>,
    /// (model_dim, q_heads * head_dim)
    pub w_o: Vec<f64>,
}

/// Weights of a GTA layer.
#[derive(Debug, Clone, PartialEq)]
pub struct GtaWeights {
    /// (q_heads * head_dim, model_dim)
    pub w_q: Vec<f64>,
    /// (groups * head_dim, model_dim)
    pub w_kv: Vec<f64>,
    /// (rope_dim, model_dim)
    pub w_rope_k: Vec<f64>,
    /// (rope_dim,)
    pub b_rope_k: Vec<f64>,
    /// (model_dim, q_heads * head_dim)
    pub w_o: Vec<f64>,
}

/// A layer's query of the last token, and the cache rows of all tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Projected {
    /// GTA: (q_heads, head_dim), its last rope_dim elements rotated. GLA: (q_heads, head_dim + rope_dim), rotated, not
    /// absorbed.
    pub q: Vec<f64>,
    /// (len, groups, state_dim); GLA: after the norm
    pub states: Vec<f64>,
    /// (len, rope_dim), rotated
    pub rope_keys: Vec<f64>,
}

/// How many tokens `x` holds, and the position of the last; refuses an empty `x`.
pub(super) fn last_position(config: &LayerConfig, x: &[f64]) -> Result<(usize, u32)> {
    let len = super::count_rows("x", x.len(), config.model_dim)?;
    match u32::try_from(len.wrapping_sub(1)) {
        Ok(last) => Ok((len, last)),
        Err(_) => Err(ErrorKind::shape("x", &[len, config.model_dim], "(1..2^32,_)")),
    }
}

/// Output of the last token of a GQA layer over tokens at positions 0..len.
///
/// - `x`: (len, model_dim), len at least 1
/// - returns: (model_dim,)
///
/// # Errors
///
/// [`ErrorKind::Shape`](crate::ErrorKind::Shape) for a matrix or an `x` that does not fit the config;
/// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for a config that is no layer.
pub fn gqa_layer(config: &LayerConfig, weights: &GqaWeights, x: &[f64]) -> Result<Vec<f64>> {
    let LayerConfig { model_dim, q_heads, groups, head_dim, .. } = *config;
    let layout = HeadLayout::gqa(Gqa { q_heads, kv_heads: groups, head_dim })?;
    let (len, last) = last_position(config, x)?;
    expect_shape("w_q", weights.w_q.len(), &[q_heads * head_dim, model_dim])?;
    expect_shape("w_k", weights.w_k.len(), &[groups * head_dim, model_dim])?;
    expect_shape("w_v", weights.w_v.len(), &[groups * head_dim, model_dim])?;
    expect_shape("w_o", weights.w_o.len(), &[model_dim, q_heads * head_dim])?;

    let mut states = Vec::new();
    for (position, x) in (0..=last).zip(x.chunks_exact(model_dim)) {
        let k = linear(x, &weights.w_k, None, model_dim)?;
        let v = linear(x, &weights.w_v, None, model_dim)?;
        let mut kv = Vec::new();
        for (k, v) in k.chunks_exact(head_dim).zip(v.chunks_exact(head_dim)) {
            kv.extend_from_slice(k);
            kv.extend_from_slice(v);
        }
        append(&layout, &mut kv, position, &config.rotation)?;
        states.extend(kv);
    }
    let mut q = linear(&x[(len - 1) * model_dim..], &weights.w_q, None, model_dim)?;
    for q in q.chunks_exact_mut(head_dim) {
        rope(q, last, &config.rotation)?;
    }
    let softmax_scale = (head_dim as f64).powf(-0.5);
    let step = DecodeInputs { q: &q, states: &states, rope_keys: &[], softmax_scale, causal: true };
    linear(&decode(&layout, &step)?.out, &weights.w_o, None, q_heads * head_dim)
}

/// The layout of a GTA layer's cache and kernel; refuses weights that do not fit.
fn checked_layout(config: &LayerConfig, weights: &GtaWeights) -> Result<HeadLayout> {
    let LayerConfig { model_dim, q_heads, groups, head_dim, rope_dim, .. } = *config;
    let layout = HeadLayout::gta(Gta { q_heads, kv_heads: groups, head_dim, rope_dim })?;
    expect_shape("w_q", weights.w_q.len(), &[q_heads * head_dim, model_dim])?;
    expect_shape("w_kv", weights.w_kv.len(), &[groups * head_dim, model_dim])?;
    expect_shape("w_rope_k", weights.w_rope_k.len(), &[rope_dim, model_dim])?;
    expect_shape("b_rope_k", weights.b_rope_k.len(), &[rope_dim])?;
    expect_shape("w_o", weights.w_o.len(), &[model_dim, q_heads * head_dim])?;
    Ok(layout)
}

/// The projections of a GTA layer before the attention, and what they cache.
///
/// - `x`: (len, model_dim), len at least 1, at positions 0..len
///
/// # Errors
///
/// As [`gta_layer`].
pub fn gta_project(config: &LayerConfig, weights: &GtaWeights, x: &[f64]) -> Result<Projected> {
    let LayerConfig { model_dim, groups, head_dim, rope_dim, .. } = *config;
    let (len, last) = last_position(config, x)?;
    let layout = checked_layout(config, weights)?;

    let (mut states, mut rope_keys) = (Vec::new(), Vec::new());
    for (position, x) in (0..=last).zip(x.chunks_exact(model_dim)) {
        let mut kv = linear(x, &weights.w_kv, None, model_dim)?;
        kv.extend(linear(x, &weights.w_rope_k, Some(&weights.b_rope_k), model_dim)?);
        append(&layout, &mut kv, position, &config.rotation)?;
        let (tied, rope_key) = kv.split_at(groups * head_dim);
        states.extend_from_slice(tied);
        rope_keys.extend_from_slice(rope_key);
    }
    let mut q = linear(&x[(len - 1) * model_dim..], &weights.w_q, None, model_dim)?;
    for q in q.chunks_exact_mut(head_dim) {
        rope(&mut q[head_dim - rope_dim..], last, &config.rotation)?;
    }
    Ok(Projected { q, states, rope_keys })
}

/// Output of the last token of a GTA layer over tokens at positions 0..len.
///
/// - `x`: (len, model_dim), len at least 1
/// - returns: (model_dim,)
///
/// # Errors
///
/// [`ErrorKind::Shape`](crate::ErrorKind::Shape) for a matrix or an `x` that does not fit the config;
/// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for a config that is no layer.
pub fn gta_layer(config: &LayerConfig, weights: &GtaWeights, x: &[f64]) -> Result<Vec<f64>> {
    let layout = checked_layout(config, weights)?;
    let Projected { q, states, rope_keys } = gta_project(config, weights, x)?;
    let softmax_scale = (config.head_dim as f64).powf(-0.5);
    let step = DecodeInputs { q: &q, states: &states, rope_keys: &rope_keys, softmax_scale, causal: true };
    linear(&decode(&layout, &step)?.out, &weights.w_o, None, config.q_heads * config.head_dim)
}
