//! Options of the reference's decode, by what they must be equal to.

use latten::reference::{add_sinks, decode, decode_split, decode_with, merge, Attended, DecodeInputs, DecodeOptions};
use latten::{ErrorKind, Gqa, Gta, HeadLayout};

use crate::assert_close;
use crate::random::Rng;

/// Two query tokens of 4 heads over 9 cached tokens.
struct Step {
    layout: HeadLayout,
    q: Vec<f64>,
    states: Vec<f64>,
    rope_keys: Vec<f64>,
}

impl Step {
    fn new() -> Self {
        let layout = HeadLayout::gta(Gta { q_heads: 4, kv_heads: 2, head_dim: 6, rope_dim: 2 }).unwrap();
        let mut draw = Rng(5);
        let (q, states) = (draw.many_signed(2 * 4 * layout.q_dim()), draw.many_signed(9 * 2 * 6));
        Step { layout, q, states, rope_keys: draw.many_signed(9 * 2) }
    }

    fn inputs(&self) -> DecodeInputs<'_> {
        DecodeInputs { q: &self.q, states: &self.states, rope_keys: &self.rope_keys, softmax_scale: 1.3, causal: true }
    }
}

#[test]
fn options_a_sink_is_a_token_without_a_value() {
    let layout = HeadLayout::gqa(Gqa { q_heads: 1, kv_heads: 1, head_dim: 3 }).unwrap();
    let mut draw = Rng(3);
    let (q, states) = (draw.many_signed(3), draw.many_signed(4 * 6));
    let step = DecodeInputs { q: &q, states: &states, rope_keys: &[], softmax_scale: 0.7, causal: false };
    let norm: f64 = q.iter().map(|v| v * v).sum();
    for sink in [-2.0, 0.3, 5.0] {
        let options = DecodeOptions { sinks: &[sink], ..Default::default() };
        let got = decode_with(&layout, &step, &options).unwrap();
        // A key that scores `sink`, and a value of zero.
        let mut longer = states.clone();
        longer.extend(q.iter().map(|v| v * sink / (0.7 * norm)).chain([0.0; 3]));
        let want = decode(&layout, &DecodeInputs { states: &longer, ..step }).unwrap();
        assert_close("out", &got.out, &want.out);
        assert_close("lse", &got.lse, &want.lse);
    }
}

#[test]
fn options_sinks_enter_once_after_a_merge() {
    let step = Step::new();
    let sinks = [0.5, -1.0, 3.0, f64::NEG_INFINITY];
    let options = DecodeOptions { sinks: &sinks, ..Default::default() };
    let whole = decode_with(&step.layout, &step.inputs(), &options).unwrap();
    let parts = decode_split(&step.layout, &step.inputs(), &[0..4, 4..5, 5..100]).unwrap();
    let mut merged = merge(&parts, 8, 6).unwrap();
    add_sinks(&mut merged, &sinks, 6).unwrap();
    assert_close("out", &merged.out, &whole.out);
    assert_close("lse", &merged.lse, &whole.lse);
    // Or with any one part: the state still merges.
    let mut parts = parts;
    add_sinks(&mut parts[1], &sinks, 6).unwrap();
    assert_close("one part", &merge(&parts, 8, 6).unwrap().out, &whole.out);
    // Minus infinity is no sink.
    let plain = decode(&step.layout, &step.inputs()).unwrap();
    assert_eq!((&whole.out[18..24], whole.lse[3]), (&plain.out[18..24], plain.lse[3]));
    // A row without a token keeps its zeros.
    let mut empty = Attended { out: vec![0.0; 2], lse: vec![f64::NEG_INFINITY] };
    add_sinks(&mut empty, &[1.5], 2).unwrap();
    assert_eq!((empty.out, empty.lse), (vec![0.0; 2], vec![1.5]));
}

#[test]
fn options_a_window_is_the_cache_cut_short() {
    let step = Step::new();
    let (row, cached) = (4 * step.layout.q_dim(), 2 * 6);
    for window in [1, 3, 8, 9, 100] {
        let options = DecodeOptions { window: Some(window), ..Default::default() };
        let got = decode_with(&step.layout, &step.inputs(), &options).unwrap();
        for m in 0..2usize {
            let (first, end) = ((8 + m).saturating_sub(window), 8 + m);
            let alone = DecodeInputs {
                q: &step.q[m * row..][..row],
                states: &step.states[first * cached..end * cached],
                rope_keys: &step.rope_keys[first * 2..end * 2],
                ..step.inputs()
            };
            let want = decode(&step.layout, &alone).unwrap();
            assert_close("out", &got.out[m * 24..][..24], &want.out);
            assert_close("lse", &got.lse[m * 4..][..4], &want.lse);
        }
    }
}

#[test]
fn options_first_tokens_are_put_before_the_window() {
    let step = Step::new();
    let (row, cached) = (4 * step.layout.q_dim(), 2 * 6);
    for (window, keep_first) in [(1, 1), (3, 2), (4, 4), (4, 5), (2, 100), (100, 3), (3, 0)] {
        let options = DecodeOptions { window: Some(window), keep_first, ..Default::default() };
        let got = decode_with(&step.layout, &step.inputs(), &options).unwrap();
        for m in 0..2usize {
            let seen: Vec<usize> = (0..8 + m).filter(|t| *t < keep_first || *t + window > 7 + m).collect();
            let rows = |of: &[f64], width: usize| -> Vec<f64> {
                seen.iter().flat_map(|t| &of[t * width..(t + 1) * width]).copied().collect()
            };
            let (states, rope_keys) = (rows(&step.states, cached), rows(&step.rope_keys, 2));
            let alone =
                DecodeInputs { q: &step.q[m * row..][..row], states: &states, rope_keys: &rope_keys, ..step.inputs() };
            let want = decode(&step.layout, &alone).unwrap();
            assert_close("out", &got.out[m * 24..][..24], &want.out);
            assert_close("lse", &got.lse[m * 4..][..4], &want.lse);
        }
    }
}

#[test]
fn options_softcap() {
    // One token: its capped score is the LSE.
    let layout = HeadLayout::gqa(Gqa { q_heads: 1, kv_heads: 1, head_dim: 1 }).unwrap();
    let inputs = DecodeInputs { q: &[3.0], states: &[2.0, 7.0], rope_keys: &[], softmax_scale: 0.5, causal: true };
    let options = DecodeOptions { softcap: Some(4.0), ..Default::default() };
    let got = decode_with(&layout, &inputs, &options).unwrap();
    assert_close("lse", &got.lse, &[4.0 * 0.635148952387287]); // tanh(0.75)
    assert_eq!(got.out, [7.0]);
    // A cap far above every score changes nothing that f64 could show.
    let step = Step::new();
    let wide = DecodeOptions { softcap: Some(1e9), ..Default::default() };
    let got = decode_with(&step.layout, &step.inputs(), &wide).unwrap();
    assert_close("out", &got.out, &decode(&step.layout, &step.inputs()).unwrap().out);
}

#[test]
fn options_of_the_wrong_shape() {
    let step = Step::new();
    let options = DecodeOptions { sinks: &[0.0; 3], ..Default::default() };
    let error = decode_with(&step.layout, &step.inputs(), &options).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Shape { .. }), "{error}");
}
