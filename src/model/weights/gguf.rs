//! Opening GGUF files: their tensors by the names that published models have, in the order of rows that those have.

use super::store::{bad, Data, Place, WeightFile, WeightFiles};
use super::stored::Stored;
#[cfg(doc)]
use crate::error::ErrorKind;
use crate::error::Result;
use crate::io::gguf::{parts, Gguf, StoredTensor};
use crate::model::config::gguf::{check_architecture, original_positions, TensorFacts};
use crate::model::config::{AttentionConfig, BlockNorms, Config, LongRope};
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

const EMBEDDING: &str = "token_embd.weight";
const FREQUENCY_FACTORS: &str = "rope_freqs.weight";
/// Of sequences up to those of training, and of longer ones (Phi-3 and Phi-4).
const LONG_FACTORS: [&str; 2] = ["rope_factors_short.weight", "rope_factors_long.weight"];

/// Of all of a model, ggml's name and the published one, without `.weight`.
const GLOBAL: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// Of a layer.
const OF_LAYER: [(&str, &str); 30] = [
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("post_attention_norm", "post_self_attn_layernorm"),
    ("post_ffw_norm", "post_mlp_layernorm"),
    ("attn_rot_embd", "self_attn.rotary_emb.inv_freq"),
    ("attn_q_a", "self_attn.q_a_proj"),
    ("attn_q_a_norm", "self_attn.q_a_layernorm"),
    ("attn_q_b", "self_attn.q_b_proj"),
    ("attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa"),
    ("attn_kv_a_norm", "self_attn.kv_a_layernorm"),
    ("attn_kv_b", "self_attn.kv_b_proj"),
    ("attn_k_b", "self_attn.k_b_proj"),
    ("attn_v_b", "self_attn.v_b_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("ffn_gate_inp", "mlp.gate"),
    ("ffn_gate_shexp", "mlp.shared_experts.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_experts.up_proj"),
    ("ffn_down_shexp", "mlp.shared_experts.down_proj"),
    // Of these the biases: their weights are those of each expert.
    ("ffn_gate_exps", "mlp.experts.gate_proj"),
    ("ffn_up_exps", "mlp.experts.up_proj"),
    ("ffn_down_exps", "mlp.experts.down_proj"),
];

/// Of Phi-3's and GLM-4's layers, whose up-projection is [gate | up].
const FUSED_UP: (&str, &str) = ("ffn_up", "mlp.gate_up_proj");

/// Of all experts of a layer, one behind the other.
const OF_EXPERTS: [(&str, &str); 3] =
    [("ffn_gate_exps", "gate_proj"), ("ffn_up_exps", "up_proj"), ("ffn_down_exps", "down_proj")];

const EXPERTS_BIAS: (&str, &str) = ("exp_probs_b.bias", "mlp.gate.e_score_correction_bias");

/// Of a layer, what has another end as well.
const WHOLE_NAMES: [(&str, &str); 2] = [EXPERTS_BIAS, ("attn_sinks.weight", "self_attn.sinks")];

/// A file of a model, or a part of one.
struct GgufPart<'a> {
    header: Gguf,
    data: Data<'a>,
}

impl<'a> WeightFiles<'a> {
    /// The model of a GGUF file; of several, where its name tells that it is one of them (`-00001-of-00003.gguf`).
    ///
    /// Errors: [`ErrorKind::Io`], [`ErrorKind::Config`], [`ErrorKind::Weights`].
    pub(crate) fn open_gguf(path: &Path) -> Result<(Config, Self)> {
        let files = parts(path).unwrap_or_else(|| vec![path.to_path_buf()]);
        let open = |path: &PathBuf| {
            let (header, file, _) = Gguf::open(path)?;
            Ok(GgufPart { header, data: Data::File(file) })
        };
        Self::of_parts(files.iter().map(open).collect::<Result<_>>()?)
    }

    /// The model of the bytes of one GGUF file.
    ///
    /// Errors: [`ErrorKind::Config`], [`ErrorKind::Weights`].
    pub(crate) fn gguf_from_bytes(path: &str, bytes: &'a [u8]) -> Result<(Config, Self)> {
        let header = Gguf::read(path, bytes, bytes.len() as u64)?;
        Self::of_parts(vec![GgufPart { header, data: Data::Bytes(bytes) }])
    }

    fn of_parts(parts: Vec<GgufPart<'a>>) -> Result<(Config, Self)> {
        let headers: Vec<&Gguf> = parts.iter().map(|part| &part.header).collect();
        check_parts(&headers)?;
        let Some(first) = headers.first() else { return Err(bad("", "", "no file".into())) };
        // Known before a tensor is asked for, so that a foreign model is called one.
        check_architecture(first)?;
        let tensor = |name: &str| headers.iter().find_map(|header| header.tensors.get(name));
        let has = |end: &str| headers.iter().flat_map(|header| header.tensors.keys()).any(|name| name.ends_with(end));
        let embedding = tensor(EMBEDDING).filter(|tensor| tensor.shape.len() == 2);
        let embedding = embedding.ok_or_else(|| bad(&first.path, EMBEDDING, "missing, or no matrix".into()))?;
        let facts = TensorFacts {
            vocab_size: embedding.shape[0],
            tied: tensor("output.weight").is_none(),
            biased_experts: has(EXPERTS_BIAS.0),
            long_factors: LONG_FACTORS.iter().all(|name| has(name)),
        };
        let (mut config, original_positions) = (Config::of_gguf(first, facts)?, original_positions(first)?);
        let mut store = WeightFiles::empty(&first.path);
        store.own_name = ggml_name;
        for (file, part) in parts.into_iter().enumerate() {
            for (name, tensor) in part.header.tensors {
                store.add_tensor_of_gguf(&config, (file, &part.header.path), name, tensor)?;
            }
            store.files.push(WeightFile { path: part.header.path, data: part.data });
        }
        if let Some(place) = store.tensors.remove(FREQUENCY_FACTORS) {
            config.rope_factors = store.frequency_factors(&config, FREQUENCY_FACTORS, &place)?;
        }
        let original_positions = original_positions.unwrap_or(config.max_positions);
        let mut factors = |name| match store.tensors.remove(name) {
            Some(place) => store.frequency_factors(&config, name, &place).map(Some),
            None => Ok(None),
        };
        match (factors(LONG_FACTORS[0])?, factors(LONG_FACTORS[1])?) {
            (None, None) => {}
            (Some(short), Some(factors)) => {
                config.rope_factors = short;
                config.long_rope = Some(LongRope { original_positions, factors });
            }
            (short, _) => {
                let missing = LONG_FACTORS[usize::from(short.is_some())];
                return Err(bad(&store.path, missing, "missing, and the file has the other factors".into()));
            }
        }
        Ok((config, store))
    }

    /// What frequencies are divided by.
    fn frequency_factors(&self, config: &Config, name: &str, place: &Place) -> Result<Vec<f32>> {
        let pairs = config.turning_dim() / 2;
        let path = &self.files[place.file].path;
        if *place.shape != [pairs] || place.stored != Stored::F32 {
            return Err(bad(path, name, format!("is not {pairs} numbers in F32")));
        }
        let factors = self.read(name, place)?;
        let factors = place.stored.decoded(&factors);
        match factors.iter().find(|factor| !factor.is_finite() || **factor <= 0.0) {
            Some(odd) => Err(bad(path, name, format!("holds {odd}"))),
            None if name == FREQUENCY_FACTORS && factors.iter().all(|factor| *factor == 1.0) => Ok(Vec::new()),
            None => Ok(factors),
        }
    }

    fn add_tensor_of_gguf(
        &mut self,
        config: &Config,
        (file, path): (usize, &str),
        name: String,
        tensor: StoredTensor,
    ) -> Result<()> {
        let bytes =
            usize::try_from(tensor.bytes).map_err(|_| bad(path, &name, format!("has {} bytes", tensor.bytes)))?;
        let stored = Stored::of_gguf(tensor.number, tensor.block);
        let place = |own_name: String, shape: &[usize], offset, bytes, neighbours| Place {
            file,
            stored,
            shape: shape.into(),
            offset,
            bytes,
            own_name: Some(own_name.into()),
            neighbours,
            made: None,
        };
        let Some((layer, part, [experts, shape @ ..])) = of_experts(&name).map(|(l, p)| (l, p, &tensor.shape[..]))
        else {
            let (neighbours, published) = (neighbours(config, &name, &tensor.shape), published_name(&name));
            // Where no norm stands behind the attention, this name is that of the one before the feed-forward part (gpt-oss).
            let published = match config.norms {
                BlockNorms::Before => published.replace(".post_self_attn_layernorm.", ".post_attention_layernorm."),
                _ => published,
            };
            let published = match config.files.fused_gate_up {
                true => published.replace(".mlp.up_proj.", &format!(".{}.", FUSED_UP.1)),
                false => published,
            };
            let shape = match tensor.shape[..] {
                // Of heads, one below the other.
                [heads, rows, columns] if is_of_heads(&name) => &[heads.saturating_mul(rows), columns][..],
                _ => &tensor.shape,
            };
            return self.insert(path, published, place(name, shape, tensor.first, bytes, neighbours));
        };
        for expert in 0..*experts {
            let published = format!("model.layers.{layer}.mlp.experts.{expert}.{part}.weight");
            let (own, bytes) = (format!("{name}[{expert}]"), bytes / experts);
            let first = tensor.first + (expert * bytes) as u64;
            self.insert(path, published, place(own, shape, first, bytes, None))?;
        }
        Ok(())
    }

    fn insert(&mut self, path: &str, published: String, place: Place) -> Result<()> {
        match self.tensors.entry(published) {
            Entry::Vacant(entry) => drop(entry.insert(place)),
            Entry::Occupied(entry) => {
                let other = self.files.get(entry.get().file).map_or(path, |file| &file.path);
                let name = place.own_name.as_deref().unwrap_or(entry.key());
                return Err(bad(path, name, format!("is in {other} as well")));
            }
        }
        Ok(())
    }
}

/// That the files are those of one model, in order.
fn check_parts(headers: &[&Gguf]) -> Result<()> {
    for (number, header) in headers.iter().enumerate() {
        let count = header.count("split.count", 0..=1 << 16)?.unwrap_or(1).max(1);
        if count != headers.len() {
            return Err(header.bad("split.count", &format!("and here are {} files of that model", headers.len())));
        }
        if headers.len() > 1 && header.count("split.no", 0..=1 << 16)? != Some(number) {
            return Err(header.bad("split.no", &format!("is not {number}, as by its name")));
        }
    }
    let found: usize = headers.iter().map(|header| header.tensors.len()).sum();
    let Some(first) = headers.first() else { return Ok(()) };
    match first.count("split.tensors.count", 0..=usize::MAX)? {
        Some(wanted) if headers.len() > 1 && wanted != found => {
            let why = format!("and the {} files have {found} tensors", headers.len());
            Err(first.bad("split.tensors.count", &why))
        }
        _ => Ok(()),
    }
}

/// The number of a layer, and the rest of a name.
fn of_layer(name: &str) -> Option<(&str, &str)> {
    let (number, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    number.bytes().all(|b| b.is_ascii_digit()).then_some((number, rest))
}

/// The layer and the part of a tensor of all experts.
fn of_experts(name: &str) -> Option<(&str, &'static str)> {
    let (layer, rest) = of_layer(name)?;
    let part = rest.strip_suffix(".weight")?;
    OF_EXPERTS.iter().find(|(own, _)| *own == part).map(|(_, published)| (layer, *published))
}

/// Whether a tensor is one matrix for each head.
fn is_of_heads(name: &str) -> bool {
    of_layer(name).is_some_and(|(_, rest)| ["attn_k_b.weight", "attn_v_b.weight"].contains(&rest))
}

/// How many rows of a head of queries or keys lie as neighbours rotate.
fn neighbours(config: &Config, name: &str, shape: &[usize]) -> Option<usize> {
    let AttentionConfig::Gqa { .. } = config.attention else { return None };
    let (_, rest) = of_layer(name)?;
    let own = ["attn_q.weight", "attn_k.weight", "attn_q.bias", "attn_k.bias"].contains(&rest);
    let whole = shape.first().is_some_and(|rows| rows.is_multiple_of(config.head_dim));
    (own && config.files.reordered && whole).then_some(config.head_dim)
}

/// The published name of what ggml calls so; of what is not known one that says where it belongs.
fn published_name(name: &str) -> String {
    let (stem, end) = name.rsplit_once('.').unwrap_or((name, ""));
    let of = |table: &[(&str, &'static str)], stem: &str| {
        table.iter().find(|(own, _)| *own == stem).map(|(_, published)| *published)
    };
    if name == FREQUENCY_FACTORS || LONG_FACTORS.contains(&name) {
        return name.into();
    }
    let Some((layer, rest)) = of_layer(name) else {
        let published = of(&GLOBAL, stem).map_or_else(|| format!("model.{stem}"), str::to_string);
        return format!("{published}.{end}");
    };
    if let Some((_, published)) = WHOLE_NAMES.iter().find(|(own, _)| *own == rest) {
        return format!("model.layers.{layer}.{published}");
    }
    let (part, end) = rest.rsplit_once('.').unwrap_or((rest, ""));
    // What is computed anew has no weight in its name.
    match of(&OF_LAYER, part) {
        Some(published) if published.ends_with("inv_freq") => format!("model.layers.{layer}.{published}"),
        published => format!("model.layers.{layer}.{}.{end}", published.unwrap_or(part)),
    }
}

/// What ggml calls what has this published name.
fn ggml_name(published: &str) -> String {
    let own = |table: &[(&'static str, &str)], stem: &str| {
        table.iter().find(|(_, published)| *published == stem).map(|(own, _)| *own)
    };
    let named = || {
        let (stem, end) = published.rsplit_once('.')?;
        if let Some(own) = own(&GLOBAL, stem) {
            return Some(format!("{own}.{end}"));
        }
        let (layer, rest) = published.strip_prefix("model.layers.")?.split_once('.')?;
        if let Some(own) = own(&WHOLE_NAMES, rest) {
            return Some(format!("blk.{layer}.{own}"));
        }
        let (part, end) = rest.rsplit_once('.')?;
        if let Some(own) = own(&OF_LAYER, part).or(own(&[FUSED_UP], part)) {
            return Some(format!("blk.{layer}.{own}.{end}"));
        }
        let (_, part) = part.strip_prefix("mlp.experts.")?.split_once('.')?;
        own(&OF_EXPERTS, part).map(|own| format!("blk.{layer}.{own}.{end}"))
    };
    named().unwrap_or_else(|| published.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        for (own, published) in GLOBAL {
            assert_eq!(published_name(&format!("{own}.weight")), format!("{published}.weight"));
            assert_eq!(ggml_name(&format!("{published}.weight")), format!("{own}.weight"));
        }
        for (own, published) in OF_LAYER.into_iter().filter(|(own, _)| *own != "attn_rot_embd") {
            for end in ["weight", "bias"] {
                let (own, published) = (format!("blk.17.{own}.{end}"), format!("model.layers.17.{published}.{end}"));
                assert_eq!(published_name(&own), published);
                assert_eq!(ggml_name(&published), own);
            }
        }
        assert_eq!(ggml_name("model.layers.3.mlp.experts.5.up_proj.weight"), "blk.3.ffn_up_exps.weight");
        assert_eq!(ggml_name("model.layers.3.mlp.gate_up_proj.weight"), "blk.3.ffn_up.weight");
        assert_eq!(ggml_name("model.layers.3.mlp.gate.e_score_correction_bias"), "blk.3.exp_probs_b.bias");
        assert_eq!(published_name("blk.3.exp_probs_b.bias"), "model.layers.3.mlp.gate.e_score_correction_bias");
        assert_eq!(published_name("blk.3.attn_sinks.weight"), "model.layers.3.self_attn.sinks");
        assert_eq!(ggml_name("model.layers.3.self_attn.sinks"), "blk.3.attn_sinks.weight");
        // What is not known is a weight of the model all the same.
        assert_eq!(published_name("blk.3.attn_what.weight"), "model.layers.3.attn_what.weight");
        assert_eq!(published_name("token_embd_norm.weight"), "model.token_embd_norm.weight");
        assert_eq!(published_name("blk.0.attn_rot_embd.weight"), "model.layers.0.self_attn.rotary_emb.inv_freq");
    }
}
