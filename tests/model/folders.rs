//! Folders that hold no usable model: typed errors that name file, key or tensor.

use crate::assert_kind;
use crate::common::*;
use crate::tiny::{Folder, Tiny, VARIANTS};
use latten::model::{Config, Decoder, LoadOptions, WeightBytes};
use latten::{DType, ErrorKind};
use safetensors::tensor::Dtype;
use serde_json::{json, Value};
use std::cell::RefCell;

fn parse(tiny: &Tiny) -> Result<Config, latten::Error> {
    Config::parse("here/config.json", &tiny.config_json())
}

fn load(tiny: &Tiny) -> Result<Decoder, latten::Error> {
    Decoder::from_bytes(
        gpu(),
        parse(tiny)?,
        WeightBytes { name: "here/model.safetensors", bytes: &tiny.bytes(Dtype::F32) },
        DType::F16,
    )
}

#[test]
fn every_key_is_required_and_checked() {
    for variant in VARIANTS {
        let good = Tiny::new(variant, 1);
        assert!(parse(&good).is_ok());
        for key in good.config.keys() {
            let mut tiny = good.clone();
            tiny.config.remove(key);
            let text = message(parse(&tiny));
            assert_eq!(text, format!("model config here/config.json: key {key} is missing"), "{variant}");
            for bad in [json!("seven"), json!(-1), json!(null), json!(1e300), json!([1])] {
                tiny.config.insert(key.clone(), bad.clone());
                assert_kind!(parse(&tiny), ErrorKind::Config { .. });
                let text = message(parse(&tiny));
                assert!(text.contains(&format!("key {key} = {bad}")), "{variant} {key} = {bad}: {text}");
            }
        }
    }
}

#[test]
fn numbers_that_do_not_fit_each_other_are_refused() {
    let cases = [
        ("gqa", "num_key_value_heads", json!(3), "num_key_value_heads = 3", "does not divide num_attention_heads = 4"),
        ("gqa", "head_dim", json!(7), "head_dim = 7", "odd"),
        ("gta", "rope_dim", json!(3), "rope_dim = 3", "odd"),
        ("gta", "rope_dim", json!(8), "rope_dim = 8", "exceeds head_dim = 6"),
        ("gla", "latent_heads", json!(3), "latent_heads = 3", "does not divide"),
        ("mla", "latent_heads", json!(2), "latent_heads = 2", "mla"),
        ("mla", "hidden_size", json!(18), "hidden_size = 18", "multiple of 4"),
        ("gla", "vocab_size", json!(255), "vocab_size = 255", "256"),
        ("gla", "attention", json!("gtla"), "attention = \"gtla\"", "\"gla\""),
        ("gla", "model_type", json!("gpt2"), "model_type = \"gpt2\"", "latten"),
        ("gla", "tokenizer", json!("bpe"), "tokenizer = \"bpe\"", "bytes"),
        ("gla", "rms_norm_eps", json!(0), "rms_norm_eps = 0", "number in"),
    ];
    for (variant, key, value, names, why) in cases {
        let mut tiny = Tiny::new(variant, 1);
        tiny.config.insert(key.into(), value);
        assert_kind!(parse(&tiny), ErrorKind::Config { .. });
        let text = message(parse(&tiny));
        assert!(text.contains(names) && text.contains(why), "{text}");
    }
    for text in ["", "{", "[]", "3", "{\"model_type\": }"] {
        assert_kind!(Config::parse("c", text), ErrorKind::Config { .. });
    }
}

#[test]
fn every_tensor_is_required_in_its_shape() {
    for variant in VARIANTS {
        let good = Tiny::new(variant, 1);
        for (name, (shape, values)) in
            good.tensors.iter().filter(|t| t.0.contains("layers.1") || !t.0.contains("layers"))
        {
            let mut tiny = good.clone();
            tiny.tensors.remove(name);
            if name.ends_with(".weight") {
                let text = message(load(&tiny));
                assert!(
                    text.starts_with(&format!("model weights here/model.safetensors: tensor {name}: missing")),
                    "{text}"
                );
            }
            let wanted: Vec<usize> = shape.iter().copied().skip_while(|d| *d == 1).collect();
            let mut longer = wanted.clone();
            longer[0] += 1;
            let more = [&values[..], &vec![0.0; longer.iter().product::<usize>() - values.len()]].concat();
            tiny.tensors.insert(name.clone(), (longer.clone(), more));
            assert_kind!(load(&tiny), ErrorKind::Weights { .. });
            let text = message(load(&tiny)).replace(' ', "");
            let shapes =
                format!("tensor{name}:hasshape{longer:?},wanted{wanted:?}").replace('[', "(").replace(']', ")");
            assert!(text.ends_with(&shapes.replace(' ', "")), "{text} against {shapes}");
        }
    }
}

#[test]
fn values_and_dtypes_that_cannot_be_used_are_refused() {
    let good = Tiny::new("gla", 1);
    let name = "model.layers.0.self_attn.q_a_proj.weight";
    for (value, why) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (7e4, "beyond f16")] {
        let mut tiny = good.clone();
        tiny.tensors.get_mut(name).unwrap().1[5] = value;
        let text = message(load(&tiny));
        assert!(text.contains(name) && text.contains(why), "{text}");
    }
    let mut tiny = good.clone();
    tiny.tensors.get_mut(name).unwrap().1[5] = 7e4;
    let bytes = tiny.bytes(Dtype::F32);
    assert!(
        Decoder::from_bytes(gpu(), parse(&tiny).unwrap(), WeightBytes { name: "w", bytes: &bytes }, DType::F32).is_ok()
    );
    let integers = good.bytes(Dtype::I32);
    let result =
        Decoder::from_bytes(gpu(), parse(&good).unwrap(), WeightBytes { name: "w", bytes: &integers }, DType::F16);
    assert!(message(result).contains("has dtype I32, wanted F32, F16 or BF16"));
}

#[test]
fn broken_files_and_folders_are_typed_errors() {
    let tiny = Tiny::new("gqa", 1);
    let bytes = tiny.bytes(Dtype::F32);
    for end in [0, 7, 8, 100, bytes.len() / 2, bytes.len() - 1] {
        let result = Decoder::from_bytes(
            gpu(),
            parse(&tiny).unwrap(),
            WeightBytes { name: "w", bytes: &bytes[..end] },
            DType::F16,
        );
        assert_kind!(result, ErrorKind::Weights { .. });
    }
    let folder = Folder::new("broken");
    let at = |name: &str| folder.path().join(name);
    let load = || Decoder::load(gpu(), folder.path(), DType::F16);
    assert_kind!(load(), ErrorKind::Io { .. });
    assert!(message(load()).contains("config.json"), "{}", message(load()));
    std::fs::write(at("config.json"), [0xff, 0xfe]).unwrap();
    assert_kind!(load(), ErrorKind::Io { .. });
    std::fs::write(at("config.json"), tiny.config_json()).unwrap();
    assert!(message(load()).contains("model.safetensors"), "{}", message(load()));
    std::fs::write(at("model.safetensors"), &bytes[..200]).unwrap();
    assert_kind!(load(), ErrorKind::Weights { .. });
    std::fs::write(at("model.safetensors"), &bytes).unwrap();
    assert!(load().is_ok());
}

#[test]
fn tensors_that_the_model_has_no_use_for_are_left_out() {
    let mut tiny = Tiny::new("mla", 1);
    tiny.tensors.insert("model.rotary.inv_freq".into(), (vec![3], vec![1.0; 3]));
    assert!(load(&tiny).is_ok());
    let Value::Bool(tied) = &tiny.config["tie_word_embeddings"] else { panic!() };
    assert!(*tied);
    tiny.config.insert("tie_word_embeddings".into(), json!(false));
    assert!(message(load(&tiny)).contains("tensor lm_head.weight: missing"));
}

#[test]
fn loading_tells_how_far_it_is() {
    for (variant, dtype) in VARIANTS.into_iter().zip([DType::F16, DType::F32, DType::I8, DType::F16]) {
        let mut tiny = Tiny::new(variant, 2);
        let bytes = tiny.bytes(Dtype::F16);
        // Once what is read is all there is, and once one layer of two is.
        for layers in [2, 1] {
            tiny.config.insert("num_hidden_layers".into(), json!(layers));
            let told = RefCell::new(Vec::new());
            let tell = |p: latten::cache::Progress| told.borrow_mut().push((p.bytes, p.total_bytes));
            let options = LoadOptions { dtype, progress: Some(&tell), leave_out: layers == 1, ..Default::default() };
            Decoder::from_bytes_with(gpu(), parse(&tiny).unwrap(), WeightBytes { name: "x", bytes: &bytes }, options)
                .unwrap();
            let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let total: u64 = tensors.tensors().iter().map(|(_, tensor)| tensor.data().len() as u64).sum();
            let told = told.into_inner();
            assert!(told.windows(2).all(|w| w[0].0 < w[1].0), "{told:?}");
            assert!(told.len() > 10 && told.iter().all(|p| p.1 == total), "{told:?}");
            assert_eq!(told.last(), Some(&(total, total)), "{variant} {layers}");
        }
    }
}
