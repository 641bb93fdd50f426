//! Folders in blocks: a shipped model quantised at load is the model whose numbers were rounded on the host.

use crate::assert_kind;
use crate::common::checkout::checkout;
use crate::common::*;
use latten::model::{Config, Decoder, LoadOptions, Session, SessionOptions, WeightBytes};
use latten::nn::{BlockType, WeightType};
use latten::{DType, ErrorKind};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::SafeTensors;

/// Every matrix of a file of F16 tensors as `block` holds it, the table as Q8_0, in F32; rows that are no whole blocks as they are.
fn rounded(file: &[u8], block: BlockType) -> Vec<u8> {
    let tensors = SafeTensors::deserialize(file).unwrap();
    let mut all = Vec::new();
    for (name, tensor) in tensors.tensors() {
        let bytes = tensor.data().chunks_exact(2);
        let mut values: Vec<f32> = bytes.map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
        let shape = tensor.shape().to_vec();
        if shape.len() == 2 && shape[1].is_multiple_of(32) {
            let block = if name.contains("embed") { BlockType::Q8_0 } else { block };
            let blocks = block.quantise(&values).unwrap();
            block.dequantise(&blocks, &mut values).unwrap();
        }
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        all.push((name, shape, bytes));
    }
    let views =
        all.iter().map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

fn logits(decoder: &Decoder) -> Vec<f32> {
    let options = SessionOptions { kv_dtype: DType::F32, cache_tokens: 64, ..Default::default() };
    let mut session = Session::new(decoder, options).unwrap();
    let sequence = session.insert();
    let tokens: Vec<u32> = b"ROMEO:\nBut, soft! what light".iter().map(|b| u32::from(*b)).collect();
    pollster::block_on(session.all_logits(&[(sequence, &tokens)])).unwrap().remove(0)
}

/// Of a last token that is fed by itself.
fn next_logits(decoder: &Decoder) -> Vec<f32> {
    let options = SessionOptions { kv_dtype: DType::F32, cache_tokens: 64, ..Default::default() };
    let mut session = Session::new(decoder, options).unwrap();
    let sequence = session.insert();
    pollster::block_on(session.all_logits(&[(sequence, &[82, 79, 77, 69, 79])])).unwrap();
    pollster::block_on(session.all_logits(&[(sequence, &[58])])).unwrap().remove(0)
}

#[test]
fn a_folder_in_blocks_is_the_rounded_model() {
    let folder = checkout("examples/models/gqa");
    let file = std::fs::read(format!("{folder}/model.safetensors")).unwrap();
    let config =
        Config::parse("config.json", &std::fs::read_to_string(format!("{folder}/config.json")).unwrap()).unwrap();
    let plain = logits(&Decoder::load(exact_gpu(), &folder, DType::F32).unwrap());
    let mut fingerprints = vec![Decoder::load(exact_gpu(), &folder, DType::F16).unwrap().fingerprint()];
    for (block, worse) in [(BlockType::Q8_0, 1e-3), (BlockType::Q4_0, 0.1)] {
        let decoder = Decoder::load(exact_gpu(), &folder, block).unwrap();
        fingerprints.push(decoder.fingerprint());
        let got = logits(&decoder);
        let bytes = rounded(&file, block);
        let weights = WeightBytes { name: "rounded", bytes: &bytes };
        let want = logits(&Decoder::from_bytes(exact_gpu(), config.clone(), weights, DType::F32).unwrap());
        assert_close(&block.to_string(), &got, &f64s(&want), 1e-4, 1e-9);
        let cost = nmse(&got, &f64s(&plain));
        println!("{block}: normalised mean square error of the logits {cost:.1e}");
        assert!(cost > 1e-7 && cost < worse, "{block}: {cost:e}");
    }
    fingerprints.dedup();
    assert_eq!(fingerprints.len(), 3);
}

#[test]
fn every_variant_loads_in_blocks() {
    for variant in ["gta", "gla", "mla"] {
        let folder = checkout(&format!("examples/models/{variant}"));
        let plain = logits(&Decoder::load(gpu(), &folder, DType::F32).unwrap());
        let got = logits(&Decoder::load(gpu(), &folder, BlockType::Q8_0).unwrap());
        let cost = nmse(&got, &f64s(&plain));
        println!("{variant} in q8_0: normalised mean square error of the logits {cost:.1e}");
        assert!(cost > 1e-7 && cost < 1e-3, "{variant}: {cost:e}");
    }
}

/// A step of one token by dot products of bytes: on software adapters, which multiply as before, to the bit. Weights of other types
/// do not change.
#[test]
fn dot_products_of_bytes_cost_little() {
    let folder = checkout("examples/models/gqa");
    for kind in [WeightType::from(DType::I8), BlockType::Q8_0.into(), BlockType::Q4_0.into(), DType::F16.into()] {
        let load = |integer_dot| {
            Decoder::load_with(gpu(), &folder, LoadOptions { integer_dot, ..LoadOptions::of(kind) }).unwrap()
        };
        let (plain, bytes) = (load(false), load(true));
        assert_ne!(plain.fingerprint(), bytes.fingerprint());
        let cost = nmse(&next_logits(&bytes), &f64s(&next_logits(&plain)));
        println!("{kind}, input in bytes: normalised mean square error of the logits {cost:.1e}");
        match gpu().capabilities().is_software() || kind == DType::F16.into() {
            true => assert_eq!(cost, 0.0, "{kind}"),
            false => assert!(cost > 1e-9 && cost < 2e-3, "{kind}: {cost:e}"),
        }
    }
}

#[test]
fn what_is_not_quantised_to_is_refused() {
    let folder = checkout("examples/models/gqa");
    assert_kind!(Decoder::load(gpu(), &folder, BlockType::Q4_K), ErrorKind::Unsupported { .. });
    let options = LoadOptions { dtype: DType::I8, ..LoadOptions::of(BlockType::Q8_0) };
    assert_kind!(Decoder::load_with(gpu(), &folder, options), ErrorKind::Argument { .. });
    assert_eq!(LoadOptions::of(WeightType::from(DType::F32)).dtype, DType::F32);
}
