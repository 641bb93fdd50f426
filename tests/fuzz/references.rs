//! The reference: slices and numbers that do not fit each other.

use crate::numbers::Gen;
use latten::reference as r;
use latten::reference::{DecodeInputs, DecodeOptions, Form, Rope, RopePairs, Routing};
use latten::{Gla, Gqa, Gta, HeadLayout};

pub fn case(g: &mut Gen) {
    match g.below(8) {
        0 => attention(g),
        1 => parts(g),
        2 => gqa(g),
        3 => gta(g),
        4 => gla(g),
        5 => rows(g),
        6 => pages(g),
        _ => choices(g),
    }
}

fn layouts() -> [HeadLayout; 4] {
    [
        HeadLayout::gqa(Gqa { q_heads: 2, kv_heads: 1, head_dim: 4 }),
        HeadLayout::gta(Gta { q_heads: 2, kv_heads: 2, head_dim: 4, rope_dim: 2 }),
        HeadLayout::gla(Gla { q_heads: 4, latent_heads: 2, latent_dim: 4, rope_dim: 2 }),
        HeadLayout::mla(latten::Mla { q_heads: 2, latent_dim: 4, rope_dim: 0 }),
    ]
    .map(|layout| layout.unwrap())
}

fn attention(g: &mut Gen) {
    let layout = g.pick(&layouts());
    let (q_len, kv_len) = (g.below(3), g.below(5));
    let q = g.f64s(q_len * layout.q_heads() * layout.q_dim());
    let states = g.f64s(kv_len * layout.groups() * layout.state_dim());
    let rope_keys = g.f64s(kv_len * layout.rope_dim());
    let (softmax_scale, causal) = (g.float(0.5), g.one_in(2));
    let step = DecodeInputs { q: &q, states: &states, rope_keys: &rope_keys, softmax_scale, causal };
    let sinks = if g.one_in(2) { g.f64s(layout.q_heads()) } else { Vec::new() };
    let softcap = g.one_in(3).then(|| g.float(50.0));
    let window = g.one_in(2).then(|| g.size());
    let options = DecodeOptions { softcap, window, keep_first: g.size(), sinks: &sinks };
    g.call("reference::decode_with", r::decode_with(&layout, &step, &options));
    let ranges = [g.near(0)..g.near(2), g.near(2)..g.size()];
    if let Some(parts) = g.call("reference::decode_split", r::decode_split(&layout, &step, &ranges)) {
        let (rows, v_dim) = (g.near(q_len * layout.q_heads()), g.near(layout.v_dim()));
        let parts = if g.one_in(6) { &[][..] } else { &parts };
        if let Some(mut merged) = g.call("reference::merge", r::merge(parts, rows, v_dim)) {
            g.call("reference::add_sinks", r::add_sinks(&mut merged, &sinks, v_dim));
        }
    }
}

fn parts(g: &mut Gen) {
    let (scores, v_dim) = (g.f64s(3), g.near(4));
    let scores = if g.one_in(4) { &[][..] } else { &scores };
    let values = g.f64s(4 * scores.len());
    g.call("reference::attend", r::attend(scores, &values, v_dim));
    let (theta, rope_dim, pairs) = (g.float(1e4), g.near(4), g.pick(&[RopePairs::Half, RopePairs::Interleaved]));
    g.call("reference::inv_freq", r::inv_freq(theta, rope_dim));
    let Some(rotation) = g.call("reference::Rope::new", Rope::new(theta, rope_dim, pairs)) else { return };
    let (mut x, position) = (g.f64s(4), g.word());
    g.call("reference::rope", r::rope(&mut x, position, &rotation));
    let layout = g.pick(&layouts());
    let rotation = Rope::new(1e4, layout.rotated_dim(), pairs).unwrap();
    let mut kv = g.f64s(layout.kv_dim());
    g.call("reference::append", r::append(&layout, &mut kv, position, &rotation));
    g.call("reference::round_to_i8", r::round_to_i8(&layout, &mut kv));
    g.call("reference::round_to_i4", r::round_to_i4(&layout, &mut kv));
    let levels = g.word();
    r::quantise_span(&kv, levels);
}

fn config(g: &mut Gen, rotated: usize) -> r::LayerConfig {
    let rotated = g.len(rotated);
    r::LayerConfig {
        model_dim: g.near(6),
        q_heads: g.near(4),
        groups: g.near(2),
        head_dim: g.near(4),
        rope_dim: g.near(2),
        state_dim: g.near(4),
        q_latent_dim: g.near(6),
        eps: g.float(1e-6),
        rotation: Rope::new(1e4, rotated, RopePairs::Half).unwrap(),
    }
}

fn gqa(g: &mut Gen) {
    let config = r::LayerConfig { rope_dim: 0, state_dim: 8, ..config(g, 4) };
    let weights = r::GqaWeights { w_q: g.f64s(96), w_k: g.f64s(48), w_v: g.f64s(48), w_o: g.f64s(96) };
    let x = g.f64s(12);
    g.call("reference::gqa_layer", r::gqa_layer(&config, &weights, &x));
}

fn gta(g: &mut Gen) {
    let config = config(g, 2);
    let weights =
        r::GtaWeights { w_q: g.f64s(96), w_kv: g.f64s(48), w_rope_k: g.f64s(12), b_rope_k: g.f64s(2), w_o: g.f64s(96) };
    let x = g.f64s(12);
    g.call("reference::gta_project", r::gta_project(&config, &weights, &x));
    g.call("reference::gta_layer", r::gta_layer(&config, &weights, &x));
}

fn gla(g: &mut Gen) {
    let config = config(g, 2);
    let mut weights = r::GlaWeights {
        w_dq: vec![0.5; 36],
        b_dq: vec![0.5; 6],
        q_gain: vec![0.5; 6],
        w_uq: vec![0.5; 4 * 6 * 6],
        b_uq: vec![0.5; 24],
        w_dkv: vec![0.5; 10 * 6],
        b_dkv: vec![0.5; 10],
        c_gain: vec![0.5; 8],
        w_ukv: vec![0.5; 4 * 8 * 4],
        b_ukv: vec![0.5; 32],
        w_o: vec![0.5; 6 * 16],
    };
    let one = match g.below(11) {
        0 => &mut weights.w_dq,
        1 => &mut weights.b_dq,
        2 => &mut weights.q_gain,
        3 => &mut weights.w_uq,
        4 => &mut weights.b_uq,
        5 => &mut weights.w_dkv,
        6 => &mut weights.b_dkv,
        7 => &mut weights.c_gain,
        8 => &mut weights.w_ukv,
        9 => &mut weights.b_ukv,
        _ => &mut weights.w_o,
    };
    let len = one.len();
    one.resize(g.len(len), 0.0);
    let x = g.f64s(12);
    g.call("reference::gla_project", r::gla_project(&config, &weights, &x));
    let form = g.pick(&[Form::Explicit, Form::Absorbed]);
    g.call("reference::gla_layer", r::gla_layer(&config, &weights, &x, form));
    let (q, out) = (g.f64s(24), g.f64s(16));
    g.call("reference::absorb_query", r::absorb_query(&config, &weights, &q));
    g.call("reference::unabsorb_values", r::unabsorb_values(&config, &weights, &out));
}

fn rows(g: &mut Gen) {
    let (x, weight, bias, dim) = (g.f64s(8), g.f64s(12), g.f64s(3), g.near(4));
    let bias = g.one_in(2).then_some(&bias[..]);
    g.call("reference::linear", r::linear(&x, &weight, bias, dim));
    let (gain, eps) = (g.f64s(4), g.float(1e-6));
    g.call("reference::rms_norm", r::rms_norm(&x, &gain, dim, eps));
    g.call("reference::norm_linear", r::norm_linear(&x, &gain, eps, &weight, bias));
    g.call("reference::quantised", r::quantised(&weight, dim));
    g.call("reference::swiglu", r::swiglu(&x, dim));
    let tokens = [g.near(0) as u32, g.near(2) as u32];
    g.call("reference::embedding", r::embedding(&weight, &tokens, dim));
}

fn pages(g: &mut Gen) {
    let (page_size, len) = (g.near(2), g.near(3));
    let planes: Vec<usize> = (0..g.len(2)).map(|_| g.near(2)).collect();
    let pages: Vec<u32> = (0..g.len(2)).map(|_| g.near(1) as u32).collect();
    let pool = g.f64s(16);
    g.call("reference::pages_rows", r::pages_rows(&planes, page_size, &pages, len, &pool));
    let (mut pool, page) = (g.f64s(16), g.near(4));
    let copies: Vec<(usize, usize)> = (0..g.below(3)).map(|i| (g.near(i), g.near(3))).collect();
    g.call("reference::copy_pages", r::copy_pages(&mut pool, page, &copies));
}

fn choices(g: &mut Gen) {
    let (logits, bias) = (g.f64s(8), g.f64s(8));
    let logits = if g.one_in(16) { &[][..] } else { &logits };
    let bias = if logits.is_empty() { &[][..] } else { &bias };
    let shape = Routing {
        top: g.near(2),
        groups: g.near(4),
        top_groups: g.near(2),
        group_best: g.near(1),
        sigmoid: g.one_in(2),
        normalise: g.one_in(2),
        factor: g.float(1.0),
    };
    g.call("reference::route", r::route(logits, bias, &shape));
    let (temperature, top_p, u) = (g.float(0.7), g.float(0.9), g.float(0.5));
    g.call("reference::sample", r::sample(logits, temperature, top_p, u));
    let (tokens, bias) = ([g.near(3), g.near(7)], [(g.near(2), g.float(1.0))]);
    let allowed: Vec<bool> = (0..logits.len() + usize::from(g.one_in(8))).map(|_| g.one_in(2)).collect();
    let options = r::ShapeOptions {
        bias: &bias,
        seen: &tokens,
        drawn: &tokens[..1],
        repetition: g.float(1.2),
        presence: g.float(0.5),
        frequency: g.float(0.1),
        allowed: g.one_in(2).then_some(&allowed[..]),
        temperature,
        min_p: g.float(0.1),
        top_k: g.near(3),
        typical_p: g.float(0.9),
        top_p,
    };
    g.call("reference::shape_logits", r::shape_logits(logits, &options));
    g.call("reference::sample_shaped", r::sample_shaped(logits, &options, u));
    g.call("reference::log_probabilities", r::log_probabilities(logits));
}
