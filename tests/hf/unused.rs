//! Tensors beside those of a model, and heads beside a tied embedding.

use crate::common::{gpu, message};
use crate::model::{config_text, file, Model, Vectors};
use crate::{assert_kind, in_pieces, TOLERANCE};
use latten::model::{Config, Decoder, LoadOptions, WeightBytes};
use latten::{DType, ErrorKind, Result};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::json;

type Tensor<'a> = (&'a str, Vec<usize>, Vec<f32>);

/// A case's file with more tensors, or others of those names.
fn with(case: &str, more: &[Tensor<'_>]) -> Vec<u8> {
    let bytes = file(&Vectors::read(case).tensors, Dtype::F32);
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let more: Vec<(&str, &[usize], Vec<u8>)> =
        more.iter().map(|(name, shape, v)| (*name, &shape[..], bytemuck(v))).collect();
    let mut all = tensors.tensors();
    all.retain(|(name, _)| more.iter().all(|(other, ..)| name != other));
    all.extend(
        more.iter().map(|(name, shape, b)| (name.to_string(), TensorView::new(Dtype::F32, shape.to_vec(), b).unwrap())),
    );
    safetensors::serialize(all, None).unwrap()
}

fn bytemuck(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// The numbers of a case's tensor.
fn values(case: &str, name: &str) -> (Vec<usize>, Vec<f32>) {
    let bytes = file(&Vectors::read(case).tensors, Dtype::F32);
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = tensors.tensor(name).unwrap();
    let values = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    (tensor.shape().to_vec(), values.collect())
}

fn load(case: &str, tied: bool, bytes: &[u8]) -> Result<Decoder> {
    let mut config: serde_json::Value = serde_json::from_str(&config_text(case)).unwrap();
    config["tie_word_embeddings"] = json!(tied);
    let config = Config::parse("c", &config.to_string()).unwrap();
    Decoder::from_bytes(gpu(), config, WeightBytes { name: "w", bytes }, DType::F32)
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// transformers ties only what is equal: a head of the file's own is used, whatever the config says.
#[test]
fn a_tied_model_with_another_head_uses_it() {
    for case in ["llama", "deepseek_v3"] {
        // The vectors are of a model with a head of its own.
        let tied = Model::of_folder(case, load(case, true, &with(case, &[])).unwrap());
        let off = tied.vectors.distance(&in_pieces(&tied, 64));
        assert!(off <= TOLERANCE, "{case}: {off:e} of the logits' rms off");
    }
    // One number is enough, the last.
    let (shape, mut numbers) = values("qwen2", EMBEDDING);
    let logits = |bytes: &[u8]| in_pieces(&Model::of_folder("qwen2", load("qwen2", true, bytes).unwrap()), 64);
    let plain = logits(&with("qwen2", &[]));
    *numbers.last_mut().unwrap() += 0.25;
    let other = logits(&with("qwen2", &[(HEAD, shape.clone(), numbers)]));
    let differs: Vec<usize> = (0..plain.len()).filter(|i| plain[*i] != other[*i]).map(|i| i % 300).collect();
    assert!(!differs.is_empty() && differs.iter().all(|token| *token == 299), "{differs:?}");
}

#[test]
fn a_tied_model_with_the_same_head_is_tied() {
    let (shape, numbers) = values("qwen2", EMBEDDING);
    let plain = load("qwen2", true, &with("qwen2", &[])).unwrap();
    let both = load("qwen2", true, &with("qwen2", &[(HEAD, shape.clone(), numbers.clone())])).unwrap();
    assert_eq!(both.fingerprint(), plain.fingerprint());
    // In another dtype, too: the embedding is of a grid that f16 has.
    let halves: Vec<u8> = numbers.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect();
    let bytes = with("qwen2", &[]);
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut all = tensors.tensors();
    all.push((HEAD.into(), TensorView::new(Dtype::F16, shape.clone(), &halves).unwrap()));
    let both = load("qwen2", true, &safetensors::serialize(all, None).unwrap()).unwrap();
    assert_eq!(both.fingerprint(), plain.fingerprint());
    // A head alone is the table as well.
    let mut all = tensors.tensors();
    all.retain(|(name, _)| name != EMBEDDING);
    let numbers = bytemuck(&numbers);
    all.push((HEAD.into(), TensorView::new(Dtype::F32, shape, &numbers).unwrap()));
    let alone = load("qwen2", true, &safetensors::serialize(all, None).unwrap()).unwrap();
    let logits = |decoder| in_pieces(&Model::of_folder("qwen2", decoder), 64);
    assert_eq!(logits(alone), logits(plain));
    // One of another shape is neither.
    let text = message(load("qwen2", true, &with("qwen2", &[(HEAD, vec![299, 64], vec![0.5; 299 * 64])])));
    assert!(text.contains("tensor lm_head.weight: has shape (299,64), wanted (300,64)"), "{text}");
}

#[test]
fn what_looks_like_a_weight_and_is_not_used_is_an_error() {
    for (case, name, what) in [
        ("llama", "model.layers.1.self_attn.q_norm.weight", "qwen3"),
        ("llama", "model.layers.0.self_attn.k_norm.weight", "qwen3"),
        ("mistral", "model.layers.1.self_attn.o_proj.bias", "a bias that config.json does not ask for"),
        ("qwen2", "model.layers.0.mlp.up_proj.bias", "a bias"),
        ("llama", "model.layers.0.pre_feedforward_layernorm.weight", "gemma2"),
        ("llama", "model.layers.0.mlp.up_proj.weight_scale", "quantiser"),
        ("llama", "model.layers.2.mlp.up_proj.weight", "of layer 2, and num_hidden_layers is 2"),
        ("deepseek_v3", "model.layers.0.mlp.experts.0.up_proj.weight", "mixture"),
        ("llama", "model.layers.0.self_attn.q_proj.lora_A.weight", "LoRA"),
        ("qwen2", "lm_head.bias", "a bias"),
        // A copy that is none.
        ("llama", "layers.0.self_attn.k_proj.weight", "a projection of layer 0"),
    ] {
        let more = with(case, &[(name, vec![16, 64], vec![0.5; 1024])]);
        let tied = case == "qwen2";
        assert_kind!(load(case, tied, &more), ErrorKind::Weights { .. });
        let text = message(load(case, tied, &more));
        assert!(text.contains(&format!("w: tensor {name}: no part of this model")) && text.contains(what), "{text}");
        // Who knows better may say so.
        let config = Config::parse("c", &config_text(case)).unwrap();
        let options = LoadOptions { dtype: DType::F32, leave_out: true, ..Default::default() };
        let left = Decoder::from_bytes_with(gpu(), config, WeightBytes { name: "w", bytes: &more }, options).unwrap();
        assert_eq!(left.fingerprint(), load(case, tied, &with(case, &[])).unwrap().fingerprint(), "{name}");
    }
    let two = ["model.layers.1.self_attn.q_norm.weight", "model.layers.0.self_attn.q_norm.weight"];
    let text = message(load("llama", false, &with("llama", &two.map(|name| (name, vec![8], vec![1.0; 8])))));
    assert!(text.contains(two[1]) && text.contains("and 1 more such tensors"), "{text}");
}

#[test]
fn what_changes_nothing_is_left_out() {
    let plain = load("llama", false, &with("llama", &[])).unwrap().fingerprint();
    let copy = values("llama", "model.layers.0.self_attn.k_proj.weight");
    for (name, shape, numbers) in [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", vec![4], vec![0.5; 4]),
        ("model.layers.0.self_attn.masked_bias", vec![1], vec![-1e9]),
        ("model.layers.1.self_attn.k_scale", vec![1], vec![0.5]),
        ("v_head.summary.weight", vec![1, 64], vec![0.5; 64]),
        ("layers.0.self_attn.k_proj.weight", copy.0, copy.1),
    ] {
        let more = with("llama", &[(name, shape, numbers)]);
        assert_eq!(load("llama", false, &more).unwrap().fingerprint(), plain, "{name}");
    }
    // A bias of zeros adds nothing.
    let plain = load("mistral", false, &with("mistral", &[])).unwrap().fingerprint();
    let zeros = with("mistral", &[("model.layers.0.self_attn.o_proj.bias", vec![64], vec![0.0; 64])]);
    assert_eq!(load("mistral", false, &zeros).unwrap().fingerprint(), plain);
    // DeepSeek-V3's further heads, as layers behind the last.
    let plain = load("deepseek_v3", false, &with("deepseek_v3", &[])).unwrap().fingerprint();
    let further = ["eh_proj", "enorm", "mlp.up_proj"].map(|part| format!("model.layers.2.{part}.weight"));
    let further = [0, 1, 2].map(|i| (&*further[i], vec![4, 4], vec![0.5; 16]));
    assert_eq!(load("deepseek_v3", false, &with("deepseek_v3", &further)).unwrap().fingerprint(), plain);
}
