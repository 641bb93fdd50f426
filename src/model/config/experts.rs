//! Keys of a `config.json` that describe a mixture of experts. Pure.

use super::families::FamilyExperts;
use super::keys::Keys;
use super::ExpertsConfig;
use crate::error::Result;
use crate::nn::RouteShape;
use serde_json::json;

/// The layers with experts, if there are any.
pub(super) fn experts(keys: &Keys<'_>, family: FamilyExperts) -> Result<Option<ExpertsConfig>> {
    match family {
        FamilyExperts::None => Ok(None),
        FamilyExperts::Qwen3 => qwen3_experts(keys).map(Some),
        FamilyExperts::Mixtral => mixtral_experts(keys).map(Some),
        FamilyExperts::GptOss => {
            check_gpt_oss(keys)?;
            mixtral_experts(keys).map(|experts| Some(ExpertsConfig { with_biases: true, ..experts }))
        }
        FamilyExperts::DeepSeekV2 => deepseek_experts(keys, false),
        FamilyExperts::DeepSeekV3 => deepseek_experts(keys, true),
    }
}

/// The first layer with experts, after which all have them: by a word for each layer, or by their number.
fn first_layer(keys: &Keys<'_>) -> Result<usize> {
    const LIST: &str = "mlp_layer_types";
    if !keys.has(LIST) {
        return keys.count("first_k_dense_replace", 1 << 10);
    }
    let kinds = keys.words(LIST, &["dense", "sparse"])?;
    let layers = keys.size("num_hidden_layers", 1 << 10)?;
    let dense = kinds.iter().take_while(|kind| **kind == "dense").count();
    match kinds.len() == layers && kinds.iter().skip(dense).all(|kind| *kind == "sparse") {
        true => Ok(dense),
        false => {
            Err(keys.bad(LIST, &format!("is not dense layers before sparse ones, num_hidden_layers = {layers} in all")))
        }
    }
}

fn deepseek_experts(keys: &Keys<'_>, third: bool) -> Result<Option<ExpertsConfig>> {
    if !keys.has("n_routed_experts") {
        return Ok(None);
    }
    let first_layer = first_layer(keys)?;
    if first_layer >= keys.size("num_hidden_layers", 1 << 10)? {
        return Ok(None);
    }
    if keys.differs("moe_layer_freq", json!(1)) {
        return Err(keys.bad("moe_layer_freq", "is not supported, only 1 is"));
    }
    let experts = keys.size("n_routed_experts", 1 << 10)?;
    let top = keys.size("num_experts_per_tok", experts.min(64))?;
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
    Ok(Some(ExpertsConfig {
        first_layer,
        route,
        biased: third,
        with_biases: false,
        width,
        shared_width: shared * width,
    }))
}

/// Of all layers, without shared ones: the best `top` of `experts`, weighted by a softmax over all, or over the best.
fn plain_experts((experts, top): (usize, usize), width: usize, normalise: bool) -> ExpertsConfig {
    let route =
        RouteShape { experts, top, groups: 1, top_groups: 1, group_best: 1, sigmoid: false, normalise, factor: 1.0 };
    ExpertsConfig { first_layer: 0, route, biased: false, with_biases: false, width, shared_width: 0 }
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

/// What older files say once more must be the same.
fn check_gpt_oss(keys: &Keys<'_>) -> Result<()> {
    const OTHER: &str = "experts_per_token";
    let top = keys.size("num_experts_per_tok", 64)?;
    match keys.differs(OTHER, json!(top)) {
        true => Err(keys.bad(OTHER, &format!("is not num_experts_per_tok = {top}"))),
        false => Ok(()),
    }
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
