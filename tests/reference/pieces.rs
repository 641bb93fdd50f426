//! rope, append, linear, rms_norm, swiglu, embedding, gqa_layer: small cases with answers by hand, and refusals.

use latten::reference::{
    append, attend, clamped_swiglu, decode, embedding, gqa_layer, inv_freq, linear, merge, rms_norm, rope, swiglu,
    Angles, Attended, DecodeInputs, GqaWeights, LayerConfig, Rope, RopePairs,
};
use latten::{ErrorKind, Gla, Gqa, Gta, HeadLayout, Mla};
use proptest::prelude::*;

use crate::assert_close;
use crate::random::Rng;

/// [a0 b0 a1 b1 ..] -> [a0 a1 .. b0 b1 ..]
fn halves(x: &[f64]) -> Vec<f64> {
    x.iter().step_by(2).chain(x.iter().skip(1).step_by(2)).copied().collect()
}

proptest! {
    /// The two pairings are one rotation under a permutation of the elements, to the bit.
    #[test]
    fn pieces_interleaved_rope_is_permuted_half_rope(half in 1..9usize, position in 0..200_000u32, seed: u64) {
        let mut interleaved = Rng(seed).many_signed(2 * half);
        let mut permuted = halves(&interleaved);
        rope(&mut interleaved, position, &Rope::new(1e4, 2 * half, RopePairs::Interleaved).unwrap()).unwrap();
        rope(&mut permuted, position, &Rope::new(1e4, 2 * half, RopePairs::Half).unwrap()).unwrap();
        prop_assert_eq!(halves(&interleaved), permuted);
    }

    /// A score depends on the distance of two positions alone.
    #[test]
    fn pieces_rope_scores_are_relative(half in 1..9usize, a in 0..500u32, b in 0..500u32, by in 0..500u32, seed: u64) {
        let rotation = Rope::new(1e4, 2 * half, RopePairs::Half).unwrap().exact();
        let score = |a, b| {
            let mut draw = Rng(seed);
            let (mut q, mut k) = (draw.many_signed(2 * half), draw.many_signed(2 * half));
            rope(&mut q, a, &rotation).unwrap();
            rope(&mut k, b, &rotation).unwrap();
            q.iter().zip(&k).map(|(q, k)| q * k).sum::<f64>()
        };
        // Angles up to 1000 carry an error of 1e-13 each.
        prop_assert!((score(a, b) - score(a + by, b + by)).abs() < 2e-12 * half as f64);
    }
}

#[test]
fn pieces_rope_by_hand() {
    assert_close("inv_freq", &inv_freq(1e4, 4).unwrap(), &[1.0, 0.01]);
    let (s, c) = (3f64.sin(), 3f64.cos());
    let (s2, c2) = (0.03f64.sin(), 0.03f64.cos());
    let rotated = |pairs| {
        let mut x = [1.0, 2.0, 3.0, 4.0];
        rope(&mut x, 3, &Rope::new(1e4, 4, pairs).unwrap().exact()).unwrap();
        x
    };
    assert_close(
        "half",
        &rotated(RopePairs::Half),
        &[c - 3.0 * s, 2.0 * c2 - 4.0 * s2, 3.0 * c + s, 4.0 * c2 + 2.0 * s2],
    );
    let interleaved = [c - 2.0 * s, 2.0 * c + s, 3.0 * c2 - 4.0 * s2, 4.0 * c2 + 3.0 * s2];
    assert_close("interleaved", &rotated(RopePairs::Interleaved), &interleaved);
}

/// At far positions the rounding of f32 angles shows, and the default is the kernels' one product in f32.
#[test]
fn pieces_rope_angles_are_rounded_to_f32() {
    let (position, theta) = (100_003, 5e5);
    let rotation = Rope::new(theta, 4, RopePairs::Half).unwrap();
    assert_eq!(rotation.angles, Angles::F32);
    let angle = f64::from(100_003f32 * theta.powf(-0.5) as f32);
    let mut x = [0.0, 1.0, 0.0, 0.0];
    rope(&mut x, position, &rotation).unwrap();
    assert_eq!(x, [0.0, angle.cos(), 0.0, angle.sin()]);
    let mut exact = [0.0, 1.0, 0.0, 0.0];
    rope(&mut exact, position, &rotation.exact()).unwrap();
    assert!((x[1] - exact[1]).abs() > 1e-9, "{x:?} and {exact:?} should differ by the rounding of the angle");
}

#[test]
fn pieces_append_rotates_the_key_part_only() {
    let rotation = Rope::new(1e4, 2, RopePairs::Half).unwrap();
    let turn = |a: f64, b: f64| {
        let (s, c) = f64::from(5f32).sin_cos();
        [a * c - b * s, b * c + a * s]
    };
    let appended = |layout: HeadLayout| {
        let mut kv: Vec<f64> = (1..=layout.kv_dim()).map(|i| i as f64).collect();
        append(&layout, &mut kv, 5, &rotation).unwrap();
        kv
    };
    let gqa = HeadLayout::gqa(Gqa { q_heads: 2, kv_heads: 2, head_dim: 2 }).unwrap();
    let ([a, b], [c, d]) = (turn(1.0, 2.0), turn(5.0, 6.0));
    assert_eq!(appended(gqa), [a, b, 3.0, 4.0, c, d, 7.0, 8.0], "gqa: k of [k, v] of both heads");
    let gta = HeadLayout::gta(Gta { q_heads: 2, kv_heads: 2, head_dim: 3, rope_dim: 2 }).unwrap();
    let [a, b] = turn(7.0, 8.0);
    assert_eq!(appended(gta), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, a, b], "gta: the rope key");
    let mla = HeadLayout::mla(Mla { q_heads: 2, latent_dim: 3, rope_dim: 2 }).unwrap();
    let [a, b] = turn(4.0, 5.0);
    assert_eq!(appended(mla), [1.0, 2.0, 3.0, a, b], "mla: the rope key");
    let without_key = HeadLayout::gla(Gla { q_heads: 1, latent_heads: 1, latent_dim: 2, rope_dim: 0 }).unwrap();
    assert_eq!(appended(without_key), [1.0, 2.0], "the state of a gla is its value: never rotated");
}

#[test]
fn pieces_linear_norm_swiglu_embedding_by_hand() {
    let weight = [1.0, 0.0, 2.0, 0.0, 3.0, -1.0];
    assert_eq!(linear(&[1.0, 2.0, 3.0, 0.0, 1.0, 0.0], &weight, None, 3).unwrap(), [7.0, 3.0, 0.0, 3.0]);
    assert_eq!(linear(&[1.0, 2.0, 3.0], &weight, Some(&[10.0, 20.0]), 3).unwrap(), [17.0, 23.0]);

    // Group 0 has mean square 12.5, group 1 has 0: eps keeps it finite.
    let normed = rms_norm(&[3.0, 4.0, 0.0, 0.0], &[1.0, 2.0, 5.0, 5.0], 2, 1e-6).unwrap();
    let inv = 1.0 / 12.500001f64.sqrt();
    assert_close("rms_norm", &normed, &[3.0 * inv, 8.0 * inv, 0.0, 0.0]);

    let silu = |v: f64| v / (1.0 + (-v).exp());
    let y = swiglu(&[1.0, -2.0, 3.0, 4.0, 0.0, -800.0, 5.0, 6.0], 2).unwrap();
    assert_close("swiglu", &y, &[3.0 * silu(1.0), 4.0 * silu(-2.0), 0.0, 0.0]);
    // Gates above the limit are it, those below none are as they are; up from both sides; one more than up.
    let y = clamped_swiglu(&[1.0, -8.0, 9.0, 0.5, -9.0, 9.0], 3, (2.0, 3.0)).unwrap();
    let glu = |g: f64| g / (1.0 + (-2.0 * g).exp());
    assert_close("clamped_swiglu", &y, &[1.5 * glu(1.0), -2.0 * glu(-8.0), 4.0 * glu(3.0)]);

    assert_eq!(embedding(&[1.0, 2.0, 3.0, 4.0], &[1, 0, 1], 2).unwrap(), [3.0, 4.0, 1.0, 2.0, 3.0, 4.0]);
    let error = embedding(&[1.0, 2.0, 3.0, 4.0], &[2], 2).unwrap_err();
    assert_eq!(error.to_string(), "tokens: token 2 is not below vocab 2");
}

/// The oracle has no GQA layer: here is one written the other way round, per head over whole matrices.
#[test]
fn pieces_gqa_layer_is_textbook_attention() {
    let (model_dim, q_heads, groups, head_dim, len) = (10, 6, 2, 4, 7);
    let mut draw = Rng(3);
    let weights = GqaWeights {
        w_q: draw.many_signed(q_heads * head_dim * model_dim),
        w_k: draw.many_signed(groups * head_dim * model_dim),
        w_v: draw.many_signed(groups * head_dim * model_dim),
        w_o: draw.many_signed(model_dim * q_heads * head_dim),
    };
    let x = draw.many_signed(len * model_dim);
    let rotation = Rope::new(1e4, head_dim, RopePairs::Interleaved).unwrap();
    let config = LayerConfig {
        rotation: rotation.clone(),
        eps: 0.0,
        rope_dim: 0,
        state_dim: 2 * head_dim,
        q_latent_dim: 0,
        model_dim,
        q_heads,
        groups,
        head_dim,
    };

    let mut heads = Vec::new();
    for h in 0..q_heads {
        let rows = |w: &[f64], head: usize| w[head * head_dim * model_dim..][..head_dim * model_dim].to_vec();
        let rotated = |w: &[f64], head: usize, t: usize| {
            let mut y = linear(&x[t * model_dim..][..model_dim], &rows(w, head), None, model_dim).unwrap();
            rope(&mut y, t as u32, &rotation).unwrap();
            y
        };
        let q = rotated(&weights.w_q, h, len - 1);
        let scores: Vec<f64> = (0..len)
            .map(|t| q.iter().zip(rotated(&weights.w_k, h / 3, t)).map(|(q, k)| q * k).sum::<f64>() / 2.0)
            .collect();
        let values = linear(&x, &rows(&weights.w_v, h / 3), None, model_dim).unwrap();
        heads.extend(attend(&scores, &values, head_dim).unwrap().0);
    }
    let want = linear(&heads, &weights.w_o, None, q_heads * head_dim).unwrap();
    assert_close("gqa_layer", &gqa_layer(&config, &weights, &x).unwrap(), &want);
}

#[test]
fn pieces_wrong_shapes_are_errors_with_the_numbers() {
    let layout = HeadLayout::gla(Gla { q_heads: 2, latent_heads: 1, latent_dim: 3, rope_dim: 2 }).unwrap();
    let step =
        DecodeInputs { q: &[0.0; 10], states: &[0.0; 6], rope_keys: &[0.0; 4], softmax_scale: 1.0, causal: true };
    decode(&layout, &step).unwrap();
    let rotation = Rope::new(1e4, 2, RopePairs::Half).unwrap();
    let partial = Attended { out: vec![0.0; 6], lse: vec![0.0; 3] };
    let errors = [
        decode(&layout, &DecodeInputs { q: &[0.0; 9], ..step }).unwrap_err(),
        decode(&layout, &DecodeInputs { states: &[0.0; 5], ..step }).unwrap_err(),
        decode(&layout, &DecodeInputs { rope_keys: &[0.0; 2], ..step }).unwrap_err(),
        merge(std::slice::from_ref(&partial), 2, 2).unwrap_err(),
        merge(&[partial], 3, 3).unwrap_err(),
        attend(&[1.0], &[1.0], 2).unwrap_err(),
        rope(&mut [0.0; 3], 0, &rotation).unwrap_err(),
        append(&layout, &mut [0.0; 6], 0, &rotation).unwrap_err(),
        append(&layout, &mut [0.0; 5], 0, &Rope::new(1e4, 4, RopePairs::Half).unwrap()).unwrap_err(),
        linear(&[0.0; 4], &[0.0; 6], None, 3).unwrap_err(),
        linear(&[0.0; 3], &[0.0; 6], Some(&[0.0; 3]), 3).unwrap_err(),
        linear(&[], &[], None, 0).unwrap_err(),
        rms_norm(&[0.0; 6], &[0.0; 4], 2, 0.0).unwrap_err(),
        swiglu(&[0.0; 6], 2).unwrap_err(),
        swiglu(&[0.0; 6], usize::MAX).unwrap_err(),
        clamped_swiglu(&[0.0; 6], 2, (1.7, 7.0)).unwrap_err(),
        embedding(&[0.0; 3], &[], 2).unwrap_err(),
    ];
    for (i, error) in errors.iter().enumerate() {
        assert!(matches!(error.kind(), ErrorKind::Shape { .. }), "error {i}: {error}");
    }
    assert_eq!(errors[2].to_string(), "rope_keys has shape (2), wanted (2,2)");
}
