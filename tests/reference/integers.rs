//! What a cache of integers holds of a row.

use latten::reference::{decode, quantise_span, round_to_i4, round_to_i8, DecodeInputs, I4_LEVELS, I8_LEVELS};
use latten::{ErrorKind, Gqa, Gta, HeadLayout};

use crate::random::Rng;

#[test]
fn integers_of_spans_8() {
    assert_eq!(
        quantise_span(&[1.0, -2.0, 0.5, 0.0], I8_LEVELS),
        (vec![64.0, -127.0, 32.0, 0.0], f64::from((2.0f64 / 127.0) as f32))
    );
    // Ties to even: 127 / 2 = 63.5.
    assert_eq!(quantise_span(&[1.0, 0.5, -0.5], I8_LEVELS).0, [127.0, 64.0, -64.0]);
    assert_eq!(quantise_span(&[0.0; 3], I8_LEVELS), (vec![0.0; 3], 0.0));
    assert_eq!(quantise_span(&[9e-31], I8_LEVELS), (vec![0.0], 0.0));
    assert_eq!(quantise_span(&[], I8_LEVELS), (vec![], 0.0));
    for size in [1e-29, 1.0, 3e38] {
        let values: Vec<f64> = Rng(3).many_signed(500).iter().map(|v| v * size).collect();
        let (whole, scale) = quantise_span(&values, I8_LEVELS);
        assert!(whole.iter().all(|q| q.fract() == 0.0 && q.abs() <= 127.0));
        let worst = values.iter().zip(&whole).map(|(x, q)| (x - q * scale).abs()).fold(0.0, f64::max);
        assert!(worst <= 0.501 * scale && worst > 0.45 * scale, "{worst:e} of {scale:e}");
    }
}

#[test]
fn integers_of_rows_8() {
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
fn integers_a_scale_for_the_value_is_worth_it() {
    let (dim, tokens) = (64, 200);
    let layout = HeadLayout::gqa(Gqa { q_heads: 1, kv_heads: 1, head_dim: dim }).unwrap();
    let mut draw = Rng(11);
    let (q, mut states) = (draw.many_signed(dim), draw.many_signed(tokens * 2 * dim));
    states.chunks_exact_mut(2 * dim).for_each(|state| state[..dim].iter_mut().for_each(|x| *x *= 8.0));
    let out = |states: &[f64]| {
        let inputs = DecodeInputs { q: &q, states, rope_keys: &[], softmax_scale: 0.02, causal: true };
        decode(&layout, &inputs).unwrap().out
    };
    let want = out(&states);
    let nmse = |spans: usize| {
        let mut held = states.clone();
        for span in held.chunks_exact_mut(2 * dim / spans) {
            let (whole, scale) = quantise_span(span, I8_LEVELS);
            span.iter_mut().zip(whole).for_each(|(x, q)| *x = q * scale);
        }
        let error: f64 = out(&held).iter().zip(&want).map(|(a, b)| (a - b) * (a - b)).sum();
        error / want.iter().map(|x| x * x).sum::<f64>()
    };
    let (one, two) = (nmse(1), nmse(2));
    println!("NMSE of the output: one scale {one:.2e}, two {two:.2e}");
    assert!(two < 1e-4 && one > 10.0 * two, "one {one:e}, two {two:e}");
}

#[test]
fn integers_of_spans_4() {
    assert_eq!(quantise_span(&[1.0, -3.5, 0.4, 0.0], I4_LEVELS), (vec![2.0, -7.0, 1.0, 0.0], 0.5));
    // Ties to even: 3.5 and 2.5.
    assert_eq!(quantise_span(&[7.0, 3.5, -2.5], I4_LEVELS).0, [7.0, 4.0, -2.0]);
    for size in [1e-29, 1.0, 3e38] {
        let values: Vec<f64> = Rng(3).many_signed(500).iter().map(|v| v * size).collect();
        let (whole, scale) = quantise_span(&values, I4_LEVELS);
        assert!(whole.iter().all(|q| q.fract() == 0.0 && q.abs() <= 7.0));
        let worst = values.iter().zip(&whole).map(|(x, q)| (x - q * scale).abs()).fold(0.0, f64::max);
        assert!(worst <= 0.501 * scale && worst > 0.45 * scale, "{worst:e} of {scale:e}");
    }
}

#[test]
fn integers_of_rows_4() {
    let gta = HeadLayout::gta(Gta { q_heads: 1, kv_heads: 1, head_dim: 4, rope_dim: 2 }).unwrap();
    let mut row = [7.0, 3.4, -0.6, 0.4, 1.0 + 2f64.powi(-12), 1e6];
    round_to_i4(&gta, &mut row).unwrap();
    row.iter().zip([7.0, 3.0, -1.0, 0.0, 1.0, 65504.0]).for_each(|(a, b)| assert!((a - b).abs() < 1e-6, "{a} {b}"));
}

/// A standard normal value from two uniform ones.
fn normal(draw: &mut Rng) -> f64 {
    let unit = |x: f64| (x + 1.0) / 2.0;
    let pair = draw.many_signed(2);
    (-2.0 * unit(pair[0]).max(1e-12).ln()).sqrt() * (std::f64::consts::TAU * unit(pair[1])).cos()
}

/// What other ways to spend the bits would bring, for docs/design/cache.md: mean square error of a span of 128 or 512 values,
/// relative to theirs, with one scale, and with one for every 64 or 32 of them.
#[test]
fn integers_blocks_of_a_span() {
    let nmse = |values: &[f64], span: usize| {
        let error: f64 = values
            .chunks(span)
            .map(|span| {
                let (whole, scale) = quantise_span(span, I4_LEVELS);
                span.iter().zip(whole).map(|(x, q)| (x - q * scale).powi(2)).sum::<f64>()
            })
            .sum();
        error / values.iter().map(|x| x * x).sum::<f64>()
    };
    let mut draw = Rng(5);
    let uniform = draw.many_signed(1 << 16);
    let normal: Vec<f64> = (0..1 << 16).map(|_| normal(&mut draw)).collect();
    let spans = [512, 128, 64, 32];
    let [of_uniform, of_normal] = [&uniform, &normal].map(|values| spans.map(|span| nmse(values, span)));
    for ((span, u), n) in spans.iter().zip(of_uniform).zip(of_normal) {
        println!("spans of {span}: uniform {u:.1e}, normal {n:.1e}");
    }
    // (a / 7)^2 / 12 with a = 1.73 whatever the span; and with a of 3.2, 2.8, 2.6, 2.3.
    of_uniform.iter().for_each(|e| assert!((4.5e-3..5.2e-3).contains(e), "{e:e}"));
    for (e, want) in of_normal.iter().zip([1.8e-2, 1.35e-2, 1.15e-2, 0.95e-2]) {
        assert!((e / want - 1.0).abs() < 0.1, "{e:e}, wanted {want:e}");
    }
}
