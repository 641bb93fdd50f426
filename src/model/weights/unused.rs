//! Tensors of a file that no part of the model asked for: what looks like a weight of the model is an error, since it would
//! compute something else without it; what is known to change nothing is left out.

use super::reader::WeightReader;
use crate::error::Result;

/// Last parts of names of what is computed anew, or is of caches in integers, or of masks.
const HARMLESS: [&str; 8] =
    ["inv_freq", "cos_cached", "sin_cached", "masked_bias", "position_ids", "k_scale", "v_scale", "kv_scale"];

/// What an unused tensor is.
#[derive(Debug, PartialEq, Eq)]
enum Unused {
    /// Changes nothing.
    Harmless,
    /// Beside the model: a value head, a further head.
    Beside,
    /// Looks like a weight of the model.
    Weight(String),
}

impl WeightReader<'_> {
    /// Looks at the tensors that nobody asked for, of a model of so many layers, or of one layer whose names have no prefix.
    ///
    /// Errors: [`ErrorKind::Weights`](crate::ErrorKind::Weights) for the first that looks like a weight of the model, unless
    /// such are to be left out.
    pub(crate) fn check_unused(&self, layers: Option<usize>) -> Result<()> {
        let names = self.store.names().filter(|name| !self.used.borrow().contains(*name));
        let names: Vec<String> = names.map(str::to_string).collect();
        let mut weights = Vec::new();
        for name in names {
            match self.judge(&name, layers)? {
                Unused::Harmless => log::debug!("{}", self.store.bad(&name, "is left out, it changes nothing".into())),
                Unused::Beside => {
                    log::warn!("{}", self.store.bad(&name, "is not part of this model and is left out".into()))
                }
                Unused::Weight(what) if self.leaves_out() => {
                    log::warn!("{}", self.store.bad(&name, format!("is left out, though it seems to be {what}")));
                }
                Unused::Weight(what) => weights.push((name, what)),
            }
        }
        let Some((name, what)) = weights.first() else { return Ok(()) };
        let others = match weights.len() - 1 {
            0 => String::new(),
            n => format!(" (and {n} more such tensors)"),
        };
        let why = format!(
            "no part of this model uses it{others}. It seems to be {what}; without it the model would compute something else. \
             Does config.json fit these weights, its model_type above all? LoadOptions::leave_out loads them without it"
        );
        Err(self.store.bad(name, why))
    }

    fn judge(&self, name: &str, layers: Option<usize>) -> Result<Unused> {
        let seen = by_name(name, layers, &|other| self.store.get(other).is_some());
        if !matches!(seen, Unused::Weight(_)) {
            return Ok(seen);
        }
        // What has the same numbers as a tensor that is used, under a name with or without the prefix, is that tensor.
        let twin = name.strip_prefix("model.").map_or_else(|| format!("model.{name}"), str::to_string);
        if self.used.borrow().contains(&twin) {
            let shapes = [name, &twin].map(|name| self.store.get(name).map(|place| place.shape.clone()));
            if let [Some(shape), Some(of_twin)] = shapes {
                if shape == of_twin && self.are_equal([name, &twin], &shape)? {
                    return Ok(Unused::Harmless);
                }
            }
        }
        match name.ends_with(".bias") && self.is_zero(name)? {
            true => Ok(Unused::Harmless),
            false => Ok(seen),
        }
    }
}

/// What a name tells. `has`: whether the file has a tensor.
fn by_name(name: &str, layers: Option<usize>, has: &dyn Fn(&str) -> bool) -> Unused {
    if HARMLESS.contains(&name.rsplit('.').next().unwrap_or(name)) {
        return Unused::Harmless;
    }
    let Some(layers) = layers else { return Unused::Weight(seems(name).into()) };
    let own = name.strip_prefix("model.").unwrap_or(name);
    if let Some((number, part)) = own.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) {
        let Ok(layer) = number.parse::<usize>() else { return Unused::Weight(seems(name).into()) };
        if layer < layers {
            return Unused::Weight(format!("{} of layer {layer}", seems(part)));
        }
        // DeepSeek-V3 keeps the heads that guess further tokens as layers behind the last.
        if ["eh_proj", "nextn.eh_proj"].iter().any(|part| has(&format!("model.layers.{layer}.{part}.weight"))) {
            return Unused::Beside;
        }
        return Unused::Weight(format!("of layer {layer}, and num_hidden_layers is {layers}"));
    }
    match name.starts_with("model.") || name.starts_with("lm_head.") {
        true => Unused::Weight(seems(name).into()),
        false => Unused::Beside,
    }
}

/// What a part of a model's name may be, in words.
fn seems(part: &str) -> &'static str {
    const QUANTISED: [&str; 14] = [
        "qweight",
        "qzeros",
        "scales",
        "g_idx",
        "weight_scale",
        "weight_scale_inv",
        "weight_scale_2",
        "weight_packed",
        "weight_shape",
        "weight_zero_point",
        "input_scale",
        "absmax",
        "quant_map",
        "SCB",
    ];
    let last = part.rsplit('.').next().unwrap_or(part);
    let any = |words: &[&str]| words.iter().any(|word| part.contains(word));
    if QUANTISED.contains(&last) || any(&["quant_state", "nested_absmax"]) {
        "a quantiser's, and only weights in bf16, f16 or f32, in 4 bits by AWQ or GPTQ, and in 8 as FP8, are read,"
    } else if any(&["lora_", "base_layer"]) {
        "an adapter's (LoRA) that is not merged"
    } else if any(&["q_norm", "k_norm", "q_layernorm", "k_layernorm"]) {
        "a norm of queries or keys (layers of model_type qwen3 have them)"
    } else if last == "bias" {
        "a bias that config.json does not ask for (attention_bias, mlp_bias)"
    } else if any(&["feedforward_layernorm"]) {
        "a norm around the feed-forward part (layers of model_type gemma2 have them)"
    } else if any(&["experts", "router", "shared_expert", "block_sparse_moe", "mlp.gate."]) {
        "a mixture of experts'"
    } else if any(&["qkv_proj", "gate_up_proj", "Wqkv", "query_key_value", "c_attn"]) {
        "several projections in one (layers of model_type phi3 have them)"
    } else if any(&["sinks"]) {
        "attention sinks"
    } else if any(&["norm"]) {
        "a norm"
    } else if any(&["embed"]) {
        "an embedding"
    } else if any(&["proj", "lm_head"]) {
        "a projection"
    } else {
        "a weight"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_what_changes_something() {
        let further = |name: &str| name == "model.layers.2.eh_proj.weight";
        let judged = |name: &str, layers| by_name(name, layers, &further);
        for name in [
            "model.layers.0.self_attn.rotary_emb.inv_freq",
            "layers.1.attention.masked_bias",
            "model.embeddings.position_ids",
            "model.layers.1.self_attn.k_scale",
        ] {
            assert_eq!(judged(name, Some(2)), Unused::Harmless, "{name}");
        }
        for name in ["v_head.summary.weight", "score.weight", "mtp.fc.weight", "model.layers.2.mlp.up_proj.weight"] {
            assert_eq!(judged(name, Some(2)), Unused::Beside, "{name}");
        }
        for (name, what) in [
            ("model.layers.1.self_attn.q_norm.weight", "qwen3"),
            ("model.layers.1.self_attn.o_proj.bias", "a bias"),
            ("model.layers.0.self_attn.q_proj.lora_A.weight", "LoRA"),
            ("model.layers.0.mlp.down_proj.weight_scale", "quantiser"),
            ("model.layers.0.mlp.down_proj.qzeros", "quantiser"),
            ("model.layers.0.self_attn.qkv_proj.weight", "several projections"),
            ("model.layers.0.pre_feedforward_layernorm.weight", "gemma2"),
            ("model.layers.0.mlp.experts.3.up_proj.weight", "mixture"),
            ("model.layers.3.mlp.up_proj.weight", "of layer 3, and num_hidden_layers is 2"),
            ("layers.0.mlp.up_proj.weight", "a projection of layer 0"),
            ("model.layers.x.y", "a weight"),
            ("model.embed_positions.weight", "an embedding"),
            ("lm_head.bias", "a bias"),
        ] {
            let Unused::Weight(got) = judged(name, Some(2)) else { panic!("{name}") };
            assert!(got.contains(what), "{name}: {got}");
        }
        let Unused::Weight(got) = judged("k_norm.weight", None) else { panic!() };
        assert!(got.contains("queries or keys"), "{got}");
    }
}
