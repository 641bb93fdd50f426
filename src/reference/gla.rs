//! A whole Grouped Latent Attention layer for the last token of a sequence, in its two forms. MLA is one latent head.
//!
//! ```text
//! q_lat = RMSNorm(W_DQ x + b)                    q_h = W_UQ q_lat + b = [ q_nope (head_dim) | RoPE(q_rope) (rope_dim) ]
//! W_DKV x + b = [ c_0 | c_1 | .. | k_R ]         c_i <- RMSNorm_i(c_i)        k_R <- RoPE(k_R), not normalised
//!
//! explicit   [ k_nope | v ] = W_UKV,h c_i + b    S_t = scale (q_nope . k_nope,t + q_rope . k_R,t)    v_h = sum softmax(S)_t v_t
//! absorbed   qc_h = W_UK,h^T q_nope              S_t = scale (qc_h . c_i,t + q_rope . k_R,t)
//!            o_h = sum softmax(S)_t c_i,t        v_h = W_UV,h o_h + b_V,h
//! y = W_O concat_h(v_h)                          scale = (head_dim + rope_dim)^-0.5 in both
//! ```
//! The key's bias adds the same to every score of a head and so drops out of the absorbed form; the value's bias is added
//! once, since the weights of a softmax sum to 1. Only `c_i` and `k_R` are cached.
//!
//! Source: arXiv 2505.21487, §3.3.2; DeepSeek-AI, "DeepSeek-V2", arXiv 2405.04434, §2.1 (MLA).

use super::layers::{last_position, LayerConfig, Projected};
use super::{append, attend, decode, dot, expect_shape, linear, rms_norm, rope, DecodeInputs};
use crate::error::{ErrorKind, Result};
use crate::kv::heads::{Gla, HeadLayout};

/// No real model comes near; keeps products of dimensions from overflowing.
const MAX_HEAD_DIM: usize = 1 << 14;

/// Weights of a GLA or MLA layer. Where a checkpoint has no biases, they are zeros.
#[derive(Debug, Clone, PartialEq)]
pub struct GlaWeights {
    /// (q_latent_dim, model_dim)
    pub w_dq: Vec<f64>,
    /// (q_latent_dim,)
    pub b_dq: Vec<f64>,
    /// (q_latent_dim,)
    pub q_gain: Vec<f64>,
    /// (q_heads * (head_dim + rope_dim), q_latent_dim)
    pub w_uq: Vec<f64>,
    /// (q_heads * (head_dim + rope_dim),)
    pub b_uq: Vec<f64>,
    /// (groups * state_dim + rope_dim, model_dim)
    pub w_dkv: Vec<f64>,
    /// (groups * state_dim + rope_dim,)
    pub b_dkv: Vec<f64>,
    /// (groups, state_dim)
    pub c_gain: Vec<f64>,
    /// (groups, heads_per_group, 2 * head_dim, state_dim); a head's rows are `[k_nope | v]`
    pub w_ukv: Vec<f64>,
    /// (groups, heads_per_group, 2 * head_dim)
    pub b_ukv: Vec<f64>,
    /// (model_dim, q_heads * head_dim)
    pub w_o: Vec<f64>,
}

/// Which of two equal computations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Keys and values of every head and token are materialised: training, long prefill.
    Explicit,
    /// The query is taken into the latent space and the output back out of it: decode.
    Absorbed,
}

/// The layout of the layer's cache and kernel; refuses weights that do not fit.
fn checked_layout(config: &LayerConfig, weights: &GlaWeights) -> Result<HeadLayout> {
    let LayerConfig { model_dim, q_heads, groups, head_dim, rope_dim, state_dim, q_latent_dim, .. } = *config;
    let layout = HeadLayout::gla(Gla { q_heads, latent_heads: groups, latent_dim: state_dim, rope_dim })?;
    if !(1..=MAX_HEAD_DIM).contains(&head_dim) {
        return Err(ErrorKind::argument("head_dim", format!("{head_dim} is not in 1..={MAX_HEAD_DIM}")));
    }
    let q_width = q_heads * (head_dim + rope_dim);
    expect_shape("w_dq", weights.w_dq.len(), &[q_latent_dim, model_dim])?;
    expect_shape("b_dq", weights.b_dq.len(), &[q_latent_dim])?;
    expect_shape("q_gain", weights.q_gain.len(), &[q_latent_dim])?;
    expect_shape("w_uq", weights.w_uq.len(), &[q_width, q_latent_dim])?;
    expect_shape("b_uq", weights.b_uq.len(), &[q_width])?;
    expect_shape("w_dkv", weights.w_dkv.len(), &[layout.kv_dim(), model_dim])?;
    expect_shape("b_dkv", weights.b_dkv.len(), &[layout.kv_dim()])?;
    expect_shape("c_gain", weights.c_gain.len(), &[groups, state_dim])?;
    expect_shape("w_ukv", weights.w_ukv.len(), &[q_heads, 2 * head_dim, state_dim])?;
    expect_shape("b_ukv", weights.b_ukv.len(), &[q_heads, 2 * head_dim])?;
    expect_shape("w_o", weights.w_o.len(), &[model_dim, q_heads * head_dim])?;
    Ok(layout)
}

/// The projections before the attention, and what they cache.
///
/// - `x`: (len, model_dim), len at least 1, at positions 0..len
///
/// # Errors
///
/// As [`gla_layer`].
pub fn gla_project(config: &LayerConfig, weights: &GlaWeights, x: &[f64]) -> Result<Projected> {
    let LayerConfig { model_dim, head_dim, rope_dim, state_dim, q_latent_dim, .. } = *config;
    let layout = checked_layout(config, weights)?;
    let (len, last) = last_position(config, x)?;

    let q_latent = linear(&x[(len - 1) * model_dim..], &weights.w_dq, Some(&weights.b_dq), model_dim)?;
    let q_latent = rms_norm(&q_latent, &weights.q_gain, q_latent_dim, config.eps)?;
    let mut q = linear(&q_latent, &weights.w_uq, Some(&weights.b_uq), q_latent_dim)?;
    for q in q.chunks_exact_mut(head_dim + rope_dim) {
        rope(&mut q[head_dim..], last, &config.rotation)?;
    }

    let (mut states, mut rope_keys) = (Vec::new(), Vec::new());
    for (position, x) in (0..=last).zip(x.chunks_exact(model_dim)) {
        let projected = linear(x, &weights.w_dkv, Some(&weights.b_dkv), model_dim)?;
        let (latents, rope_key) = projected.split_at(layout.groups() * state_dim);
        let mut kv = rms_norm(latents, &weights.c_gain, state_dim, config.eps)?;
        kv.extend_from_slice(rope_key);
        append(&layout, &mut kv, position, &config.rotation)?;
        let (latents, rope_key) = kv.split_at(layout.groups() * state_dim);
        states.extend_from_slice(latents);
        rope_keys.extend_from_slice(rope_key);
    }
    Ok(Projected { q, states, rope_keys })
}

/// Takes a query into the latent space: `qc_h = W_UK,h^T q_nope,h`, the rope part unchanged.
///
/// - `q`: (q_heads, head_dim + rope_dim)
/// - returns: (q_heads, state_dim + rope_dim)
///
/// # Errors
///
/// As [`gla_layer`]; [`ErrorKind::Shape`](crate::ErrorKind::Shape) for a `q` of another size.
pub fn absorb_query(config: &LayerConfig, weights: &GlaWeights, q: &[f64]) -> Result<Vec<f64>> {
    let LayerConfig { q_heads, head_dim, rope_dim, state_dim, .. } = *config;
    checked_layout(config, weights)?;
    expect_shape("q", q.len(), &[q_heads, head_dim + rope_dim])?;
    let mut absorbed = Vec::new();
    for h in 0..q_heads {
        let (q_nope, q_rope) = q[h * (head_dim + rope_dim)..][..head_dim + rope_dim].split_at(head_dim);
        let w_uk = &weights.w_ukv[h * 2 * head_dim * state_dim..][..head_dim * state_dim];
        for c in 0..state_dim {
            absorbed.push((0..head_dim).map(|d| w_uk[d * state_dim + c] * q_nope[d]).sum());
        }
        absorbed.extend_from_slice(q_rope);
    }
    Ok(absorbed)
}

/// Takes outputs out of the latent space: `v_h = W_UV,h o_h + b_V,h`.
///
/// - `out`: (q_heads, state_dim)
/// - returns: (q_heads, head_dim)
///
/// # Errors
///
/// As [`gla_layer`]; [`ErrorKind::Shape`](crate::ErrorKind::Shape) for an `out` of another size.
pub fn unabsorb_values(config: &LayerConfig, weights: &GlaWeights, out: &[f64]) -> Result<Vec<f64>> {
    let LayerConfig { q_heads, head_dim, state_dim, .. } = *config;
    checked_layout(config, weights)?;
    expect_shape("out", out.len(), &[q_heads, state_dim])?;
    let mut values = Vec::new();
    for (h, out) in out.chunks_exact(state_dim).enumerate() {
        let first = h * 2 * head_dim + head_dim; // past the head's rows of k_nope
        let w_uv = &weights.w_ukv[first * state_dim..][..head_dim * state_dim];
        values.extend(linear(out, w_uv, Some(&weights.b_ukv[first..][..head_dim]), state_dim)?);
    }
    Ok(values)
}

/// Output of the last token of a GLA or MLA layer over tokens at positions 0..len.
///
/// - `x`: (len, model_dim), len at least 1
/// - returns: (model_dim,), the same for both forms up to rounding
///
/// # Errors
///
/// [`ErrorKind::Shape`](crate::ErrorKind::Shape) for a matrix or an `x` that does not fit the config;
/// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for a config that is no layer.
pub fn gla_layer(config: &LayerConfig, weights: &GlaWeights, x: &[f64], form: Form) -> Result<Vec<f64>> {
    let layout = checked_layout(config, weights)?;
    let projected = gla_project(config, weights, x)?;
    let softmax_scale = ((config.head_dim + config.rope_dim) as f64).powf(-0.5);
    let values = match form {
        Form::Explicit => explicit_values(config, weights, &projected, softmax_scale)?,
        Form::Absorbed => {
            let q = absorb_query(config, weights, &projected.q)?;
            let Projected { states, rope_keys, .. } = &projected;
            let step = DecodeInputs { q: &q, states, rope_keys, softmax_scale, causal: true };
            unabsorb_values(config, weights, &decode(&layout, &step)?.out)?
        }
    };
    linear(&values, &weights.w_o, None, config.q_heads * config.head_dim)
}

/// `concat_h(v_h)` (q_heads, head_dim) from materialised keys and values.
fn explicit_values(
    config: &LayerConfig,
    weights: &GlaWeights,
    projected: &Projected,
    softmax_scale: f64,
) -> Result<Vec<f64>> {
    let LayerConfig { q_heads, groups, head_dim, rope_dim, state_dim, .. } = *config;
    let len = projected.states.len() / (groups * state_dim);
    let mut values = Vec::new();
    for h in 0..q_heads {
        let group = h / (q_heads / groups);
        let (q_nope, q_rope) = projected.q[h * (head_dim + rope_dim)..][..head_dim + rope_dim].split_at(head_dim);
        let w_ukv = &weights.w_ukv[h * 2 * head_dim * state_dim..][..2 * head_dim * state_dim];
        let b_ukv = &weights.b_ukv[h * 2 * head_dim..][..2 * head_dim];
        let (mut scores, mut v) = (Vec::new(), Vec::new());
        for t in 0..len {
            let c = &projected.states[(t * groups + group) * state_dim..][..state_dim];
            let u = linear(c, w_ukv, Some(b_ukv), state_dim)?;
            let rope_key = &projected.rope_keys[t * rope_dim..][..rope_dim];
            scores.push(softmax_scale * (dot(q_nope, &u[..head_dim]) + dot(q_rope, rope_key)));
            v.extend_from_slice(&u[head_dim..]);
        }
        values.extend(attend(&scores, &v, head_dim)?.0);
    }
    Ok(values)
}
