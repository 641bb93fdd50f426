//! Logits against the f64 forward pass.

use crate::common::*;
use crate::tiny::{Tiny, VARIANTS};
use latten::model::{Config, Decoder, Session, SessionOptions, WeightBytes};
use latten::nn::quantise;
use latten::{DType, Gpu};
use safetensors::tensor::Dtype;

const TOKENS: [u32; 11] = [0, 256, 17, 17, 99, 3, 200, 45, 17, 128, 1];

fn decoder(gpu: &Gpu, tiny: &Tiny, file: Dtype, device: DType) -> Decoder {
    let config = Config::parse("config.json", &tiny.config_json()).unwrap();
    Decoder::from_bytes(gpu, config, WeightBytes { name: "model.safetensors", bytes: &tiny.bytes(file) }, device)
        .unwrap()
}

fn all_logits(decoder: &Decoder, kv_dtype: DType, chunk: usize) -> Vec<f32> {
    let options = SessionOptions { kv_dtype, chunk, page_size: 4, cache_tokens: 16, ..Default::default() };
    let mut session = Session::new(decoder, options).unwrap();
    let sequence = session.insert();
    let mut logits = pollster::block_on(session.all_logits(&[(sequence, &TOKENS)])).unwrap();
    assert_eq!(logits.len(), 1);
    logits.remove(0)
}

#[test]
fn logits_of_every_variant_match_the_f64_forward_in_any_chunks() {
    for variant in VARIANTS {
        let tiny = Tiny::new(variant, 1);
        let want = tiny.forward(&TOKENS).concat();
        for (weights, kv_dtype) in [(DType::F32, DType::F32), (DType::F16, DType::F32), (DType::F16, DType::F16)] {
            let decoder = decoder(gpu(), &tiny, Dtype::F32, weights);
            assert_eq!(decoder.config().variant(), variant);
            for chunk in [1, 3, 11, 128] {
                let case = format!("{variant}, {weights} weights, {kv_dtype} cache, chunks of {chunk}");
                let (tolerance, nmse) = if kv_dtype == DType::F32 { (2e-5, 1e-10) } else { (5e-3, 1e-5) };
                assert_close(&case, &all_logits(&decoder, kv_dtype, chunk), &want, tolerance, nmse);
            }
        }
    }
}

#[test]
fn files_in_f32_f16_and_bf16_give_the_same_model() {
    for variant in VARIANTS {
        let tiny = Tiny::new(variant, 2); // all values are exact in each
        let of = |file| all_logits(&decoder(gpu(), &tiny, file, DType::F16), DType::F32, 128);
        let want = of(Dtype::F32);
        assert!(want.iter().any(|l| l.abs() > 0.1));
        assert_eq!(of(Dtype::F16), want, "{variant}");
        assert_eq!(of(Dtype::BF16), want, "{variant}");
    }
}

#[test]
fn absent_biases_are_zeros() {
    for variant in VARIANTS {
        let (mut none, mut zeros) = (Tiny::new(variant, 3), Tiny::new(variant, 3));
        none.tensors.retain(|name, _| !name.ends_with(".bias"));
        zeros.tensors.iter_mut().filter(|t| t.0.ends_with(".bias")).for_each(|(_, (_, v))| v.fill(0.0));
        let of = |tiny| all_logits(&decoder(gpu(), tiny, Dtype::F32, DType::F32), DType::F32, 128);
        assert_eq!(of(&none), of(&zeros), "{variant}");
        assert_ne!(of(&none), of(&Tiny::new(variant, 3)), "{variant}");
    }
}

/// The model with each row of each projection as 8-bit integers hold it; the table stays as it is.
fn in_eight_bits(tiny: &Tiny) -> Tiny {
    let mut rounded = tiny.clone();
    for (name, (shape, values)) in &mut rounded.tensors {
        if name.contains("proj") && name.ends_with(".weight") {
            let (integers, scales) = quantise(values, shape[1]).unwrap();
            let rows = integers.chunks_exact(shape[1]).zip(scales);
            *values = rows.flat_map(|(row, scale)| row.iter().map(move |q| f32::from(*q) * scale)).collect();
        }
    }
    rounded
}

#[test]
fn eight_bit_weights_give_the_logits_of_the_rounded_model() {
    for variant in VARIANTS {
        let tiny = Tiny::new(variant, 4);
        let got = all_logits(&decoder(gpu(), &tiny, Dtype::F32, DType::I8), DType::F32, 4);
        let plain = tiny.forward(&TOKENS).concat();
        let error: f64 = got.iter().zip(&plain).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum();
        let nmse = error / plain.iter().map(|w| w * w).sum::<f64>();
        println!("{variant}: int8 weights, normalised mean square error of the logits {nmse:.1e}");
        assert!(nmse > 1e-5 && nmse < 1e-3, "{variant}: {nmse:e}");
        // The latent variants cut and transpose a matrix before they round it, and GLA's head has no table to share.
        if ["gqa", "gta"].contains(&variant) {
            let want = in_eight_bits(&tiny).forward(&TOKENS).concat();
            assert_close(&format!("{variant} in 8 bits"), &got, &want, 2e-5, 1e-10);
        }
    }
}

/// Narrower caches cost what they round: a model says the same in bf16 to its 8 bits, in i8 and i4 to those of a
/// state's largest.
#[test]
fn narrow_caches_cost_what_they_round() {
    for variant in VARIANTS {
        let tiny = Tiny::new(variant, 4);
        let want = tiny.forward(&TOKENS).concat();
        let decoder = decoder(gpu(), &tiny, Dtype::F32, DType::F32);
        for (kv_dtype, tolerance, nmse) in [(DType::BF16, 3e-2, 1e-4), (DType::I8, 1e-1, 1e-3), (DType::I4, 1.0, 1e-1)]
        {
            let case = format!("{variant}, {kv_dtype} cache");
            assert_close(&case, &all_logits(&decoder, kv_dtype, 3), &want, tolerance, nmse);
        }
    }
}
