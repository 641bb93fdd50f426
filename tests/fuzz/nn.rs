//! What a block needs besides attention.

use crate::device::{zeros, World};
use crate::numbers::Gen;
use crate::pure::{DTYPES, ROTATIONS};
use latten::nn::{
    Embedding, ExpertArgs, ExpertTuning, Experts, Linear, LinearArgs, LinearTuning, ListedToken, Logprobs, MatrixTile,
    NormShape, Penalties, RmsNorm, RopeKernel, RopeShape, Route, RouteShape, Sample, Sampling, ShapedRow, ShapedSample,
    Span, SwiGlu, Weight,
};
use latten::{DType, Gpu, RopePairs, Tensor};

pub fn case(g: &mut Gen, world: &World) {
    let gpu = &world.gpu;
    match g.below(10) {
        0 => weights(g, gpu),
        1..=3 => linear(g, gpu),
        4 => norm(g, gpu),
        5 => rotate(g, gpu),
        6 => table(g, gpu),
        7 => route(g, gpu),
        8 => experts(g, gpu),
        _ => sample(g, gpu),
    }
    gpu.submit().unwrap();
}

/// Mostly all of a tensor.
fn span<'a>(g: &mut Gen, tensor: &'a Tensor) -> Span<'a> {
    let mut span = Span::of(tensor);
    if g.one_in(6) {
        span = span.offset(g.near(0));
    }
    if g.one_in(12) {
        span = span.row_stride(g.size());
    }
    if g.one_in(12) {
        span = span.head_stride(g.size());
    }
    span
}

fn dtype(g: &mut Gen) -> DType {
    if g.one_in(12) {
        g.pick(&DTYPES)
    } else {
        g.pick(&[DType::F32, DType::F16, DType::I8])
    }
}

fn weights(g: &mut Gen, gpu: &Gpu) {
    let shape = [g.held(2, 8), g.held(4, 16), g.held(6, 16)];
    let (values, dtype) = (g.f32s(48), dtype(g));
    if let Some(weight) = g.call("Weight::new", Weight::new(gpu, shape, &values, dtype)) {
        let _ = weight.size_bytes();
    }
    let (rows, shape) = (g.f32s(24), [g.held(2, 8), g.held(4, 16), g.held(6, 16)]);
    g.call("Weight::from_heads", Weight::from_heads(gpu, shape, dtype, |_| Ok(rows.clone())));
    let width = g.pick(&[8, 8, 6]);
    g.call("Weight::from_rows", Weight::from_rows(&zeros(gpu, &[2, width], DType::F32)));
}

fn tuning(g: &mut Gen) -> LinearTuning {
    let (in_lanes, outs, steps) = (g.near(32), g.near(2), g.near(4));
    LinearTuning { in_lanes, outs, steps, max_rows: g.near(16), out_lanes: g.near(2), subgroups: g.one_in(8) }
}

fn linear(g: &mut Gen, gpu: &Gpu) {
    let (heads, out_dim, in_dim) = (1 + g.below(2), 4, g.pick(&[8, 6]));
    let weight = Weight::new(
        gpu,
        [heads, out_dim, in_dim],
        &vec![0.5; heads * out_dim * in_dim],
        g.pick(&[DType::F32, DType::I8]),
    )
    .unwrap();
    let bias = zeros(gpu, &[heads, g.len(out_dim).max(1)], DType::F32);
    let made = Linear::new(gpu, &weight, g.one_in(2).then_some(&bias));
    let Some(mut linear) = g.call("Linear::new", made) else { return };
    let rows = 1 + g.below(4);
    let (mut tail, mut rest) = (0, 0);
    for _ in 0..g.below(3) {
        let next = match g.below(5) {
            0 => {
                let gain = zeros(gpu, &[1, g.len(in_dim).max(1)], DType::F32);
                let eps = g.float(1e-6) as f32;
                g.call("Linear::with_norm", linear.with_norm(&gain, eps))
            }
            1 => g.call("Linear::with_swiglu", linear.with_swiglu()),
            2 => {
                tail = g.near(4);
                g.call("Linear::with_tail", linear.with_tail(tail, RopePairs::Half))
            }
            3 => {
                let shape = NormShape { groups: 1, dim: 4, tail: g.near(2), eps: 1e-6 };
                let Some(norm) = g.call("RmsNorm::new", RmsNorm::new(gpu, &zeros(gpu, &[1, 4], DType::F32), shape))
                else {
                    return;
                };
                rest = 4 + shape.tail;
                g.call("Linear::with_rest", linear.with_rest(norm))
            }
            _ => return tunings(g, linear),
        };
        let Some(next) = next else { return };
        linear = next;
    }
    let (width, outputs) = (in_dim + tail.min(64) + rest.min(64), linear.outputs());
    let x = zeros(gpu, &[g.len(rows).max(1), heads, width], DType::F32);
    let y = zeros(gpu, &[g.len(rows).max(1), heads, outputs.min(99)], DType::F32);
    let rows = g.near(rows);
    let (x, y) = (span(g, &x), span(g, &y));
    let cos_sin = zeros(gpu, &[g.len(rows.min(9)).max(1), (tail.min(64) / 2).max(1), 2], DType::F32);
    let beside = zeros(gpu, &[rows.clamp(1, 9), rest.clamp(1, 99)], DType::F32);
    let accumulate = g.one_in(2);
    // Now and then given or missing where it should not be.
    let cos_sin = ((tail > 0) != g.one_in(20)).then_some(&cos_sin);
    let rest = ((rest > 0) != g.one_in(20)).then_some(&beside);
    let args = LinearArgs { accumulate, cos_sin, rest, ..LinearArgs::new(rows, x, y) };
    g.call("Linear::run", linear.run(args));
    let _ = (linear.matrix_tile(rows), linear.tuning(rows));
    let dense = zeros(gpu, &[g.len(4).max(1), heads, width], DType::F32);
    g.call("Linear::forward", linear.forward(&dense));
    let rows = g.size();
    g.call("Linear::run of any rows", linear.run(LinearArgs::new(rows, x, y)));
}

fn tunings(g: &mut Gen, linear: Linear) {
    let tile = MatrixTile {
        row_tiles: g.near(1),
        out_tiles: g.near(2),
        row_groups: g.near(4),
        out_groups: g.near(1),
        step_words: g.near(16),
        ahead: g.near(1),
    };
    // No tile of matrices is taken without the device's cooperative matrices.
    assert!(linear.clone().with_matrix_tile(tile).is_err());
    let tuning = tuning(g);
    if let Some(linear) = g.call("Linear::with_tuning", linear.with_tuning(tuning)) {
        let rows = g.size();
        let _ = (linear.tuning(rows), linear.matrix_tile(rows), linear.outputs());
    }
}

fn norm(g: &mut Gen, gpu: &Gpu) {
    let shape = NormShape { groups: g.near(2), dim: g.near(4), tail: g.near(2), eps: g.float(1e-6) as f32 };
    let gain = zeros(gpu, &[2, 4], DType::F32);
    let Some(norm) = g.call("RmsNorm::new", RmsNorm::new(gpu, &gain, shape)) else { return };
    let (x, y) = (zeros(gpu, &[3, 10], DType::F32), zeros(gpu, &[3, 10], DType::F32));
    let (rows, x, y) = (g.near(3), span(g, &x), span(g, &y));
    g.call("RmsNorm::run", norm.run(rows, x, y));
    let (wide, narrow) = (zeros(gpu, &[2, 6], DType::F32), zeros(gpu, &[2, g.len(3).max(1)], DType::F32));
    g.call("SwiGlu::run", SwiGlu::new(gpu).unwrap().run(&wide, &narrow));
}

fn rotate(g: &mut Gen, gpu: &Gpu) {
    let shape = RopeShape { heads: g.near(2), copy_dim: g.near(2), rope_dim: g.near(4), pairs: g.pick(&ROTATIONS) };
    let Some(rotate) = g.call("RopeKernel::new", RopeKernel::new(gpu, shape)) else { return };
    let (x, y) = (zeros(gpu, &[3, 2, 6], DType::F32), zeros(gpu, &[3, 2, 6], DType::F32));
    let cos_sin = zeros(gpu, &[3, 2, 2], DType::F32);
    let (rows, x, y) = (g.near(3), span(g, &x), span(g, &y));
    g.call("RopeKernel::run", rotate.run(rows, &cos_sin, x, y));
}

fn table(g: &mut Gen, gpu: &Gpu) {
    let weight = Weight::new(gpu, [1 + g.below(6) / 5, 4, 6], &vec![0.5; 48][..], DType::F16);
    let weight = match weight {
        Ok(weight) => weight,
        Err(_) => Weight::new(gpu, [1, 4, 6], &[0.5; 24], DType::F16).unwrap(),
    };
    let Some(embedding) = g.call("Embedding::new", Embedding::new(gpu, &weight)) else { return };
    let ids = [g.near(3) as u32, 0];
    g.call("Embedding::check_ids", embedding.check_ids(&ids));
    let (ids, y) =
        (Tensor::from_slice(gpu, &[2], &ids, DType::U32).unwrap(), zeros(gpu, &[g.len(2).max(1), 6], DType::F32));
    g.call("Embedding::run", embedding.run(&ids, &y));
}

fn route(g: &mut Gen, gpu: &Gpu) {
    let shape = RouteShape {
        experts: g.near(8),
        top: g.near(2),
        groups: g.near(2),
        top_groups: g.near(1),
        group_best: g.near(1),
        sigmoid: g.one_in(2),
        normalise: g.one_in(2),
        factor: g.float(1.0) as f32,
    };
    let Some(route) = g.call("Route::new", Route::new(gpu, &zeros(gpu, &[8], DType::F32), shape)) else { return };
    let (logits, ids) = (zeros(gpu, &[3, 8], DType::F32), zeros(gpu, &[3, g.len(2).max(1)], DType::U32));
    g.call("Route::run", route.run(&logits, &ids, &zeros(gpu, &[3, 2], DType::F32)));
}

fn experts(g: &mut Gen, gpu: &Gpu) {
    let (count, width, dim) = (4, 4, 8);
    let weight = |shape: [usize; 3]| Weight::new(gpu, shape, &vec![0.5; shape.iter().product()], DType::F16).unwrap();
    let (gate_up, down) = (weight([count, 2 * width, dim]), weight([count, dim, g.len(width).clamp(1, 8)]));
    let top = g.near(2);
    let Some(experts) = g.call("Experts::new", Experts::new(gpu, gate_up, down, top)) else { return };
    let tuning = ExpertTuning { tile_rows: g.pick(&[8, 16, 32, 16, 0, usize::MAX]), rows_per_expert: g.near(1) };
    let Some(experts) = g.call("Experts::with_tuning", experts.with_tuning(tuning)) else { return };
    let rows = 1 + g.below(6);
    let room = g.held(rows, 64);
    let Some(scratch) = g.call("Experts::scratch", experts.scratch(room)) else { return };
    let (ids, weights) = (zeros(gpu, &[rows, 2], DType::U32), zeros(gpu, &[rows, 2], DType::F32));
    let (x, y) = (zeros(gpu, &[rows, dim], DType::F32), zeros(gpu, &[g.len(rows).max(1), dim], DType::F32));
    let (x, y) = (span(g, &x), span(g, &y));
    let args = ExpertArgs { ids: &ids, weights: &weights, scratch: &scratch };
    g.call("Experts::run", experts.run(x, y, args));
}

fn sample(g: &mut Gen, gpu: &Gpu) {
    let vocab = g.near(9);
    let Some(sample) = g.call("Sample::new", Sample::new(gpu, vocab)) else { return };
    let (logits, samplers) = (zeros(gpu, &[3, 9], DType::F32), zeros(gpu, &[3, 4], DType::F32));
    let tokens = zeros(gpu, &[g.len(3).max(1)], DType::U32);
    let logits = span(g, &logits);
    g.call("Sample::run", sample.run(logits, &samplers, &tokens));
    let Some(shaped) = g.call("ShapedSample::new", ShapedSample::new(gpu, vocab)) else { return };
    let penalties = Penalties { repetition: g.float(1.2) as f32, presence: g.float(0.5) as f32, ..Default::default() };
    let sampling =
        Sampling { top_k: g.near(3) as u32, typical_p: g.float(0.9) as f32, penalties, ..Default::default() };
    let listed = [ListedToken { token: g.near(3) as u32, seen: 1, drawn: 1, bias: g.float(1.0) as f32 }];
    let (mask, u) = ([g.word()], g.float(0.5) as f32);
    let drawn = g.one_in(2).then(|| g.near(1));
    let row = ShapedRow { listed: &listed, mask: Some(&mask), drawn, ..ShapedRow::new(g.near(1), sampling, u) };
    let words = g.call("ShapedSample::words", shaped.words(&[row, ShapedRow::new(0, sampling, u)]));
    // Or what nobody made.
    let words = words.filter(|_| !g.one_in(4)).unwrap_or_else(|| (0..40).map(|_| g.word()).collect());
    let words = Tensor::from_slice(gpu, &[words.len()], &words, DType::U32).unwrap();
    let count = g.near(2);
    g.call("ShapedSample::run", shaped.run(logits, (&words, count), &tokens, &tokens));
    let Some(logprobs) = g.call("Logprobs::new", Logprobs::new(gpu, vocab)) else { return };
    let out = zeros(gpu, &[3, 1 + g.below(24), 2], DType::U32);
    g.call("Logprobs::run", logprobs.run(logits, &tokens, &out));
}
