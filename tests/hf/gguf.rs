//! The models of `tests/vectors/hf` as GGUF files: their logits are, to the bit, those of the safetensors form of the same numbers,
//! which the transformers library's are compared with. The files are made here, by the rules of llama.cpp's writer.

use crate::common::{gpu, message};
use crate::model::{config_text, named_values, packed_values, Model, Vectors};
use crate::{assert_kind, in_pieces, TOLERANCE};
use latten::model::{Decoder, GgufMetadata, LoadOptions, WeightBytes};
use latten::{DType, ErrorKind, Result};
use serde_json::{json, Value};
use std::collections::BTreeMap;
use written::{GgufTensor, GgufWriter};

#[path = "../common/gguf.rs"]
mod written;

/// Metadata, by the config's keys.
fn metadata(config: &Value) -> GgufWriter {
    let family = config["model_type"].as_str().unwrap();
    let (deepseek, arch) = match family {
        "deepseek_v2" | "deepseek_v3" | "glm4_moe_lite" => (true, "deepseek2"),
        "granite" => (false, "granite"),
        "smollm3" => (false, "smollm3"),
        "olmo2" => (false, "olmo2"),
        "glm4" => (false, "glm4"),
        "gemma2" => (false, "gemma2"),
        "gemma3_text" => (false, "gemma3"),
        "gpt_oss" => (false, "gpt-oss"),
        "qwen2" => (false, "qwen2"),
        "qwen3" => (false, "qwen3"),
        "qwen3_moe" => (false, "qwen3moe"),
        "phi3" => (false, "phi3"),
        _ => (false, "llama"),
    };
    let mut file = GgufWriter::default();
    file.text("general.architecture", arch).text("general.type", "model");
    let count = |key: &str| config[key].as_u64().map(|n| n as u32);
    let mut put = |name: &str, value: Option<u32>| {
        value.iter().for_each(|n| file.count(&format!("{arch}.{name}"), *n).end());
    };
    put("block_count", count("num_hidden_layers"));
    put("context_length", count("max_position_embeddings"));
    put("embedding_length", count("hidden_size"));
    put("feed_forward_length", count("intermediate_size"));
    put("attention.head_count", count("num_attention_heads"));
    put("expert_count", count("num_experts").or(count("num_local_experts")));
    put("expert_used_count", count("num_experts_per_tok").filter(|_| !deepseek));
    let of_experts = if family == "gpt_oss" { "intermediate_size" } else { "moe_intermediate_size" };
    put("expert_feed_forward_length", count(of_experts).filter(|_| !deepseek));
    put(
        "attention.sliding_window",
        count("sliding_window").filter(|_| ["mistral", "gemma2", "gemma3_text", "gpt_oss"].contains(&family)),
    );
    if deepseek {
        let [nope, rope] = ["qk_nope_head_dim", "qk_rope_head_dim"].map(|key| count(key).unwrap());
        put("attention.head_count_kv", count("num_attention_heads"));
        put("attention.key_length", Some(nope + rope));
        put("attention.value_length", count("v_head_dim"));
        put("attention.q_lora_rank", count("q_lora_rank"));
        put("attention.kv_lora_rank", count("kv_lora_rank"));
        put("rope.dimension_count", Some(rope));
        put("leading_dense_block_count", count("first_k_dense_replace"));
        put("expert_count", count("n_routed_experts"));
        put("expert_used_count", count("num_experts_per_tok"));
        put("expert_shared_count", count("n_shared_experts"));
        put("expert_feed_forward_length", count("moe_intermediate_size"));
        let third = family != "deepseek_v2";
        put("expert_gating_func", Some(if third { 2 } else { 1 }));
        let grouped = third || config["topk_method"] == "group_limited_greedy";
        put("expert_group_count", count("n_group").filter(|_| grouped));
        put("expert_group_used_count", count("topk_group").filter(|_| grouped));
        file.flag("deepseek2.expert_weights_norm", config["norm_topk_prob"] == true && third);
        file.number("deepseek2.expert_weights_scale", config["routed_scaling_factor"].as_f64().unwrap() as f32);
    } else {
        put("attention.head_count_kv", count("num_key_value_heads"));
        let head_dim =
            count("head_dim").unwrap_or(count("hidden_size").unwrap() / count("num_attention_heads").unwrap());
        put("attention.key_length", Some(head_dim));
        put("attention.value_length", Some(head_dim));
        let part = config["rope_parameters"]["partial_rotary_factor"].as_f64().unwrap_or(1.0);
        put("rope.dimension_count", Some((f64::from(head_dim) * part) as u32).filter(|_| family != "gpt_oss"));
    }
    for (key, name) in [
        ("embedding_multiplier", "embedding_scale"),
        ("residual_multiplier", "residual_scale"),
        ("attention_multiplier", "attention.scale"),
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
        ("logits_scaling", "logit_scale"),
    ] {
        config[key].as_f64().iter().for_each(|scale| file.number(&format!("{arch}.{name}"), *scale as f32).end());
    }
    let eps = config["rms_norm_eps"].as_f64().unwrap() as f32;
    file.number(&format!("{arch}.attention.layer_norm_rms_epsilon"), eps);
    rotation(config, arch, &mut file);
    file
}

fn rotation(config: &Value, arch: &str, file: &mut GgufWriter) {
    let inner = [&config["rope_scaling"], &config["rope_parameters"]].into_iter().find(|v| v.is_object());
    let inner = inner.cloned().unwrap_or(json!({}));
    let inner = inner.get("full_attention").cloned().unwrap_or(inner);
    let number = |key: &str| inner[key].as_f64().or(config[key].as_f64()).map(|n| n as f32);
    file.number(&format!("{arch}.rope.freq_base"), number("rope_theta").unwrap_or(1e4));
    let kind = inner["rope_type"].as_str().or(inner["type"].as_str()).unwrap_or("default").to_string();
    if kind == "linear" || kind == "yarn" {
        file.text(&format!("{arch}.rope.scaling.type"), &kind);
        file.number(&format!("{arch}.rope.scaling.factor"), number("factor").unwrap());
    }
    if let Some(positions) = number("original_max_position_embeddings").filter(|_| kind == "yarn") {
        file.count(&format!("{arch}.rope.scaling.original_context_length"), positions as u32);
    }
    for beta in ["beta_fast", "beta_slow"].into_iter().filter(|_| arch == "gpt-oss") {
        file.number(&format!("{arch}.rope.scaling.yarn_{beta}"), number(beta).unwrap());
    }
    if let Some(all_dim) = number("mscale_all_dim").filter(|_| kind == "yarn") {
        file.number(&format!("{arch}.rope.scaling.yarn_log_multiplier"), 0.1 * all_dim);
    }
    if kind == "longrope" {
        let original = number("original_max_position_embeddings").unwrap();
        let times = config["max_position_embeddings"].as_f64().unwrap() as f32 / original;
        file.number(&format!("{arch}.rope.scaling.attn_factor"), (1.0 + times.ln() / original.ln()).sqrt());
        file.count(&format!("{arch}.rope.scaling.original_context_length"), original as u32);
        for (key, name) in [("short_factor", "rope_factors_short"), ("long_factor", "rope_factors_long")] {
            let factors = inner[key].as_array().unwrap().iter().map(|factor| factor.as_f64().unwrap() as f32);
            let factors: Vec<f32> = factors.collect();
            file.floats(&format!("{name}.weight"), &[factors.len()], &factors);
        }
    }
    if kind == "llama3" {
        let [factor, low, high, old] =
            ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
                .map(|key| number(key).unwrap());
        let (theta, dim) = (number("rope_theta").unwrap(), config["head_dim"].as_u64().unwrap() as usize);
        let factors: Vec<f32> = (0..dim / 2)
            .map(|pair| {
                let turns = old / (std::f32::consts::TAU * theta.powf(2.0 * pair as f32 / dim as f32));
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                1.0 / ((1.0 - kept) / factor + kept)
            })
            .collect();
        file.floats("rope_freqs.weight", &[dim / 2], &factors);
    }
}

/// ggml's name of one of this family's.
fn name(family: &str, published: &str) -> String {
    // Here the norm behind the attention has the name that others give to that before the feed-forward part.
    let behind = [("post_attention_layernorm", "post_attention_norm"), ("post_feedforward_layernorm", "post_ffw_norm")];
    let around = [behind[0], ("pre_feedforward_layernorm", "ffn_norm"), behind[1]];
    let behind = match family {
        "olmo2" => &behind[..],
        "gemma2" | "gemma3_text" => &around,
        "gpt_oss" => &behind[..1],
        _ => &[],
    };
    let parts = [
        ("post_self_attn_layernorm", "post_attention_norm"),
        ("post_mlp_layernorm", "post_ffw_norm"),
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.qkv_proj", "attn_qkv"),
        ("mlp.gate_up_proj", "ffn_up"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.sinks", "attn_sinks.weight"),
        ("self_attn.q_a_proj", "attn_q_a"),
        ("self_attn.q_a_layernorm", "attn_q_a_norm"),
        ("self_attn.q_b_proj", "attn_q_b"),
        ("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa"),
        ("self_attn.kv_a_layernorm", "attn_kv_a_norm"),
        ("self_attn.kv_b_proj", "attn_kv_b"),
        ("mlp.gate.e_score_correction_bias", "exp_probs_b.bias"),
        ("mlp.gate.", "ffn_gate_inp."),
        ("block_sparse_moe.gate.", "ffn_gate_inp."),
        ("mlp.router.", "ffn_gate_inp."),
        ("mlp.shared_experts.gate_proj", "ffn_gate_shexp"),
        ("mlp.shared_experts.up_proj", "ffn_up_shexp"),
        ("mlp.shared_experts.down_proj", "ffn_down_shexp"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    behind.iter().chain(&parts).fold(published.to_string(), |name, (from, to)| name.replace(from, to))
}

/// The rows of each head `(2, dim / 2)` as `(dim / 2, 2)`.
fn neighbours(values: &[f32], head_dim: usize, row: usize) -> Vec<f32> {
    let heads = values.chunks_exact(head_dim * row);
    heads
        .flat_map(|head| (0..head_dim).flat_map(|r| &head[(r % 2 * head_dim / 2 + r / 2) * row..][..row]))
        .copied()
        .collect()
}

/// An expert's number, its matrix's shape and values.
type Expert = (usize, Vec<usize>, Vec<f32>);

/// The model of a config, and of the values that a case's tensors have.
fn file(config: &Value, tensors: &BTreeMap<String, Vec<usize>>) -> GgufWriter {
    let mut file = metadata(config);
    let family = config["model_type"].as_str().unwrap();
    let llama = ["llama", "mistral", "mixtral", "granite", "smollm3"].contains(&family);
    let mut experts: BTreeMap<String, Vec<Expert>> = BTreeMap::new();
    for (published, shape) in tensors {
        if let Some((layer, part)) = published.split_once(".mlp.experts.").filter(|_| family == "gpt_oss") {
            stacked(&mut file, (&layer.replace("model.layers", "blk"), part), (published, shape));
            continue;
        }
        let values = named_values(published, shape.iter().product());
        let experts_of = |name: &'static str| published.split_once(name);
        if let Some((layer, rest)) = experts_of(".mlp.experts.").or(experts_of(".block_sparse_moe.experts.")) {
            let (expert, part) = rest.split_once('.').unwrap();
            let part = match part.split(['_', '.']).next().unwrap() {
                "w1" => "gate",
                "w3" => "up",
                "w2" => "down",
                part => part,
            };
            let own = format!("{layer}.ffn_{part}_exps.weight").replace("model.layers", "blk");
            experts.entry(own).or_default().push((expert.parse().unwrap(), shape.clone(), values));
            continue;
        }
        let turned = llama && ["q_proj", "k_proj"].iter().any(|part| published.contains(part));
        let dim = config["head_dim"].as_u64().unwrap_or(8) as usize;
        let row = if shape.len() == 2 { shape[1] } else { 1 };
        let mut values = if turned { neighbours(&values, dim, row) } else { values };
        if family.starts_with("gemma") && published.ends_with("norm.weight") {
            values.iter_mut().for_each(|gain| *gain += 1.0);
        }
        file.floats(&name(family, published), shape, &values);
    }
    for (own, mut all) in experts {
        all.sort_by_key(|(expert, ..)| *expert);
        let shape = [&[all.len()], &all[0].1[..]].concat();
        let values: Vec<f32> = all.into_iter().flat_map(|(.., values)| values).collect();
        file.floats(&own, &shape, &values);
    }
    file
}

/// A tensor of all of gpt-oss's experts, as its `part` is called: gate and up by themselves, rows in the place of columns.
fn stacked(file: &mut GgufWriter, (layer, part): (&str, &str), (published, shape): (&str, &[usize])) {
    let halves: &[(&str, usize, usize)] =
        if part.starts_with("gate_up") { &[("gate", 0, 2), ("up", 1, 2)] } else { &[("down", 0, 1)] };
    for &(own, first, step) in halves {
        let name = format!("{layer}.ffn_{own}_exps");
        if part.ends_with("_bias") {
            let values = named_values(published, shape.iter().product());
            let values: Vec<f32> = values.into_iter().skip(first).step_by(step).collect();
            file.floats(&format!("{name}.bias"), &[shape[0], shape[1] / step], &values);
        } else if part.ends_with("_blocks") {
            let (experts, rows, runs) = (shape[0], shape[1], shape[2]);
            let codes = packed_values(published, shape.iter().product());
            let scales = packed_values(&published.replace("_blocks", "_scales"), experts * rows * runs);
            let blocks = codes.chunks_exact(16).zip(scales).enumerate();
            let blocks = blocks.filter(|(block, _)| block / runs % step == first);
            let bytes = blocks.flat_map(|(_, (codes, scale))| {
                let code = |i: usize| (codes[i / 2] >> (4 * (i % 2))) % 16;
                std::iter::once(scale).chain((0..16).map(move |i| code(i) + 16 * code(i + 16))).collect::<Vec<u8>>()
            });
            let shape = [experts, rows / step, 32 * runs].map(|size| size as u64).to_vec();
            let name = format!("{name}.weight");
            file.tensors.push(GgufTensor { name, shape, number: 39, bytes: bytes.collect() });
        } else if !part.ends_with("_scales") {
            let [experts, inputs, outputs] = shape else { panic!("{published}") };
            let values = named_values(published, experts * inputs * outputs);
            let at = |e: usize, o: usize, i: usize| values[(e * inputs + i) * outputs + o];
            let rows = (0..*experts).flat_map(|e| (first..*outputs).step_by(step).map(move |o| (e, o)));
            let rows: Vec<f32> = rows.flat_map(|(e, o)| (0..*inputs).map(move |i| at(e, o, i))).collect();
            file.floats(&format!("{name}.weight"), &[*experts, outputs / step, *inputs], &rows);
        }
    }
}

fn load(bytes: &[u8]) -> Result<Decoder> {
    let options = LoadOptions { dtype: DType::F32, ..Default::default() };
    Decoder::from_gguf_bytes(gpu(), WeightBytes { name: "m.gguf", bytes }, options)
}

type Change = fn(&mut Value);

/// A case in both forms, its config changed.
fn forms(case: &str, change: Change) -> [Model; 2] {
    let mut config: Value = serde_json::from_str(&config_text(case)).unwrap();
    change(&mut config);
    let bytes = file(&config, &Vectors::read(case).tensors).bytes();
    [Model::of(case, change, DType::F32).unwrap(), Model::of_folder(case, load(&bytes).unwrap())]
}

#[test]
fn both_forms_give_the_same_logits_to_the_bit() {
    let plain = |config: &mut Value| config["rope_parameters"] = json!({ "rope_type": "default", "rope_theta": 100.0 });
    // No key says Gemma's scale of queries, which is the width of a head.
    let usual = |config: &mut Value| config["query_pre_attn_scalar"] = config["head_dim"].clone();
    // llama.cpp has the numbers of the published models.
    let published = |config: &mut Value| config["swiglu_limit"] = json!(7.0);
    let cases: [(&str, Change); 23] = [
        ("llama", |_| {}),
        ("llama_linear", |_| {}),
        ("llama_yarn", |_| {}),
        ("mistral_window", |_| {}),
        ("qwen2", plain),
        ("qwen3", |_| {}),
        ("phi3", |_| {}),
        ("qwen3_moe", |_| {}),
        ("mixtral", |_| {}),
        ("phi3_longrope", |_| {}),
        ("granite", |_| {}),
        ("smollm3", |_| {}),
        ("olmo2", |_| {}),
        ("glm4", |_| {}),
        ("glm4_moe_lite", |_| {}),
        ("gemma2", usual),
        ("gemma3", usual),
        ("gpt_oss", published),
        ("gpt_oss_mxfp4", published),
        ("deepseek_v2_lite", |_| {}),
        ("deepseek_v2_groups", |_| {}),
        ("deepseek_v3", |_| {}),
        ("deepseek_v3_experts", |_| {}),
    ];
    for (case, change) in cases {
        let [safetensors, gguf] = forms(case, change);
        assert_eq!(gguf.config.layout().unwrap(), safetensors.config.layout().unwrap(), "{case}");
        let [want, got] = [&safetensors, &gguf].map(|model| in_pieces(model, 64));
        let bits = |logits: &[f32]| logits.iter().map(|l| l.to_bits()).collect::<Vec<_>>();
        assert!(bits(&want) == bits(&got), "{case}: {} and {}", want[0], got[0]);
    }
}

/// The file as converters write it since April 2025: `attn_kv_b` of each head in two parts, the key's transposed, and the widths
/// of what is cached in the place of those of heads.
fn in_parts(config: &Value, file: &mut GgufWriter) {
    let count = |key: &str| config[key].as_u64().unwrap() as usize;
    let [heads, nope, rope] = ["num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim"].map(count);
    let [latent, value] = ["kv_lora_rank", "v_head_dim"].map(count);
    for (key, number) in [
        ("attention.head_count_kv", 1),
        ("attention.key_length", latent + rope),
        ("attention.value_length", latent),
        ("attention.key_length_mla", nope + rope),
        ("attention.value_length_mla", value),
    ] {
        let key = format!("deepseek2.{key}");
        file.without(&key).count(&key, number as u32);
    }
    for tensor in std::mem::take(&mut file.tensors) {
        let Some(layer) = tensor.name.strip_suffix("attn_kv_b.weight") else {
            file.tensors.push(tensor);
            continue;
        };
        let all: Vec<f32> = tensor.bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let of_heads = || all.chunks_exact((nope + value) * latent);
        let keys =
            of_heads().flat_map(|head| (0..latent).flat_map(move |l| (0..nope).map(move |n| head[n * latent + l])));
        let values = of_heads().flat_map(|head| &head[nope * latent..]).copied();
        file.floats(&format!("{layer}attn_k_b.weight"), &[heads, latent, nope], &keys.collect::<Vec<_>>());
        file.floats(&format!("{layer}attn_v_b.weight"), &[heads, value, latent], &values.collect::<Vec<_>>());
    }
}

#[test]
fn latents_keys_and_values_may_be_tensors_of_their_own() {
    for case in ["deepseek_v2", "deepseek_v2_lite", "deepseek_v3"] {
        let config: Value = serde_json::from_str(&config_text(case)).unwrap();
        let whole = file(&config, &Vectors::read(case).tensors);
        let mut parted = whole.clone();
        in_parts(&config, &mut parted);
        assert!(
            parted.tensors.iter().all(|tensor| !tensor.name.contains("kv_b."))
                && parted.tensors.len() > whole.tensors.len()
        );
        let [whole, own] = [&whole, &parted].map(|file| Model::of_folder(case, load(&file.bytes()).unwrap()));
        assert_eq!(own.config.layout().unwrap(), whole.config.layout().unwrap(), "{case}");
        assert_eq!((own.config.head_dim, own.config.v_head_dim), (whole.config.head_dim, whole.config.v_head_dim));
        // The absorbed form, and the explicit one.
        for logits in [|model: &Model| in_pieces(model, 64), crate::batched] {
            let [want, got] = [&whole, &own].map(logits);
            assert!(want.iter().zip(&got).all(|(w, g)| w.to_bits() == g.to_bits()), "{case}: {} {}", want[0], got[0]);
        }
    }
    let refused = |change: &dyn Fn(&mut GgufWriter), words: &[&str]| {
        let config: Value = serde_json::from_str(&config_text("deepseek_v2")).unwrap();
        let mut parted = file(&config, &Vectors::read("deepseek_v2").tensors);
        in_parts(&config, &mut parted);
        change(&mut parted);
        let text = message(load(&parted.bytes()));
        assert!(text.contains("m.gguf") && words.iter().all(|word| text.contains(word)), "{text}, not {words:?}");
    };
    let with =
        |name: &'static str, value: u32| move |file: &mut GgufWriter| file.without(name).count(name, value).end();
    refused(&with("deepseek2.attention.key_length", 4), &["attention.key_length = 4", "is not supported, only"]);
    refused(&with("deepseek2.attention.head_count_kv", 4), &["head_count_kv = 4", "only 1 is"]);
    refused(&|file| file.without("deepseek2.attention.value_length_mla").end(), &["value_length_mla is missing"]);
    refused(
        &|file| file.tensors.retain(|tensor| tensor.name != "blk.0.attn_v_b.weight"),
        &["tensor blk.0.attn_v_b.weight", "missing"],
    );
    refused(
        &|file| file.tensors.retain(|tensor| tensor.name != "blk.0.attn_k_b.weight"),
        &["tensor blk.0.attn_kv_b.weight", "missing"],
    );
}

/// Llama 3's frequencies are divided by numbers of the file, where a config has their rule.
#[test]
fn frequency_factors_are_llama_3s() {
    let [_, gguf] = forms("llama_llama3", |_| {});
    assert_eq!(gguf.config.rope_factors.len(), gguf.config.head_dim / 2);
    let off = gguf.vectors.distance(&in_pieces(&gguf, 64));
    assert!(off <= TOLERANCE, "{off:e} of the logits' rms off");
    let mut other = gguf.config.clone();
    other.rope_factors.clear();
    assert_ne!(other.rope().unwrap(), gguf.config.rope().unwrap());
    other.rope_factors = vec![1.0, f32::NAN];
    assert_kind!(other.rope(), ErrorKind::Argument { name: "rope_factors", .. });
}

/// Factors of longer sequences come in pairs, and further heads are no layers of the model.
#[test]
fn long_factors_and_further_heads() {
    let of = |case: &str, change: &dyn Fn(&mut GgufWriter)| {
        let config: Value = serde_json::from_str(&config_text(case)).unwrap();
        let mut file = file(&config, &Vectors::read(case).tensors);
        change(&mut file);
        load(&file.bytes())
    };
    let without =
        |name: &'static str| message(of("phi3_longrope", &|file| file.tensors.retain(|tensor| tensor.name != name)));
    for name in ["rope_factors_short.weight", "rope_factors_long.weight"] {
        assert!(without(name).contains(&format!("tensor {name}: missing")), "{}", without(name));
    }
    let typed = |file: &mut GgufWriter| file.text("phi3.rope.scaling.type", "longrope").end();
    assert!(of("phi3_longrope", &typed).is_ok());
    let odd =
        |file: &mut GgufWriter| file.without("phi3.rope.dimension_count").count("phi3.rope.dimension_count", 7).end();
    assert!(message(of("phi3_longrope", &odd)).contains("rope.dimension_count = 7 is odd"));
    let more = |file: &mut GgufWriter| {
        file.without("deepseek2.block_count").count("deepseek2.block_count", 3);
        file.count("deepseek2.nextn_predict_layers", 1);
        file.floats("blk.2.nextn.eh_proj.weight", &[64, 128], &[0.5; 64 * 128]);
        file.floats("blk.2.attn_norm.weight", &[64], &[0.5; 64]);
    };
    let [with, plain] = [of("glm4_moe_lite", &more).unwrap(), of("glm4_moe_lite", &|_| {}).unwrap()];
    assert_eq!((with.config(), with.config().layers), (plain.config(), 2));
}

/// A Llama, its file changed.
fn changed(change: impl Fn(&mut GgufWriter)) -> Result<Decoder> {
    let config: Value = serde_json::from_str(&config_text("llama_linear")).unwrap();
    let mut file = file(&config, &Vectors::read("llama_linear").tensors);
    change(&mut file);
    load(&file.bytes())
}

#[test]
fn what_a_file_says_that_is_not_read_is_refused_by_name() {
    changed(|_| {}).unwrap();
    let refused = |change: &dyn Fn(&mut GgufWriter), words: &[&str]| {
        let text = message(changed(change));
        assert!(text.contains("m.gguf") && words.iter().all(|word| text.contains(word)), "{text}, not {words:?}");
    };
    let key = |name: &'static str| move |file: &mut GgufWriter| file.without(name).end();
    refused(&key("general.architecture"), &["key general.architecture is missing"]);
    refused(&key("llama.context_length"), &["key llama.context_length is missing"]);
    refused(&key("llama.attention.layer_norm_rms_epsilon"), &["rms_epsilon is missing"]);
    let with =
        |name: &'static str, value: u32| move |file: &mut GgufWriter| file.without(name).count(name, value).end();
    refused(&with("llama.embedding_length", 62), &["llama.embedding_length = 62", "multiple of 4"]);
    refused(&with("llama.embedding_length", 0), &["llama.embedding_length = 0", "whole number"]);
    refused(&with("llama.attention.head_count", 7), &["head_count_kv", "does not divide"]);
    refused(&with("llama.attention.value_length", 4), &["value_length = 4", "only 8 is"]);
    refused(&with("llama.rope.dimension_count", 4), &["rope.dimension_count = 4", "only 8 is"]);
    refused(&with("llama.expert_count", 8), &["llama.expert_used_count is missing"]);
    refused(&with("llama.logit_scale", 3), &["llama.logit_scale = 3", "not known"]);
    refused(&with("split.count", 3), &["split.count = 3", "1 files"]);
    for arch in ["gemma3n", "phi2", "mamba"] {
        let change =
            |file: &mut GgufWriter| file.without("general.architecture").text("general.architecture", arch).end();
        refused(&change, &[arch, "\"qwen2\"", "latten reads"]);
    }
    let text =
        |key: &'static str, value: &'static str| move |file: &mut GgufWriter| file.without(key).text(key, value).end();
    refused(&text("general.type", "adapter"), &["general.type = \"adapter\""]);
    refused(&text("llama.rope.scaling.type", "longrope"), &["rope.scaling.type = \"longrope\""]);
    refused(&|file| file.counts("llama.attention.head_count_kv", &[2, 1]).end(), &["head_count_kv", "twice"]);
    refused(
        &|file| file.without("llama.attention.head_count_kv").counts("llama.attention.head_count_kv", &[2, 1]).end(),
        &["head_count_kv", "differ"],
    );
    refused(&|file| file.texts("tokenizer.ggml.tokens", &["a", "b"]).end(), &["2 values", "300 rows"]);
}

#[test]
fn tensors_that_are_not_the_models_are_refused_by_the_files_names() {
    let refused = |change: &dyn Fn(&mut GgufWriter), words: &[&str]| {
        let text = message(changed(change));
        assert!(text.contains("m.gguf") && words.iter().all(|word| text.contains(word)), "{text}, not {words:?}");
    };
    let at = |file: &GgufWriter, name: &str| file.tensors.iter().position(|t| t.name == name).unwrap();
    refused(
        &|file| drop(file.tensors.remove(at(file, "blk.1.ffn_up.weight"))),
        &["tensor blk.1.ffn_up.weight", "missing, wanted (64,64)"],
    );
    refused(&|file| drop(file.tensors.remove(at(file, "token_embd.weight"))), &["tensor token_embd.weight", "missing"]);
    refused(
        &|file| {
            let at = at(file, "blk.0.attn_k.weight");
            file.tensors[at].shape = vec![8, 64];
            file.tensors[at].bytes.truncate(8 * 64 * 4);
        },
        &["tensor blk.0.attn_k.weight", "has shape (8,64), wanted (16,64)"],
    );
    refused(
        &|file| {
            let at = at(file, "blk.0.ffn_down.weight");
            (file.tensors[at].number, file.tensors[at].bytes) = (27, vec![0; 64 * 64 * 8]);
        },
        &["tensor blk.0.ffn_down.weight", "has dtype I64, wanted F32, F16, BF16, Q4_0"],
    );
    refused(
        &|file| {
            let at = at(file, "blk.0.ffn_down.weight");
            file.tensors[at].bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        },
        &["tensor blk.0.ffn_down.weight", "NaN"],
    );
    refused(
        &|file| file.floats("blk.0.attn_q_norm.weight", &[8], &[1.0; 8]).end(),
        &["tensor blk.0.attn_q_norm.weight", "norm of queries or keys"],
    );
    refused(&|file| file.floats("blk.0.attn_sinks.weight", &[8], &[1.0; 8]).end(), &["attn_sinks", "sinks"]);
    refused(&|file| file.floats("blk.9.ffn_up.weight", &[8], &[1.0; 8]).end(), &["tensor blk.9.ffn_up.weight"]);
    for factors in [vec![1.0; 3], vec![1.0, 2.0, 0.0, 1.0], vec![f32::NAN; 4]] {
        let change = |file: &mut GgufWriter| file.floats("rope_freqs.weight", &[factors.len()], &factors).end();
        refused(&change, &["tensor rope_freqs.weight"]);
    }
}

/// A model in blocks is the model of the numbers that they stand for.
#[test]
fn blocks_are_the_numbers_that_they_stand_for() {
    let config: Value = serde_json::from_str(&config_text("llama_linear")).unwrap();
    let mut blocks = file(&config, &Vectors::read("llama_linear").tensors);
    let mut plain = blocks.clone();
    let types = ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "mxfp4"];
    let types = types.map(|name| name.parse::<latten::nn::BlockType>().unwrap());
    let mut random = latten::model::SplitMix64::new(7);
    let matrices = blocks.tensors.iter_mut().zip(&mut plain.tensors).filter(|(t, _)| t.shape.len() == 2);
    for (i, (tensor, plain)) in matrices.enumerate() {
        let (block, count) = (types[i % types.len()], tensor.shape.iter().product::<u64>() as usize / 32);
        let one = |random: &mut latten::model::SplitMix64| {
            let mut bytes: Vec<u8> = (0..block.bytes()).map(|_| (random.next_u64() >> 56) as u8).collect();
            // A small scale: f16 2^-7, or 2^-7 as an exponent.
            match block {
                latten::nn::BlockType::MXFP4 => bytes[0] = 120,
                _ => bytes[..2].copy_from_slice(&[0, 0x20]),
            }
            if [latten::nn::BlockType::Q4_1, latten::nn::BlockType::Q5_1].contains(&block) {
                bytes[2..4].copy_from_slice(&[0, 0xa8]);
            }
            bytes
        };
        let bytes: Vec<u8> = (0..count).flat_map(|_| one(&mut random)).collect();
        let mut values = vec![0.0; count * 32];
        block.dequantise(&bytes, &mut values).unwrap();
        // As they lie in the file: rows of queries and keys are in the file's order in both.
        plain.bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        (tensor.number, tensor.bytes) = (block.gguf_id().unwrap(), bytes);
    }
    let [a, b] = [blocks, plain].map(|file| Model::of_folder("llama_linear", load(&file.bytes()).unwrap()));
    let [a, b] = [a, b].map(|model| in_pieces(&model, 64));
    assert!(a.iter().all(|l| l.is_finite()) && a.iter().any(|l| *l != 0.0));
    assert!(a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits()));
}

#[test]
fn a_model_in_several_files_is_opened_by_any_of_them() {
    let config: Value = serde_json::from_str(&config_text("llama_linear")).unwrap();
    let whole = file(&config, &Vectors::read("llama_linear").tensors);
    let folder = std::env::temp_dir().join(format!("latten-gguf-split-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = |n: usize| folder.join(format!("m-{n:05}-of-00003.gguf"));
    let write = |n: usize, change: &dyn Fn(&mut GgufWriter)| {
        let mut part = GgufWriter { tensors: Vec::new(), ..whole.clone() };
        if n > 1 {
            part.values.clear();
        }
        part.value("split.no", 2, (n as u16 - 1).to_le_bytes()).value("split.count", 2, 3u16.to_le_bytes());
        part.value("split.tensors.count", 5, (whole.tensors.len() as i32).to_le_bytes());
        let tensors = whole.tensors.iter().enumerate().filter(|(i, _)| i % 3 == n - 1);
        part.tensors = tensors.map(|(_, tensor)| tensor.clone()).collect();
        change(&mut part);
        std::fs::write(path(n), part.bytes()).unwrap();
    };
    (1..=3).for_each(|n| write(n, &|_| {}));
    let want = load(&whole.bytes()).unwrap();
    for from in [path(1), path(2), path(3), folder.clone()] {
        let got = Decoder::load(gpu(), &from, DType::F32).unwrap();
        assert_eq!(got.fingerprint(), want.fingerprint(), "{}", from.display());
    }
    assert_eq!(GgufMetadata::open(path(2)).unwrap().text("general.architecture"), None);
    let refused = |words: &[&str]| {
        let text = message(Decoder::load(gpu(), path(1), DType::F32));
        assert!(words.iter().all(|word| text.contains(word)), "{text}, not {words:?}");
    };
    write(2, &|part| part.without("split.no").count("split.no", 2).end());
    refused(&["00002-of-00003.gguf", "split.no = 2", "is not 1"]);
    write(2, &|part| part.without("split.count").count("split.count", 4).end());
    refused(&["00002-of-00003.gguf", "split.count = 4"]);
    write(2, &|part| drop(part.tensors.pop()));
    refused(&["split.tensors.count"]);
    write(2, &|part| part.tensors[0] = whole.tensors[0].clone());
    refused(&["is in", "00001-of-00003.gguf as well"]);
    std::fs::remove_file(path(2)).unwrap();
    refused(&["00002-of-00003.gguf"]);
    // Two models in one folder.
    std::fs::write(folder.join("other.gguf"), whole.bytes()).unwrap();
    assert!(message(Decoder::load(gpu(), &folder, DType::F32)).contains("which of them"));
    std::fs::remove_dir_all(&folder).unwrap();
}

/// A file by the PyPI package gguf, and what its own reader finds in it (`tests/vectors/gguf`).
#[test]
fn a_file_of_the_package_gguf_is_read_as_its_reader_reads_it() {
    let path = crate::common::checkout::checkout("tests/vectors/gguf") + "/tiny";
    let want: Value = serde_json::from_slice(&std::fs::read(format!("{path}.json")).unwrap()).unwrap();
    let file = GgufMetadata::open(format!("{path}.gguf")).unwrap();
    let values = want["values"].as_object().unwrap();
    assert!(file.keys().eq(values.keys().map(String::as_str)) && file.version() == 3);
    for (key, value) in values {
        let words = file.words(key).unwrap();
        match value {
            Value::String(text) if text.starts_with("a list of ") => assert_eq!(&words, text, "{key}"),
            Value::String(text) => assert_eq!(file.text(key), Some(text.as_str())),
            Value::Bool(flag) => assert_eq!(words, flag.to_string(), "{key}"),
            number if number.is_f64() => assert_eq!(file.number(key), number.as_f64(), "{key}"),
            whole => assert_eq!(words, whole.to_string(), "{key}"),
        }
    }
    let tensors = want["tensors"].as_object().unwrap();
    assert_eq!(file.tensors().count(), tensors.len());
    for tensor in file.tensors() {
        let want = &tensors[tensor.name];
        assert_eq!(want["stored"], tensor.stored, "{}", tensor.name);
        assert_eq!((&want["shape"], &want["bytes"]), (&json!(tensor.shape), &json!(tensor.bytes)), "{}", tensor.name);
    }
    let decoder = Decoder::load(gpu(), format!("{path}.gguf"), DType::F32).unwrap();
    let config = decoder.config();
    assert_eq!((config.vocab_size, config.hidden_size, config.rope_theta, config.tied), (24, 32, 5e4, false));
    let model = Model::of_folder("llama", decoder);
    let mut session = model.session(1, 8);
    let sequence = session.insert();
    let logits = pollster::block_on(session.all_logits(&[(sequence, &[1, 2, 3])])).unwrap().concat();
    assert!(logits.len() == 3 * 24 && logits.iter().all(|l| l.is_finite()));
}
