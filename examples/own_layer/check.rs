//! Both layers with random weights, beside the f64 layers of `latten::reference`.

use super::gla::GlaLayer;
use super::gqa::GqaLayer;
use super::last_output;
use latten::reference::{self, Form, GlaWeights, GqaWeights, LayerConfig};
use latten::{Gla, Gpu, Gqa, HeadLayout, Result};

pub const THETA: f64 = 10_000.0;
/// Tokens of the prompt, and of all.
pub const PROMPT: usize = 21;
const TOKENS: usize = 24;

/// Stands for weights and activations: numbers in -1..1, which f32 holds.
fn random(state: &mut u64, count: usize, scale: f64) -> Vec<f64> {
    let mut next = || {
        *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        f64::from((*state >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
    };
    (0..count).map(|_| f64::from((next() * scale) as f32)).collect()
}

/// The largest difference from the f64 layers, of GQA and of GLA.
pub async fn compare(gpu: &Gpu) -> Result<[f64; 2]> {
    let mut state = 1;
    let mut weight = |rows: usize, in_dim: usize| random(&mut state, rows * in_dim, 2.0 / (in_dim as f64).sqrt());
    let (model_dim, q_heads, groups, head_dim, q_latent_dim) = (64, 8, 2, 32, 48);
    let x = weight(TOKENS, model_dim);
    let x32: Vec<f32> = x.iter().map(|v| *v as f32).collect();

    let rotation = reference::Rope::new(THETA, head_dim, reference::RopePairs::Half)?;
    let (state_dim, rope_dim) = (2 * head_dim, 0);
    let c =
        LayerConfig { model_dim, q_heads, groups, head_dim, rope_dim, state_dim, q_latent_dim: 0, eps: 1e-6, rotation };
    let [w_q, w_o] = [weight(q_heads * head_dim, model_dim), weight(model_dim, q_heads * head_dim)];
    let [w_k, w_v] = [weight(groups * head_dim, model_dim), weight(groups * head_dim, model_dim)];
    let w = GqaWeights { w_q, w_k, w_v, w_o };
    let heads = HeadLayout::gqa(Gqa { q_heads, kv_heads: groups, head_dim })?;
    let got = last_output(gpu, &GqaLayer::new(gpu, &c, &w)?, heads, &c, &x32).await?;
    let gqa = difference(&got, &reference::gqa_layer(&c, &w, &x)?);

    let (state_dim, rope_dim) = (40, 16);
    let rotation = reference::Rope::new(THETA, rope_dim, reference::RopePairs::Half)?;
    let c = LayerConfig { rope_dim, state_dim, q_latent_dim, rotation, ..c };
    let (q_width, heads) = (
        q_heads * (head_dim + rope_dim),
        HeadLayout::gla(Gla { q_heads, latent_heads: groups, latent_dim: state_dim, rope_dim })?,
    );
    let w = GlaWeights {
        w_dq: weight(q_latent_dim, model_dim),
        b_dq: vec![0.0; q_latent_dim],
        q_gain: weight(q_latent_dim, 1),
        w_uq: weight(q_width, q_latent_dim),
        b_uq: vec![0.0; q_width],
        w_dkv: weight(heads.kv_dim(), model_dim),
        b_dkv: vec![0.0; heads.kv_dim()],
        c_gain: weight(groups * state_dim, 1),
        w_ukv: weight(q_heads * 2 * head_dim, state_dim),
        b_ukv: vec![0.0; q_heads * 2 * head_dim],
        w_o: weight(model_dim, q_heads * head_dim),
    };
    let got = last_output(gpu, &GlaLayer::new(gpu, heads, &c, &w)?, heads, &c, &x32).await?;
    Ok([gqa, difference(&got, &reference::gla_layer(&c, &w, &x, Form::Explicit)?)])
}

fn difference(got: &[f32], want: &[f64]) -> f64 {
    got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max)
}
