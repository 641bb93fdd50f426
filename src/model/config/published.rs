//! `config.json` of published models, as the `transformers` library writes it, by what `families` knows of each; and Llamas with the GTA
//! or GLA layers of their authors. Pure. A key that would change what the model computes, and is not known here, is refused by name.

use super::authors;
use super::experts::experts;
use super::families::{Family, FamilyExperts, FamilyPairs};
use super::keys::Keys;
use super::layers::{Activation, LayerKind, LayerRope};
use super::names::TensorNames;
use super::quantised::quantised;
use super::rope_keys::{partial, rope};
use super::window_keys::{windows, LayerWindows};
use super::{AttentionConfig, Config, FileFacts};
use crate::error::Result;
use crate::nn::GateClamp;
use serde_json::json;

const WIDTH: usize = 1 << 14;
/// The norms inside DeepSeek's attention have this one, whatever `rms_norm_eps` is.
pub(super) const DEEPSEEK_LATENT_EPS: f32 = 1e-6;

/// Errors: [`ErrorKind::Config`](crate::ErrorKind::Config), naming the key and its value.
pub(crate) fn config(keys: &Keys<'_>, family: &Family) -> Result<Config> {
    let authors = family.model_type == "llama" && authors::are(keys);
    check_activation(keys, family)?;
    let q_heads = keys.size("num_attention_heads", WIDTH)?;
    let hidden_size = keys.size("hidden_size", 1 << 16)?;
    let layers = keys.size("num_hidden_layers", 1 << 10)?;
    let max_positions = keys.size("max_position_embeddings", 1 << 24)?;
    let (attention, head_dim, v_head_dim) = match family.latent {
        true => latent(keys, q_heads)?,
        false => {
            let dim = head_dim(keys, family, q_heads, hidden_size)?;
            let attention =
                if authors { authors::attention(keys, q_heads, dim)? } else { grouped(keys, q_heads, dim)? };
            (attention, dim, dim)
        }
    };
    let rope = rope(keys, family, max_positions)?;
    let rms_norm_eps = keys.number_or("rms_norm_eps", 1e-12..=1e-1, 1e-6)? as f32;
    let windows = windows(keys, family, layers)?.visible(max_positions);
    if let (Some(key), Some(window)) = (rope.only_within, windows.of_all()) {
        let why = format!("is not supported beside a window of {window}, which lets a sequence pass the positions");
        return Err(keys.object(rope.name).map_or_else(|| keys.bad(key, &why), |inner| inner.bad(key, &why)));
    }
    let [embedding_scale, residual_scale, logits_divided, attention_scale] = multipliers(keys, family)?;
    let gemma = gemma(keys, family)?;
    let attention_scale = attention_scale.or(gemma.attention_scale);
    let score_gain = if family.latent { rope.mscale_all_dim.powi(2) } else { 1.0 };
    let plain = Config::new(attention, hidden_size, q_heads, head_dim);
    let rotated_dim = if authors { None } else { partial(keys, (family, rope.name), plain.rope_dim())? };
    Ok(Config {
        vocab_size: keys.size("vocab_size", 1 << 24)?,
        layers,
        v_head_dim,
        intermediate_size: keys.size("intermediate_size", 1 << 20)?,
        experts: experts(keys, family.experts)?,
        rms_norm_eps,
        qk_norm: family.qk_norm,
        norms: family.norms,
        embedding_scale: match family.gemma {
            true => (hidden_size as f64).sqrt() as f32,
            false => embedding_scale.unwrap_or(1.0) as f32,
        },
        residual_scale: residual_scale.unwrap_or(1.0) as f32,
        logit_scale: logits_divided.map_or(1.0, |by| 1.0 / by) as f32,
        logit_softcap: gemma.logit_softcap,
        score_softcap: gemma.score_softcap,
        sinks: family.sinks,
        activation: activation(keys, family)?,
        layer_kinds: layer_kinds((keys, family), layers, &windows, rope.theta_of_windows)?,
        rotated_dim,
        latent_norm_eps: if family.latent { DEEPSEEK_LATENT_EPS } else { rms_norm_eps },
        rope_theta: rope.theta,
        rope_scaling: rope.scaling,
        rope_factors: rope.factors,
        long_rope: rope.long,
        rope_gain: rope.gain,
        rope_interleaved: match family.pairs {
            FamilyPairs::Halves => false,
            FamilyPairs::Neighbours => true,
            FamilyPairs::Asked => keys.flag_or("rope_interleave", true)?,
        },
        score_gain: match attention_scale {
            Some(scale) => (scale * (head_dim as f64).sqrt()) as f32,
            None => score_gain,
        },
        max_positions,
        window: windows.of_all(),
        tied: keys.flag_or("tie_word_embeddings", family.tied)?,
        files: FileFacts {
            names: if authors { TensorNames::Authors } else { family.names },
            biases: Some(biases(keys, family, &attention)?),
            fused_qkv: family.fused.0,
            fused_gate_up: family.fused.1,
            gains_from_one: family.gemma,
            reordered: false,
            quantised: quantised(keys, family.experts == FamilyExperts::GptOss)?,
        },
        ..plain
    })
}

/// Granite's: of embeddings, of what layers add, what logits are divided by, and the factor on scores in the place of the usual one.
fn multipliers(keys: &Keys<'_>, family: &Family) -> Result<[Option<f64>; 4]> {
    let mut found = [None; 4];
    let names = ["embedding_multiplier", "residual_multiplier", "logits_scaling", "attention_multiplier"];
    for (found, name) in found.iter_mut().zip(names).filter(|_| family.multipliers) {
        // The library's default.
        *found = Some(keys.number_or(name, 1e-6..=1e6, 1.0)?);
    }
    Ok(found)
}

/// Refuses other activations than the family's.
fn check_activation(keys: &Keys<'_>, family: &Family) -> Result<()> {
    let (key, only) = match family.activation {
        Activation::Silu | Activation::Clamped(_) => ("hidden_act", "silu"),
        Activation::GeluTanh => (keys.either(["hidden_activation", "hidden_act"]), "gelu_pytorch_tanh"),
    };
    match keys.differs(key, json!(only)) {
        true => Err(keys.bad(key, &format!("is not supported, only {only:?} is"))),
        false => Ok(()),
    }
}

/// The family's, with the numbers of a clamped one, if it is that.
fn activation(keys: &Keys<'_>, family: &Family) -> Result<Activation> {
    let Activation::Clamped(usual) = family.activation else { return Ok(family.activation) };
    let number = |key, usual: f32| keys.number_or(key, 1e-3..=1e4, usual.into()).map(|number| number as f32);
    let (alpha, limit) = (number("swiglu_alpha", usual.alpha)?, number("swiglu_limit", usual.limit)?);
    Ok(Activation::Clamped(GateClamp { alpha, limit }))
}

/// Keys that Gemma has.
#[derive(Default)]
struct GemmaKeys {
    attention_scale: Option<f64>,
    logit_softcap: Option<f32>,
    score_softcap: Option<f32>,
}

fn gemma(keys: &Keys<'_>, family: &Family) -> Result<GemmaKeys> {
    if !family.gemma {
        return Ok(GemmaKeys::default());
    }
    if keys.flag_or("use_bidirectional_attention", false)? {
        return Err(keys.bad("use_bidirectional_attention", "is not supported: tokens see those before them alone"));
    }
    let cap = |key| -> Result<Option<f32>> {
        keys.has(key).then(|| keys.number(key, 1e-3..=1e6).map(|cap| cap as f32)).transpose()
    };
    Ok(GemmaKeys {
        attention_scale: Some(keys.number_or("query_pre_attn_scalar", 1e-3..=1e6, 256.0)?.powf(-0.5)),
        logit_softcap: cap("final_logit_softcapping")?,
        score_softcap: cap("attn_logit_softcapping")?,
    })
}

/// What layers differ in, if they do.
fn layer_kinds(
    (keys, family): (&Keys<'_>, &Family),
    layers: usize,
    windows: &LayerWindows,
    theta_of_windows: Option<f64>,
) -> Result<Vec<LayerKind>> {
    let rotates = if family.some_rotate { rotating(keys, layers)? } else { vec![true; layers] };
    let kind = |layer: usize| LayerKind {
        rope: match theta_of_windows.filter(|_| windows.in_layer(layer)) {
            _ if !rotates[layer] => LayerRope::None,
            Some(theta) => LayerRope::Theta(theta),
            None => LayerRope::Model,
        },
        window: windows.of_some().filter(|_| windows.in_layer(layer)),
    };
    let kinds: Vec<LayerKind> = (0..layers).map(kind).collect();
    Ok(if kinds.iter().all(|kind| *kind == LayerKind::default()) { Vec::new() } else { kinds })
}

/// Whether each layer rotates: all but the last of every so many, or those where a list has no 0.
fn rotating(keys: &Keys<'_>, layers: usize) -> Result<Vec<bool>> {
    const LIST: &str = "no_rope_layers";
    let rotates: Vec<bool> = match keys.has(LIST) {
        true => keys.numbers(LIST, 0.0..=1.0)?.iter().map(|rotates| *rotates != 0.0).collect(),
        false => {
            let every = match keys.has("no_rope_layer_interval") {
                true => keys.size("no_rope_layer_interval", 1 << 10)?,
                false => 4,
            };
            (1..=layers).map(|layer| !layer.is_multiple_of(every)).collect()
        }
    };
    match rotates.len() == layers {
        true => Ok(rotates),
        false => Err(keys.bad(LIST, &format!("has {} numbers, of num_hidden_layers = {layers}", rotates.len()))),
    }
}

/// The projections that have a bias.
fn biases(keys: &Keys<'_>, family: &Family, attention: &AttentionConfig) -> Result<Vec<&'static str>> {
    // What a key decides in some families is without one in others.
    let asked =
        |parts: &[&str], key: &str, usual| -> Result<bool> { Ok(!parts.is_empty() && keys.flag_or(key, usual)?) };
    let mut parts: Vec<&'static str> = Vec::new();
    if asked(family.mlp_bias, "mlp_bias", false)? {
        parts.extend(family.mlp_bias);
    }
    // Of the authors' layers.
    let (always, by_key): (&[_], &[_]) = match attention {
        AttentionConfig::Gta { .. } => (&["W_rope_k"], &["q_proj", "kv_proj", "o_proj"]),
        AttentionConfig::Latent { .. } if !family.latent => {
            (&["W_dQ", "W_uQ_rope", "W_dKV", "W_ukv_1", "W_ukv_2"], &["o_proj"])
        }
        _ => (family.biases, family.attention_bias),
    };
    parts.extend(always);
    if asked(by_key, "attention_bias", family.usual_bias)? {
        parts.extend(by_key);
    }
    Ok(parts)
}

/// Width of a head that is not cut.
fn head_dim(keys: &Keys<'_>, family: &Family, q_heads: usize, hidden_size: usize) -> Result<usize> {
    match (keys.has("head_dim"), family.head_dim) {
        (true, _) => keys.size("head_dim", WIDTH),
        (false, Some(usual)) => Ok(usual),
        _ if hidden_size.is_multiple_of(q_heads) => Ok(hidden_size / q_heads),
        _ => Err(keys.bad("num_attention_heads", &format!("does not divide hidden_size = {hidden_size}"))),
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
