//! The `encode` forms in a pass of the app's own.

use crate::common::*;
use latten::nn::{Embedding, Linear, LinearArgs, NormShape, RmsNorm, Span, SwiGlu, Weight};
use latten::{reference, DType, Tensor};

#[test]
fn kernels_recorded_into_the_apps_own_pass_run_in_order() {
    let gpu = gpu();
    let (vocab, dim, ffn, ids) = (9, 16, 6, [3, 8, 3, 0]);
    let mut rng = Rng(12);
    let (table, gain, w) = (rng.normals(vocab * dim, 1.0), rng.normals(dim, 1.0), rng.normals(2 * ffn * dim, 0.3));
    let x = reference::embedding(&f64s(&table), &ids, dim).unwrap();
    let x = reference::rms_norm(&x, &f64s(&gain), dim, 1e-6).unwrap();
    let want = reference::swiglu(&reference::linear(&x, &f64s(&w), None, dim).unwrap(), ffn).unwrap();

    let embedding = Embedding::new(gpu, &Weight::new(gpu, [1, vocab, dim], &table, DType::F32).unwrap()).unwrap();
    let shape = NormShape { groups: 1, dim, tail: 0, eps: 1e-6 };
    let norm = RmsNorm::new(gpu, &tensor(gpu, &[1, dim], &gain), shape).unwrap();
    let weight = Weight::new(gpu, [1, 2 * ffn, dim], &w, DType::F32).unwrap();
    let linear = Linear::new(gpu, &weight, None).unwrap();
    let swiglu = SwiGlu::new(gpu).unwrap();
    let t = |dim| Tensor::zeros(gpu, &[4, dim], DType::F32).unwrap();
    let (x, normed, gate_up, y) = (t(dim), t(dim), t(2 * ffn), t(ffn));
    let ids = Tensor::from_slice(gpu, &[4], &ids, DType::U32).unwrap();

    gpu.submit().unwrap();
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    let mut pass = encoder.begin_compute_pass(&Default::default());
    embedding.encode(&mut pass, &ids, &x).unwrap();
    norm.encode(&mut pass, 4, Span::of(&x), Span::of(&normed)).unwrap();
    linear.encode(&mut pass, LinearArgs::new(4, Span::of(&normed), Span::of(&gate_up))).unwrap();
    swiglu.encode(&mut pass, &gate_up, &y).unwrap();
    drop(pass);
    gpu.queue().submit([encoder.finish()]);
    assert_close("embedding to SwiGLU", &download(gpu, &y), &want, 2e-5, 1e-10);
}
