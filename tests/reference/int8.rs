//! What an i8 cache holds of a row.

use latten::reference::{decode, quantise_span, round_to_i8, DecodeInputs};
use latten::{ErrorKind, Gqa, Gta, HeadLayout};

use crate::Draw;

#[test]
fn int8_spans() {
    assert_eq!(
        quantise_span(&[1.0, -2.0, 0.5, 0.0]),
        (vec![64.0, -127.0, 32.0, 0.0], f64::from((2.0f64 / 127.0) as f32))
    );
    // Ties to even: 127 / 2 = 63.5.
    assert_eq!(quantise_span(&[1.0, 0.5, -0.5]).0, [127.0, 64.0, -64.0]);
    assert_eq!(quantise_span(&[0.0; 3]), (vec![0.0; 3], 0.0));
    assert_eq!(quantise_span(&[9e-31]), (vec![0.0], 0.0));
    assert_eq!(quantise_span(&[]), (vec![], 0.0));
    for size in [1e-29, 1.0, 3e38] {
        let values: Vec<f64> = Draw(3).many(500).iter().map(|v| v * size).collect();
        let (whole, scale) = quantise_span(&values);
        assert!(whole.iter().all(|q| q.fract() == 0.0 && q.abs() <= 127.0));
        let worst = values.iter().zip(&whole).map(|(x, q)| (x - q * scale).abs()).fold(0.0, f64::max);
        assert!(worst <= 0.501 * scale && worst > 0.45 * scale, "{worst:e} of {scale:e}");
    }
}

#[test]
fn int8_rows() {
    let gqa = HeadLayout::gqa(Gqa { q_heads: 2, kv_heads: 2, head_dim: 2 }).unwrap();
    let mut row = [127.0, 63.4, 1.27, 0.634, 0.0, 254.0, 0.0, 0.0];
    round_to_i8(&gqa, &mut row).unwrap();
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} {b}");
    row.iter().zip([127.0, 63.0, 1.27, 0.63, 0.0, 254.0, 0.0, 0.0]).for_each(|(a, b)| near(*a, b));
    // A tied state is one span; its rope key is f16.
    let gta = HeadLayout::gta(Gta { q_heads: 1, kv_heads: 1, head_dim: 4, rope_dim: 2 }).unwrap();
    let mut row = [127.0, 63.4, 1.27, 0.634, 1.0 + 2f64.powi(-12), 1e6];
    round_to_i8(&gta, &mut row).unwrap();
    row.iter().zip([127.0, 63.0, 1.0, 1.0, 1.0, 65504.0]).for_each(|(a, b)| near(*a, b));
    let error = round_to_i8(&gta, &mut row[..5]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Shape { .. }), "{error}");
}

/// Why keys and values have scales of their own: where keys are 8 times larger, as rotated keys with their outliers are, a
/// common scale costs the values three bits.
#[test]
fn int8_a_scale_for_the_value_is_worth_it() {
    let (dim, tokens) = (64, 200);
    let layout = HeadLayout::gqa(Gqa { q_heads: 1, kv_heads: 1, head_dim: dim }).unwrap();
    let mut draw = Draw(11);
    let (q, mut states) = (draw.many(dim), draw.many(tokens * 2 * dim));
    states.chunks_exact_mut(2 * dim).for_each(|state| state[..dim].iter_mut().for_each(|x| *x *= 8.0));
    let out = |states: &[f64]| {
        let inputs = DecodeInputs { q: &q, states, rope_keys: &[], softmax_scale: 0.02, causal: true };
        decode(&layout, &inputs).unwrap().out
    };
    let want = out(&states);
    let nmse = |spans: usize| {
        let mut held = states.clone();
        for span in held.chunks_exact_mut(2 * dim / spans) {
            let (whole, scale) = quantise_span(span);
            span.iter_mut().zip(whole).for_each(|(x, q)| *x = q * scale);
        }
        let error: f64 = out(&held).iter().zip(&want).map(|(a, b)| (a - b) * (a - b)).sum();
        error / want.iter().map(|x| x * x).sum::<f64>()
    };
    let (one, two) = (nmse(1), nmse(2));
    println!("NMSE of the output: one scale {one:.2e}, two {two:.2e}");
    assert!(two < 1e-4 && one > 10.0 * two, "one {one:e}, two {two:e}");
}
