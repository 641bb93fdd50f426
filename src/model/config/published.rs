//! `config.json` of published models, as the `transformers` library writes it: Llama, Mistral, Mixtral, Qwen2, Qwen3 and Phi-3 (GQA),
//! DeepSeek-V2 and V3 (MLA); and Llamas with the GTA or GLA layers of their authors. Pure. A key that would change what
//! the model computes, and is not known here, is refused by name.

use super::authors;
use super::keys::Keys;
use super::names::TensorNames;
use super::quantised::quantised;
use super::{AttentionConfig, Config, ExpertsConfig, FileFacts};
use crate::error::Result;
use crate::nn::RouteShape;
use crate::rope::RopeScaling;
use serde_json::json;

const WIDTH: usize = 1 << 14;
/// The norms inside DeepSeek's attention have this one, whatever `rms_norm_eps` is.
pub(super) const DEEPSEEK_LATENT_EPS: f32 = 1e-6;

/// Errors: [`ErrorKind::Config`](crate::ErrorKind::Config), naming the key and its value.
pub(crate) fn config(keys: &Keys<'_>, family: &str) -> Result<Config> {
    let authors = family == "llama" && authors::are(keys);
    refuse(keys, authors)?;
    let q_heads = keys.size("num_attention_heads", WIDTH)?;
    let hidden_size = keys.size("hidden_size", 1 << 16)?;
    let deepseek = family.starts_with("deepseek");
    let layers = keys.size("num_hidden_layers", 1 << 10)?;
    let max_positions = keys.size("max_position_embeddings", 1 << 24)?;
    let rope = rope(keys, max_positions)?;
    let rms_norm_eps = keys.number_or("rms_norm_eps", 1e-12..=1e-1, 1e-6)? as f32;
    let (attention, head_dim, v_head_dim) = match deepseek {
        true => latent(keys, q_heads)?,
        false => {
            let dim = head_dim(keys, family, q_heads, hidden_size)?;
            let attention =
                if authors { authors::attention(keys, q_heads, dim)? } else { grouped(keys, q_heads, dim)? };
            (attention, dim, dim)
        }
    };
    let biases = biases(keys, family, &attention)?;
    Ok(Config {
        attention,
        vocab_size: keys.size("vocab_size", 1 << 24)?,
        hidden_size,
        layers,
        q_heads,
        head_dim,
        v_head_dim,
        intermediate_size: keys.size("intermediate_size", 1 << 20)?,
        experts: match family {
            "qwen3_moe" => Some(qwen3_experts(keys)?),
            "mixtral" => Some(mixtral_experts(keys)?),
            _ if deepseek => experts(keys, family)?,
            _ => None,
        },
        rms_norm_eps,
        qk_norm: family.starts_with("qwen3"),
        latent_norm_eps: if deepseek { DEEPSEEK_LATENT_EPS } else { rms_norm_eps },
        rope_theta: rope.theta,
        rope_scaling: rope.scaling,
        rope_factors: Vec::new(),
        rope_gain: rope.gain,
        rope_interleaved: family == "deepseek_v2" || deepseek && keys.flag_or("rope_interleave", true)?,
        score_gain: if deepseek { rope.mscale_all_dim.powi(2) } else { 1.0 },
        max_positions,
        window: window(keys, family, layers)?.filter(|window| *window < max_positions),
        tied: keys.flag_or("tie_word_embeddings", false)?,
        files: FileFacts {
            names: match family {
                "mixtral" => TensorNames::Mixtral,
                _ if authors => TensorNames::Authors,
                _ => TensorNames::Published,
            },
            biases: Some(biases),
            fused: family == "phi3",
            quantised: quantised(keys)?,
        },
    })
}

/// What no family's model may have.
fn refuse(keys: &Keys<'_>, authors: bool) -> Result<()> {
    if keys.differs("hidden_act", json!("silu")) {
        return Err(keys.bad("hidden_act", "is not supported, only \"silu\" is"));
    }
    if !authors {
        keys.number_or("partial_rotary_factor", 1.0..=1.0, 1.0)?;
    }
    Ok(())
}

/// The projections that have a bias.
fn biases(keys: &Keys<'_>, family: &str, attention: &AttentionConfig) -> Result<Vec<&'static str>> {
    // What a key decides in some families is without one in others.
    let asked =
        |families: &[&str], key: &str| -> Result<bool> { Ok(families.contains(&family) && keys.flag_or(key, false)?) };
    let mut parts: Vec<&'static str> = Vec::new();
    if asked(&["llama", "deepseek_v2"], "mlp_bias")? {
        parts.extend(["gate_proj", "up_proj", "down_proj"]);
    }
    let always: &[_] = match (family, attention) {
        ("qwen2", _) => &["q_proj", "k_proj", "v_proj"],
        ("llama", AttentionConfig::Gta { .. }) => &["W_rope_k"],
        ("llama", AttentionConfig::Latent { .. }) => &["W_dQ", "W_uQ_rope", "W_dKV", "W_ukv_1", "W_ukv_2"],
        _ => &[],
    };
    parts.extend(always);
    if asked(&["llama", "qwen3", "qwen3_moe", "deepseek_v2", "deepseek_v3"], "attention_bias")? {
        let first: &[_] = match (family, attention) {
            ("llama" | "qwen3" | "qwen3_moe", AttentionConfig::Gqa { .. }) => &["q_proj", "k_proj", "v_proj"],
            ("llama", AttentionConfig::Gta { .. }) => &["q_proj", "kv_proj"],
            ("llama", _) => &[],
            _ => &["q_a_proj", "kv_a_proj_with_mqa"],
        };
        parts.extend(first);
        parts.push("o_proj");
    }
    Ok(parts)
}

/// Tokens that a token sees in every layer, if not all; a window past the model's positions hides nothing.
fn window(keys: &Keys<'_>, family: &str, layers: usize) -> Result<Option<usize>> {
    let windowed = match family {
        "mistral" | "mixtral" | "phi3" => !keys.is_null("sliding_window"),
        "qwen2" | "qwen3" | "qwen3_moe" if keys.flag_or("use_sliding_window", false)? && keys.has("sliding_window") => {
            // The layers from here on have it.
            let first = keys.count("max_window_layers", 1 << 10)?;
            if 0 < first && first < layers {
                let why = format!("is not supported: all or none of num_hidden_layers = {layers} must have the window");
                return Err(keys.bad("max_window_layers", &why));
            }
            first == 0
        }
        _ => false,
    };
    let kind = if windowed { "sliding_attention" } else { "full_attention" };
    if keys.is_mixed("layer_types", kind) {
        return Err(keys.bad("layer_types", &format!("is not supported, all layers must have \"{kind}\"")));
    }
    windowed.then(|| keys.size("sliding_window", u32::MAX as usize)).transpose()
}

/// Width of a head that is not cut.
fn head_dim(keys: &Keys<'_>, family: &str, q_heads: usize, hidden_size: usize) -> Result<usize> {
    match keys.has("head_dim") {
        true => keys.size("head_dim", WIDTH),
        false if family.starts_with("qwen3") => Ok(128), // the library's default
        false if hidden_size.is_multiple_of(q_heads) => Ok(hidden_size / q_heads),
        false => Err(keys.bad("num_attention_heads", &format!("does not divide hidden_size = {hidden_size}"))),
    }
}

fn grouped(keys: &Keys<'_>, q_heads: usize, head_dim: usize) -> Result<AttentionConfig> {
    let kv_heads = match keys.has("num_key_value_heads") {
        true => keys.size("num_key_value_heads", WIDTH)?,
        false => q_heads,
    };
    keys.check_groups("num_key_value_heads", kv_heads, q_heads)?;
    keys.check_pairs(if keys.has("head_dim") { "head_dim" } else { "hidden_size" }, head_dim)?;
    Ok(AttentionConfig::Gqa { kv_heads })
}

/// Attention, width of a head's part without position, and of its value.
fn latent(keys: &Keys<'_>, q_heads: usize) -> Result<(AttentionConfig, usize, usize)> {
    if keys.differs("num_key_value_heads", json!(q_heads)) {
        return Err(keys.bad("num_key_value_heads", &format!("is not num_attention_heads = {q_heads}")));
    }
    let q_latent_dim = match keys.is_null("q_lora_rank") {
        true => None,
        false => Some(keys.size("q_lora_rank", 1 << 16)?),
    };
    let rope_dim = keys.size("qk_rope_head_dim", WIDTH)?;
    keys.check_pairs("qk_rope_head_dim", rope_dim)?;
    let latent_dim = keys.size("kv_lora_rank", WIDTH)?;
    let attention = AttentionConfig::Latent { latent_heads: 1, latent_dim, q_latent_dim, rope_dim };
    Ok((attention, keys.size("qk_nope_head_dim", WIDTH)?, keys.size("v_head_dim", WIDTH)?))
}

/// The layers with experts, if there are any.
fn experts(keys: &Keys<'_>, family: &str) -> Result<Option<ExpertsConfig>> {
    if !keys.has("n_routed_experts") {
        return Ok(None);
    }
    let first_layer = keys.count("first_k_dense_replace", 1 << 10)?;
    if first_layer >= keys.size("num_hidden_layers", 1 << 10)? {
        return Ok(None);
    }
    if keys.differs("moe_layer_freq", json!(1)) {
        return Err(keys.bad("moe_layer_freq", "is not supported, only 1 is"));
    }
    let experts = keys.size("n_routed_experts", 1 << 10)?;
    let top = keys.size("num_experts_per_tok", experts.min(64))?;
    let third = family == "deepseek_v3";
    let grouped = third || keys.has("topk_method") && keys.word("topk_method", &V2_METHODS)? == V2_METHODS[1];
    if third {
        known_v3(keys)?;
    } else {
        known_v2(keys)?;
    }
    let groups = if grouped { keys.size("n_group", experts)? } else { 1 };
    if !experts.is_multiple_of(groups) {
        return Err(keys.bad("n_group", &format!("does not divide n_routed_experts = {experts}")));
    }
    let group_best = if third { 2 } else { 1 };
    if group_best > experts / groups {
        return Err(keys.bad("n_group", "leaves groups of one expert, where the best two of each are asked for"));
    }
    let top_groups = if grouped { keys.size("topk_group", groups)? } else { 1 };
    if top > top_groups * (experts / groups) {
        let why = format!("is more than {top_groups} of {groups} groups have of {experts} experts");
        return Err(keys.bad("num_experts_per_tok", &why));
    }
    let normalise = third && keys.flag("norm_topk_prob")?;
    let factor = keys.number("routed_scaling_factor", 1e-6..=1e6)? as f32;
    let route = RouteShape { experts, top, groups, top_groups, group_best, sigmoid: third, normalise, factor };
    let width = keys.size("moe_intermediate_size", 1 << 20)?;
    let shared = if keys.has("n_shared_experts") { keys.count("n_shared_experts", 1 << 10)? } else { 0 };
    Ok(Some(ExpertsConfig { first_layer, route, biased: third, width, shared_width: shared * width }))
}

/// Of all layers, without shared ones: the best `top` of `experts`, weighted by a softmax over all, or over the best.
fn plain_experts((experts, top): (usize, usize), width: usize, normalise: bool) -> ExpertsConfig {
    let route =
        RouteShape { experts, top, groups: 1, top_groups: 1, group_best: 1, sigmoid: false, normalise, factor: 1.0 };
    ExpertsConfig { first_layer: 0, route, biased: false, width, shared_width: 0 }
}

fn qwen3_experts(keys: &Keys<'_>) -> Result<ExpertsConfig> {
    for (key, only) in [("decoder_sparse_step", json!(1)), ("mlp_only_layers", json!([]))] {
        if keys.differs(key, only.clone()) {
            return Err(keys.bad(key, &format!("is not supported, only {only} is")));
        }
    }
    let experts = keys.size(keys.either(["num_experts", "num_local_experts"]), 1 << 10)?;
    let top = keys.size("num_experts_per_tok", experts.min(64))?;
    let width = keys.size("moe_intermediate_size", 1 << 20)?;
    Ok(plain_experts((experts, top), width, keys.flag_or("norm_topk_prob", false)?))
}

fn mixtral_experts(keys: &Keys<'_>) -> Result<ExpertsConfig> {
    let experts = keys.size("num_local_experts", 1 << 10)?;
    let top = keys.size("num_experts_per_tok", experts.min(64))?;
    Ok(plain_experts((experts, top), keys.size("intermediate_size", 1 << 20)?, true))
}

/// By the best scores; or those of the groups with the best experts.
const V2_METHODS: [&str; 2] = ["greedy", "group_limited_greedy"];

/// What older files of DeepSeek-V2 spell out.
fn known_v2(keys: &Keys<'_>) -> Result<()> {
    if keys.differs("scoring_func", json!("softmax")) {
        return Err(keys.bad("scoring_func", "is not supported, only \"softmax\" is"));
    }
    // The authors' code then leaves the factor out, the library's does not divide: no model has it.
    if keys.flag_or("norm_topk_prob", false)? {
        return Err(keys.bad("norm_topk_prob", "is not supported"));
    }
    Ok(())
}

/// What older files of DeepSeek-V3 spell out.
fn known_v3(keys: &Keys<'_>) -> Result<()> {
    if keys.differs("scoring_func", json!("sigmoid")) {
        return Err(keys.bad("scoring_func", "is not supported, only \"sigmoid\" is"));
    }
    if keys.differs("topk_method", json!("noaux_tc")) {
        return Err(keys.bad("topk_method", "is not supported, only \"noaux_tc\" is"));
    }
    Ok(())
}

struct RopeKeys {
    theta: f64,
    scaling: RopeScaling,
    gain: f32,
    /// 1 where there is no such key.
    mscale_all_dim: f32,
}

/// `rope_parameters`, or in older files `rope_theta` and `rope_scaling`.
fn rope(keys: &Keys<'_>, max_positions: usize) -> Result<RopeKeys> {
    let name = keys.either(["rope_scaling", "rope_parameters"]);
    if keys.is_mixed(name, "") {
        return Err(keys.bad(name, "is not supported, all layers must have the same rotation"));
    }
    let thetas = 1.0 + 1e-6..=1e12;
    let theta = keys.number_or("rope_theta", thetas.clone(), 1e4)?;
    let mut made = RopeKeys { theta, scaling: RopeScaling::None, gain: 1.0, mscale_all_dim: 1.0 };
    let Some(inner) = keys.object(name) else {
        return if keys.has(name) { Err(keys.bad(name, "is not an object")) } else { Ok(made) };
    };
    made.theta = inner.number_or("rope_theta", thetas, theta)?;
    inner.number_or("partial_rotary_factor", 1.0..=1.0, 1.0)?;
    let kind = inner.either(["rope_type", "type"]);
    if !inner.has(kind) {
        return Ok(made);
    }
    let kind = inner.word(kind, &["default", "linear", "llama3", "yarn"])?;
    if kind == "default" {
        return Ok(made);
    }
    let tokens = 1.0..=1e9;
    let original_positions = match keys.has("original_max_position_embeddings") {
        true => keys.number("original_max_position_embeddings", tokens)?,
        false => inner.number_or("original_max_position_embeddings", tokens, max_positions as f64)?,
    };
    let factor = match kind == "yarn" && !inner.has("factor") {
        true => max_positions as f64 / original_positions,
        false => inner.number("factor", 1e-3..=1e6)?,
    };
    made.scaling = match kind {
        "linear" => RopeScaling::Linear { factor },
        "llama3" => llama3(&inner, factor, original_positions)?,
        _ => yarn(&inner, factor, original_positions)?,
    };
    let all_dim = inner.number_or("mscale_all_dim", 0.0..=1e3, 0.0)?;
    if all_dim > 0.0 {
        made.mscale_all_dim = mscale(factor, all_dim) as f32;
    }
    if kind == "yarn" {
        let both = inner.number_or("mscale", 0.0..=1e3, 0.0)?;
        let usual = match both > 0.0 && all_dim > 0.0 {
            true => mscale(factor, both) / mscale(factor, all_dim),
            false => mscale(factor, 1.0),
        };
        made.gain = inner.number_or("attention_factor", 1e-3..=1e3, usual)? as f32;
    }
    Ok(made)
}

/// YaRN's temperature.
fn mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 {
        1.0
    } else {
        0.1 * mscale * factor.ln() + 1.0
    }
}

fn llama3(keys: &Keys<'_>, factor: f64, original_positions: f64) -> Result<RopeScaling> {
    let low_freq_factor = keys.number("low_freq_factor", 1e-3..=1e6)?;
    let high_freq_factor = keys.number("high_freq_factor", 1e-3..=1e6)?;
    if high_freq_factor <= low_freq_factor {
        return Err(keys.bad("high_freq_factor", &format!("is not above low_freq_factor = {low_freq_factor}")));
    }
    Ok(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions })
}

fn yarn(keys: &Keys<'_>, factor: f64, original_positions: f64) -> Result<RopeScaling> {
    let beta_fast = keys.number_or("beta_fast", 1e-3..=1e6, 32.0)?;
    let beta_slow = keys.number_or("beta_slow", 1e-3..=1e6, 1.0)?;
    if beta_fast <= beta_slow {
        return Err(keys.bad("beta_fast", &format!("is not above beta_slow = {beta_slow}")));
    }
    let truncate = keys.flag_or("truncate", true)?;
    Ok(RopeScaling::Yarn { factor, beta_fast, beta_slow, original_positions, truncate })
}
