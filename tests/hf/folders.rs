//! Folders of published models: files in pieces, and what is refused, by name.

use crate::common::{gpu, message};
use crate::model::{config_text, file, folder, Model, Vectors};
use crate::{assert_kind, in_pieces, TOLERANCE};
use latten::model::{AttentionConfig, Config, Decoder, WeightBytes};
use latten::{DType, ErrorKind};
use safetensors::tensor::Dtype;
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const INDEX: &str = "model.safetensors.index.json";

/// A copy of a case's folder, removed when dropped.
pub struct Copied(PathBuf);

impl Copied {
    pub fn of(case: &str, test: &str) -> Copied {
        let path = std::env::temp_dir().join(format!("latten-hf-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        for entry in std::fs::read_dir(folder(case)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), path.join(entry.file_name())).unwrap();
        }
        Copied(path)
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn load(&self) -> latten::Result<Decoder> {
        Decoder::load(gpu(), &self.0, DType::F32)
    }

    /// Loads with an index of which one entry is another.
    fn load_with(&self, tensor: &str, place: &str) -> latten::Result<Decoder> {
        let text = std::fs::read(folder("llama").join(INDEX)).unwrap();
        let mut index: Value = serde_json::from_slice(&text).unwrap();
        index["weight_map"][tensor] = json!(place);
        std::fs::write(self.at(INDEX), index.to_string()).unwrap();
        self.load()
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn shards(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let mut shards: Vec<PathBuf> = entries.filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect();
    shards.sort();
    shards
}

/// What save_pretrained wrote: bf16 in several files with an index. The same as one file, in one or the other dtype.
#[test]
fn files_with_an_index_are_one_model() {
    let sharded = Decoder::load(gpu(), folder("llama"), DType::F32).unwrap();
    assert!(shards(&folder("llama")).len() >= 3);
    let print = sharded.fingerprint();
    let model = Model::of_folder("llama", sharded);
    let off = model.vectors.distance(&in_pieces(&model, 64));
    assert!(off <= TOLERANCE, "{off:e} of the logits' rms off");

    let copy = Copied::of("llama", "single");
    shards(&copy.0).iter().for_each(|shard| std::fs::remove_file(shard).unwrap());
    for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32] {
        // Beside a whole file the index does not matter.
        std::fs::write(copy.at("model.safetensors"), file(&model.vectors.tensors, dtype)).unwrap();
        let single = copy.load().unwrap();
        assert_eq!(single.fingerprint() == print, dtype == Dtype::BF16, "{dtype:?}");
        let single = Model::of_folder("llama", single);
        let logits = in_pieces(&single, 64);
        assert_eq!(logits, in_pieces(&model, 64), "{dtype:?}");
    }
}

#[test]
fn broken_indexes_and_shards_are_typed_errors() {
    let copy = Copied::of("llama", "broken");
    let [first, second] = [0, 1].map(|i| shards(&copy.0)[i].clone());
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_string();
    assert!(copy.load().is_ok());
    let tensor = "model.embed_tokens.weight";
    for (place, why) in [
        ("../model.safetensors", "no file of the folder"),
        ("/etc/passwd", "no file of the folder"),
        ("a\\b", "no file of the folder"),
        ("..", "no file of the folder"),
        ("", "no file of the folder"),
    ] {
        let result = copy.load_with(tensor, place);
        assert_kind!(copy.load_with(tensor, place), ErrorKind::Weights { .. });
        let text = message(result);
        assert!(text.contains(tensor) && text.contains(why), "{text}");
    }
    let text = message(copy.load_with("model.norm.gain", &name(&first)));
    assert!(text.contains("tensor model.norm.gain: is not in") && text.contains(&name(&first)), "{text}");
    assert_kind!(copy.load_with(tensor, "nowhere.safetensors"), ErrorKind::Io { .. });
    let text = message(copy.load_with(tensor, "nowhere.safetensors"));
    assert!(text.ends_with("; model.safetensors.index.json names this file"), "{text}");
    for text in ["", "[]", "{\"weight_map\": 3}", "{\"weight_map\": {\"a\": 3}}"] {
        std::fs::write(copy.at(INDEX), text).unwrap();
        assert_kind!(copy.load(), ErrorKind::Weights { .. });
        assert!(message(copy.load()).contains(INDEX));
    }
    std::fs::copy(folder("llama").join(INDEX), copy.at(INDEX)).unwrap();
    let bytes = std::fs::read(&second).unwrap();
    for end in [0, 7, 8, 100, bytes.len() - 1] {
        std::fs::write(&second, &bytes[..end]).unwrap();
        assert_kind!(copy.load(), ErrorKind::Weights { .. });
        assert!(message(copy.load()).contains(&name(&second)), "{}", message(copy.load()));
    }
    std::fs::write(&second, [&bytes[..], &[0]].concat()).unwrap();
    assert_kind!(copy.load(), ErrorKind::Weights { .. });
    // The first file's tensors again.
    std::fs::copy(&first, &second).unwrap();
    assert!(message(copy.load()).contains("as well"), "{}", message(copy.load()));
    std::fs::remove_file(&second).unwrap();
    assert_kind!(copy.load(), ErrorKind::Io { .. });
    std::fs::write(&second, &bytes).unwrap();
    assert!(copy.load().is_ok());
}

/// A case's config with one key set, or with null.
fn parse(case: &str, key: &str, value: Value) -> latten::Result<Config> {
    let mut config: Value = serde_json::from_str(&config_text(case)).unwrap();
    let (parent, last) = key.rsplit_once('/').unwrap_or(("", key));
    let parent = if parent.is_empty() { &mut config } else { config.pointer_mut(&format!("/{parent}")).unwrap() };
    parent[last] = value;
    Config::parse("here/config.json", &config.to_string())
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let cases = [
        ("llama", "model_type", json!("gpt2"), "is not among"),
        ("llama", "hidden_act", json!("gelu"), "silu"),
        ("llama", "quantization_config", json!({"quant_method": "bitsandbytes"}), "bf16, f16 or f32"),
        ("llama", "num_key_value_heads", json!(3), "does not divide num_attention_heads = 8"),
        ("llama", "head_dim", json!(7), "odd"),
        ("llama", "hidden_size", json!(62), "multiple of 4"),
        ("llama_linear", "num_attention_heads", json!(6), "does not divide hidden_size = 64"),
        ("llama", "num_hidden_layers", Value::Null, "whole number"),
        ("llama", "partial_rotary_factor", json!(0.5), "1.0..=1.0"),
        ("llama", "layer_types", json!(["full_attention", "sliding_attention"]), "full_attention"),
        ("llama", "rope_parameters", json!({"full_attention": {"rope_theta": 1e4}}), "same rotation"),
        ("llama", "rope_parameters", json!(3), "not an object"),
        ("llama", "rope_parameters/rope_type", json!("proportional"), "\"llama3\""),
        ("llama_dynamic", "rope_parameters/factor", json!("x"), "is not a number in"),
        ("llama", "rope_parameters/rope_theta", json!(1.0), "is not a number in"),
        ("llama", "rope_parameters/partial_rotary_factor", json!(0.5), "1.0..=1.0"),
        ("llama_linear", "rope_scaling/factor", json!(0), "is not a number in"),
        ("llama_linear", "rope_scaling/type", json!("ntk"), "\"linear\""),
        ("llama_llama3", "rope_parameters/low_freq_factor", Value::Null, "is not a number in"),
        ("llama_llama3", "rope_parameters/high_freq_factor", json!(1.0), "is not above low_freq_factor = 1"),
        ("llama_yarn", "rope_scaling/beta_fast", json!(0.5), "is not above beta_slow = 1"),
        ("mistral_window", "sliding_window", json!(0), "whole number"),
        ("mistral_window", "layer_types", json!(["sliding_attention", "full_attention"]), "sliding_attention"),
        ("mistral", "layer_types", json!(["sliding_attention", "sliding_attention"]), "full_attention"),
        ("qwen2_window", "max_window_layers", json!("x"), "whole number"),
        ("qwen2_window", "layer_types", json!(["full_attention"]), "num_hidden_layers = 2"),
        ("qwen2_window", "layer_types", json!(["full_attention", "chunked_attention"]), "sliding_attention"),
        ("gemma2", "hidden_activation", json!("gelu"), "gelu_pytorch_tanh"),
        ("gemma2", "query_pre_attn_scalar", json!(0), "is not a number in"),
        ("gemma2", "attn_logit_softcapping", json!(0), "is not a number in"),
        ("gemma2", "use_bidirectional_attention", json!(true), "before them alone"),
        ("gemma2", "layer_types", json!(["full_attention"]), "num_hidden_layers = 3"),
        ("gemma3", "rope_parameters/sliding_attention/rope_type", json!("linear"), "\"default\""),
        ("gpt_oss", "swiglu_limit", json!(0), "is not a number in"),
        ("gpt_oss", "num_experts_per_tok", json!(7), "1..=6"),
        ("gpt_oss_mxfp4", "experts_per_token", json!(4), "num_experts_per_tok = 3"),
        ("gpt_oss_mxfp4", "quantization_config", json!({"quant_method": "gptq"}), "bf16, f16 or f32"),
        ("llama", "quantization_config", json!({"quant_method": "mxfp4"}), "bf16, f16 or f32"),
        ("qwen2_window", "use_sliding_window", json!(1), "neither true nor false"),
        ("qwen3", "layer_types", json!(["full_attention", "sliding_attention"]), "full_attention"),
        ("qwen3_moe", "decoder_sparse_step", json!(2), "only 1 is"),
        ("qwen3_moe", "mlp_only_layers", json!([0]), "only [] is"),
        ("qwen3_moe", "num_experts_per_tok", json!(13), "1..=12"),
        ("mixtral", "num_local_experts", json!(0), "whole number"),
        ("phi3", "rope_parameters/partial_rotary_factor", json!(0.2), "not an even number"),
        ("phi3", "rope_parameters/partial_rotary_factor", json!(1.5), "1.0"),
        ("phi3_longrope", "rope_parameters/rope_type", json!("linear"), "\"longrope\""),
        ("phi3_longrope", "rope_parameters/long_factor", json!([1.0, 2.0]), "other than 6 numbers"),
        ("phi3_longrope", "rope_parameters/long_factor", json!([1.0, 0.0]), "list of numbers"),
        ("granite", "residual_multiplier", json!(0), "is not a number in"),
        ("granite", "attention_multiplier", json!("x"), "is not a number in"),
        ("smollm3", "no_rope_layers", json!([1, 0]), "num_hidden_layers = 4"),
        ("smollm3", "no_rope_layers", json!([true, 0]), "list of numbers"),
        ("smollm3", "layer_types", json!(["full_attention", "sliding_attention"]), "full_attention"),
        ("olmo2", "hidden_act", json!("gelu"), "silu"),
        ("olmo2", "rope_parameters/partial_rotary_factor", json!(0.5), "1.0..=1.0"),
        ("glm4", "rope_parameters/partial_rotary_factor", json!(0.0), "is not a number in"),
        ("glm4_moe_lite", "mlp_layer_types", json!(["sparse", "dense"]), "dense layers before sparse"),
        ("glm4_moe_lite", "mlp_layer_types", json!(["dense", "full"]), "list of words"),
        ("authors_gta", "rope_dim", json!(18), "1..=16"),
        ("authors_gta", "rope_dim", json!(7), "odd"),
        ("authors_gta", "num_key_value_heads", json!(3), "does not divide num_attention_heads = 4"),
        ("authors_gta", "partial_rotary_factor", json!(1.0), "rope_dim = 8"),
        ("authors_gla", "partial_rotary_factor", json!(0.25), "qk_rope_dim = 8"),
        ("authors_gla", "rope_dim", json!(8), "qk_rope_dim"),
        ("authors_gla_biased", "num_attention_heads", json!(5), "2, the latent heads"),
        ("deepseek_v2", "q_lora_rank", json!("x"), "whole number"),
        ("deepseek_v2", "num_key_value_heads", json!(2), "is not num_attention_heads = 4"),
        ("deepseek_v2", "qk_rope_head_dim", json!(7), "odd"),
        ("deepseek_v2_greedy", "scoring_func", json!("sigmoid"), "softmax"),
        ("deepseek_v2_greedy", "norm_topk_prob", json!(true), "not supported"),
        ("deepseek_v2_greedy", "moe_layer_freq", json!(2), "only 1"),
        ("deepseek_v2_greedy", "topk_method", json!("random"), "\"group_limited_greedy\""),
        ("deepseek_v2_greedy", "num_experts_per_tok", json!(13), "1..=12"),
        ("deepseek_v2_greedy", "n_routed_experts", json!(2000), "1..=1024"),
        ("deepseek_v2_greedy", "n_shared_experts", json!(-1), "1..=1024"),
        ("deepseek_v2_groups", "n_group", json!(5), "does not divide n_routed_experts = 12"),
        ("deepseek_v2_groups", "num_experts_per_tok", json!(7), "2 of 4 groups"),
        ("deepseek_v2_groups", "topk_group", json!(5), "1..=4"),
        ("deepseek_v3_experts", "n_group", json!(12), "groups of one expert"),
        ("deepseek_v3_experts", "scoring_func", json!("softmax"), "sigmoid"),
        ("deepseek_v3_experts", "topk_method", json!("greedy"), "noaux_tc"),
        ("deepseek_v3_experts", "routed_scaling_factor", json!("x"), "number"),
        ("deepseek_v3", "v_head_dim", Value::Null, "whole number"),
        ("deepseek_v3", "rope_interleave", json!(1), "neither true nor false"),
    ];
    for (case, key, value, why) in cases {
        let result = parse(case, key, value.clone());
        assert_kind!(parse(case, key, value.clone()), ErrorKind::Config { .. });
        let text = message(result);
        let named = format!("key {} = {value}", key.rsplit('/').next().unwrap());
        assert!(text.contains(&named) && text.contains(why), "{case} {key}: {text}");
    }
    for (case, key) in [("deepseek_v3", "q_lora_rank"), ("mistral", "sliding_window"), ("llama", "vocab_size")] {
        let mut config: Value = serde_json::from_str(&config_text(case)).unwrap();
        config.as_object_mut().unwrap().remove(key).unwrap();
        let text = message(Config::parse("c", &config.to_string()));
        assert!(text.ends_with(&format!("key {key} is missing")), "{text}");
    }
}

/// Every tensor is asked for by name; what would be a bias where there can be none is refused.
#[test]
fn tensors_of_experts_are_asked_for_by_name() {
    let config = Config::parse("c", &config_text("deepseek_v3_experts")).unwrap();
    let tensors = Vectors::read("deepseek_v3_experts").tensors;
    let load = |tensors: &BTreeMap<String, Vec<usize>>| {
        Decoder::from_bytes(
            gpu(),
            config.clone(),
            WeightBytes { name: "w", bytes: &file(tensors, Dtype::F32) },
            DType::F16,
        )
    };
    assert!(load(&tensors).is_ok());
    for name in tensors.keys().filter(|name| name.starts_with("model.layers.1.mlp")) {
        let mut fewer = tensors.clone();
        fewer.remove(name);
        let text = message(load(&fewer));
        assert!(text.starts_with(&format!("model weights w: tensor {name}: missing")), "{text}");
    }
    for name in ["model.layers.1.mlp.gate.bias", "model.layers.1.mlp.experts.7.up_proj.bias"] {
        let mut more = tensors.clone();
        more.insert(name.into(), vec![12]);
        let text = message(load(&more));
        assert!(text.contains(name) && text.contains("no bias"), "{text}");
    }
}

/// Of Qwen2 the layers from `max_window_layers` on have the window, or those of a list.
#[test]
fn a_window_is_that_of_the_layers_that_have_it() {
    let mut config: Value = serde_json::from_str(&config_text("qwen2_window")).unwrap();
    for (first, layer_types, window) in
        [(0, json!(null), Some(8)), (2, json!(null), None), (28, json!(["full_attention", "full_attention"]), None)]
    {
        config["max_window_layers"] = json!(first);
        config["layer_types"] = layer_types;
        let parsed = Config::parse("c", &config.to_string()).unwrap();
        assert_eq!((parsed.window, parsed.layer_kinds.len()), (window, 0), "{config}");
    }
    config["max_window_layers"] = json!(1);
    for (layer_types, of_layers) in
        [(json!(null), [None, Some(8)]), (json!(["sliding_attention", "full_attention"]), [Some(8), None])]
    {
        config["layer_types"] = layer_types;
        let parsed = Config::parse("c", &config.to_string()).unwrap();
        let windows: Vec<_> = parsed.layer_kinds.iter().map(|kind| kind.window).collect();
        assert_eq!((parsed.window, windows), (None, of_layers.to_vec()), "{config}");
    }
    for (window, kept) in [(127, Some(127)), (128, None), (4096, None)] {
        assert_eq!(parse("mistral_window", "sliding_window", json!(window)).unwrap().window, kept);
    }
}

/// Biases are those that the config has: one that is missing is an error, and so is one beside them, which transformers
/// leaves out.
#[test]
fn biases_are_those_of_the_config() {
    let load = |case: &str, tensors: &BTreeMap<String, Vec<usize>>| {
        let config = Config::parse("c", &config_text(case)).unwrap();
        Decoder::from_bytes(gpu(), config, WeightBytes { name: "w", bytes: &file(tensors, Dtype::F32) }, DType::F32)
    };
    for (case, count) in [
        ("llama", 7),
        ("qwen2", 3),
        ("deepseek_v2", 3),
        ("authors_gta", 4),
        ("authors_gta_plain", 1),
        ("authors_gla", 5),
        ("authors_gla_biased", 9),
        ("mistral", 0),
    ] {
        let tensors = Vectors::read(case).tensors;
        let biases = tensors.keys().filter(|name| name.starts_with("model.layers.1") && name.ends_with(".bias"));
        let biases: Vec<String> = biases.cloned().collect();
        assert_eq!(biases.len(), count, "{case}");
        for bias in &biases {
            let mut fewer = tensors.clone();
            fewer.remove(bias);
            let text = message(load(case, &fewer));
            assert!(text.contains(&format!("tensor {bias}: missing")) && text.contains("config.json"), "{text}");
        }
        for name in ["self_attn.q_proj", "self_attn.o_proj", "self_attn.kv_b_proj", "mlp.down_proj"] {
            let mut more = tensors.clone();
            let rows = tensors.get(&format!("model.layers.1.{name}.weight")).map_or(64, |shape| shape[0]);
            if more.insert(format!("model.layers.1.{name}.bias"), vec![rows]).is_none() {
                let text = message(load(case, &more));
                assert!(text.contains(&format!("tensor model.layers.1.{name}.bias: no part of this model")), "{text}");
            }
        }
    }
}

/// The layers of GTA's and GLA's authors: every tensor is asked for by their name, and the numbers that their code has
/// no key for are its own.
#[test]
fn the_authors_layers_are_known_by_their_names() {
    for case in ["authors_gta", "authors_gla"] {
        let tensors = Vectors::read(case).tensors;
        let config = Config::parse("c", &config_text(case)).unwrap();
        for name in tensors.keys().filter(|name| name.contains("layers.1.self_attn") && name.ends_with(".weight")) {
            let mut fewer = tensors.clone();
            fewer.remove(name);
            let bytes = file(&fewer, Dtype::F32);
            let text = message(Decoder::from_bytes(
                gpu(),
                config.clone(),
                WeightBytes { name: "w", bytes: &bytes },
                DType::F16,
            ));
            assert!(text.starts_with(&format!("model weights w: tensor {name}: missing")), "{text}");
        }
    }
    let gla = Config::parse("c", &config_text("authors_gla")).unwrap();
    let latent = AttentionConfig::Latent { latent_heads: 2, latent_dim: 32, q_latent_dim: Some(128), rope_dim: 8 };
    assert_eq!((gla.attention, gla.latent_norm_eps), (latent, 0.03));
    let gta = Config::parse("c", &config_text("authors_gta")).unwrap();
    assert_eq!(gta.attention, AttentionConfig::Gta { kv_heads: 2, rope_dim: 8 });
}

#[test]
fn what_changes_nothing_is_accepted() {
    for (case, key, value) in [
        ("mistral", "sliding_window", json!(128)),
        ("authors_gla", "num_key_value_heads", json!(3)),
        ("authors_gta", "partial_rotary_factor", Value::Null),
        ("qwen2", "sliding_window", json!(8)),
        ("qwen2", "use_sliding_window", json!(true)),
        ("llama", "partial_rotary_factor", json!(1)),
        ("llama", "layer_types", json!(["full_attention", "full_attention"])),
        ("llama", "tie_word_embeddings", Value::Null),
        ("llama", "quantization_config", Value::Null),
        ("deepseek_v2", "n_routed_experts", Value::Null),
        ("deepseek_v3_experts", "num_nextn_predict_layers", json!(1)),
    ] {
        let plain = Config::parse("c", &config_text(case)).unwrap();
        assert_eq!(parse(case, key, value.clone()).unwrap(), plain, "{case} {key} = {value}");
    }
}

/// Experts that lie in one tensor are refused by that tensor's name.
#[test]
fn tensors_of_all_experts_must_be_those_of_the_config() {
    let config = Config::parse("c", &config_text("gpt_oss_mxfp4")).unwrap();
    let tensors = Vectors::read("gpt_oss_mxfp4").tensors;
    type Shapes = BTreeMap<String, Vec<usize>>;
    let refused = |change: &dyn Fn(&mut Shapes), words: &[&str]| {
        let mut tensors = tensors.clone();
        change(&mut tensors);
        let weights = WeightBytes { name: "w", bytes: &file(&tensors, Dtype::F32) };
        let text = message(Decoder::from_bytes(gpu(), config.clone(), weights, DType::F16));
        assert!(words.iter().all(|word| text.contains(word)), "{text}, not {words:?}");
    };
    let name = |part: &str| format!("model.layers.1.mlp.experts.{part}");
    let scales = name("gate_up_proj_scales");
    refused(&|tensors| drop(tensors.remove(&scales)), &[&scales, "missing, wanted (4,128,2)"]);
    refused(&|tensors| drop(tensors.insert(scales.clone(), vec![4, 64, 2])), &["(4,64,2) in U8, wanted (4,128,2)"]);
    let blocks = name("down_proj_blocks");
    refused(
        &|tensors| drop(tensors.insert(blocks.clone(), vec![4, 64, 1, 16])),
        &[&blocks, "wanted (4,64,2,16) in U8"],
    );
    for part in ["gate_up_proj_bias", "down_proj_bias"] {
        refused(&|tensors| drop(tensors.remove(&name(part))), &[part.split("_bias").next().unwrap(), "missing"]);
    }
    refused(
        &|tensors| drop(tensors.remove("model.layers.0.self_attn.sinks")),
        &["self_attn.sinks", "missing, wanted (4)"],
    );
    refused(&|tensors| drop(tensors.remove("model.layers.0.mlp.router.bias")), &["router.bias", "missing"]);
}

/// Kimi-K2 is a DeepSeek-V3 by another name.
#[test]
fn kimi_k2_is_read_as_deepseek_v3() {
    let mut config: Value = serde_json::from_str(&config_text("deepseek_v3_experts")).unwrap();
    let of = |config: &Value| Config::parse("c", &config.to_string()).unwrap();
    let want = of(&config);
    config["model_type"] = json!("kimi_k2");
    assert_eq!(of(&config), want);
}
