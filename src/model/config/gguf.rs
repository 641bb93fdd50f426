//! The numbers of a model by a GGUF file's metadata, and by what `architectures` knows of each architecture. Pure. A key that would change what the model computes, and is not known here, is refused by name.
//!
//! Source: github.com/ggml-org/llama.cpp, `gguf-py/gguf/constants.py` and the hparams of `src/llama-model.cpp`.

use super::architectures::{names, Architecture, ARCHITECTURES};
use super::layers::{LayerKind, LayerRope};
use super::names::TensorNames;
use super::published::DEEPSEEK_LATENT_EPS;
use super::{AttentionConfig, Config, ExpertsConfig, FileFacts};
use crate::error::{Error, Result};
use crate::io::gguf::value::MetadataValue;
use crate::io::gguf::Gguf;
use crate::nn::RouteShape;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;

const WIDTH: usize = 1 << 14;
const ARCHITECTURE: &str = "general.architecture";

/// Keys behind the architecture's name that change nothing here.
const HARMLESS: [&str; 7] = [
    "vocab_size",
    "tensor_data_layout",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "attention.layer_norm_epsilon",
    "expert_used_count",
    "expert_feed_forward_length",
];

/// What the tensors of a file tell of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TensorFacts {
    /// Rows of the embedding.
    pub(crate) vocab_size: usize,
    /// Whether there is no other output matrix.
    pub(crate) tied: bool,
    /// Whether experts are chosen with a bias.
    pub(crate) biased_experts: bool,
    /// Whether frequencies are divided by other numbers for longer sequences.
    pub(crate) long_factors: bool,
}

/// Refuses a file whose architecture is not read.
///
/// Errors: [`ErrorKind::Config`](crate::ErrorKind::Config).
pub(crate) fn check_architecture(file: &Gguf) -> Result<()> {
    architecture(file).map(drop)
}

fn architecture(file: &Gguf) -> Result<&'static Architecture> {
    let name = file.text(ARCHITECTURE)?.ok_or_else(|| file.bad(ARCHITECTURE, ""))?;
    let known = ARCHITECTURES.iter().find(|known| known.name == name);
    known.ok_or_else(|| file.bad(ARCHITECTURE, &format!("is not among {:?}, which latten reads", names())))
}

/// Tokens of the sequences of training, where a file says so.
///
/// Errors: [`ErrorKind::Config`](crate::ErrorKind::Config).
pub(crate) fn original_positions(file: &Gguf) -> Result<Option<usize>> {
    file.count(&format!("{}.rope.scaling.original_context_length", architecture(file)?.name), 1..=1 << 24)
}

impl Config {
    /// The model of a GGUF file.
    ///
    /// Errors: [`ErrorKind::Config`](crate::ErrorKind::Config), naming the key and its value.
    pub(crate) fn of_gguf(file: &Gguf, facts: TensorFacts) -> Result<Config> {
        if file.text("general.type")?.is_some_and(|kind| kind != "model") {
            return Err(file.bad("general.type", "is not \"model\""));
        }
        let keys = ArchKeys { file, architecture: architecture(file)?, asked: RefCell::default() };
        let config = keys.config(facts)?;
        keys.refuse_others()?;
        if !config.hidden_size.is_multiple_of(4) {
            return Err(keys.bad("embedding_length", "is not a multiple of 4"));
        }
        let unfit = |e: Error| keys.bad("attention.head_count", &format!(": the attention's sizes do not fit: {e}"));
        config.layout().map_err(unfit)?;
        config.check().map_err(|e| keys.bad("embedding_length", &format!(": {e}")))?;
        Ok(config)
    }
}

/// The keys behind an architecture's name, asked for one by one.
pub(super) struct ArchKeys<'a> {
    pub(super) file: &'a Gguf,
    pub(super) architecture: &'static Architecture,
    asked: RefCell<BTreeSet<&'static str>>,
}

impl ArchKeys<'_> {
    pub(super) fn key(&self, name: &'static str) -> String {
        self.asked.borrow_mut().insert(name);
        format!("{}.{name}", self.architecture.name)
    }

    pub(super) fn bad(&self, name: &'static str, why: &str) -> Error {
        self.file.bad(&self.key(name), why)
    }

    pub(super) fn has(&self, name: &'static str) -> bool {
        self.file.get(&self.key(name)).is_some()
    }

    pub(super) fn count(&self, name: &'static str, range: RangeInclusive<usize>) -> Result<Option<usize>> {
        self.file.count(&self.key(name), range)
    }

    pub(super) fn size(&self, name: &'static str, most: usize) -> Result<usize> {
        self.count(name, 1..=most)?.ok_or_else(|| self.bad(name, ""))
    }

    /// A size that may be written once, or once for each layer if it is the same in all.
    fn size_of_all(&self, name: &'static str, most: usize) -> Result<Option<usize>> {
        let key = self.key(name);
        let Some(MetadataValue::List(list)) = self.file.get(&key) else { return self.count(name, 1..=most) };
        let mut sizes = list.values().into_iter().flatten().map(|value| value.whole());
        let first = sizes.next().flatten().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=most).contains(n));
        match (first, sizes.all(|other| other == first.map(|n| n as i128))) {
            (Some(size), true) => Ok(Some(size)),
            (None, _) => Err(self.bad(name, &format!("are not whole numbers in 1..={most}"))),
            (_, false) => Err(self.bad(name, "differ from each other: layers of different sizes are not read")),
        }
    }

    pub(super) fn number(&self, name: &'static str, range: RangeInclusive<f64>) -> Result<Option<f64>> {
        self.file.number(&self.key(name), range)
    }

    /// Fails where a key is there and is not this number.
    pub(super) fn must_be(&self, name: &'static str, number: usize) -> Result<()> {
        match self.file.get(&self.key(name)).map(|value| value.number() == Some(number as f64)) {
            Some(false) => Err(self.bad(name, &format!("is not supported, only {number} is"))),
            _ => Ok(()),
        }
    }

    /// Fails for keys of the architecture that nobody asked for.
    fn refuse_others(&self) -> Result<()> {
        let asked = self.asked.borrow();
        let own = |key: &&str| {
            let name = key.strip_prefix(self.architecture.name).and_then(|rest| rest.strip_prefix('.'));
            name.is_some_and(|name| !asked.contains(name) && !HARMLESS.contains(&name))
        };
        match self.file.keys().find(own) {
            Some(key) => Err(self.file.bad(key, "is not known: it may change what the model computes")),
            None => Ok(()),
        }
    }

    fn config(&self, facts: TensorFacts) -> Result<Config> {
        if self.file.flag(&self.key("attention.causal"))? == Some(false) {
            return Err(self.bad("attention.causal", "is not supported: tokens see those before them alone"));
        }
        self.must_be("pooling_type", 0)?;
        self.check_vocabulary(facts.vocab_size)?;
        let hidden_size = self.size("embedding_length", 1 << 16)?;
        let max_positions = self.size("context_length", 1 << 24)?;
        let q_heads = self.size_of_all("attention.head_count", WIDTH)?;
        let q_heads = q_heads.ok_or_else(|| self.bad("attention.head_count", ""))?;
        let eps = "attention.layer_norm_rms_epsilon";
        let rms_norm_eps = self.number(eps, 1e-12..=1e-1)?.ok_or_else(|| self.bad(eps, ""))? as f32;
        let known = self.architecture;
        let rotation = self.rotation(facts.long_factors)?;
        let (attention, head_dim, v_head_dim) =
            if known.latent { self.latent(q_heads)? } else { self.grouped(q_heads, hidden_size)? };
        let window = self.count("attention.sliding_window", 0..=u32::MAX as usize)?;
        let window = window.filter(|window| (1..max_positions).contains(window));
        let intermediate = self.size_of_all("feed_forward_length", 1 << 20)?;
        let layers = self.layers()?;
        let [embedding_scale, residual_scale, logits_divided, attention_scale] = self.multipliers()?;
        Ok(Config {
            vocab_size: facts.vocab_size,
            layers,
            v_head_dim,
            intermediate_size: intermediate.ok_or_else(|| self.bad("feed_forward_length", ""))?,
            experts: self.experts(facts.biased_experts)?,
            rms_norm_eps,
            qk_norm: known.qk_norm,
            norms: known.norms,
            embedding_scale: match known.gemma {
                true => (hidden_size as f64).sqrt() as f32,
                false => embedding_scale.unwrap_or(1.0) as f32,
            },
            residual_scale: residual_scale.unwrap_or(1.0) as f32,
            logit_scale: logits_divided.map_or(1.0, |by| 1.0 / by) as f32,
            logit_softcap: self.softcap("final_logit_softcapping")?,
            score_softcap: self.softcap("attn_logit_softcapping")?,
            sinks: known.sinks,
            activation: known.activation,
            layer_kinds: self.layer_kinds(layers, window)?,
            rotated_dim: if known.latent { None } else { self.rotated(head_dim)? },
            latent_norm_eps: if known.latent { DEEPSEEK_LATENT_EPS } else { rms_norm_eps },
            rope_theta: rotation.theta,
            rope_scaling: rotation.scaling,
            rope_gain: rotation.gain,
            rope_interleaved: known.interleaved,
            score_gain: match attention_scale.or(self.odd_scale(layers, hidden_size / q_heads)) {
                Some(scale) => (scale * (head_dim as f64).sqrt()) as f32,
                None => rotation.score_gain,
            },
            max_positions,
            window: window.filter(|_| known.whole_every.is_none()),
            tied: facts.tied,
            files: FileFacts {
                names: TensorNames::Published,
                biases: known.biases.map(<[_]>::to_vec),
                fused_qkv: known.fused.0,
                fused_gate_up: known.fused.1,
                gains_from_one: false, // writers have added the 1
                reordered: known.reordered,
                quantised: None,
            },
            ..Config::new(attention, hidden_size, q_heads, head_dim)
        })
    }

    /// Those of the model itself: further heads, which guess tokens, stand behind them.
    fn layers(&self) -> Result<usize> {
        let blocks = self.size("block_count", 1 << 10)?;
        let further = self.count("nextn_predict_layers", 0..=blocks - 1)?.unwrap_or(0);
        Ok(blocks - further)
    }

    /// Granite's: of embeddings, of what layers add, what logits are divided by, and the factor on scores in the place of the usual one.
    fn multipliers(&self) -> Result<[Option<f64>; 4]> {
        let mut found = [None; 4];
        let names = ["embedding_scale", "residual_scale", "logit_scale", "attention.scale"];
        for (found, name) in found.iter_mut().zip(names).filter(|_| self.architecture.multipliers) {
            // Writers leave out a 0, and llama.cpp takes it for none.
            *found = self.number(name, 0.0..=1e6)?.filter(|scale| *scale > 0.0);
        }
        Ok(found)
    }

    /// What layers differ in, if they do.
    fn layer_kinds(&self, layers: usize, window: Option<usize>) -> Result<Vec<LayerKind>> {
        let known = self.architecture;
        let theta = match known.theta_of_windows {
            Some(usual) => Some(self.number("rope.freq_base_swa", 1.0 + 1e-6..=1e12)?.unwrap_or(usual)),
            None => None,
        };
        let last_of = |every: Option<usize>, layer: usize| every.is_some_and(|every| layer.is_multiple_of(every));
        let kind = |layer: usize| {
            let windowed = known.whole_every.is_some() && !last_of(known.whole_every, layer);
            let rope = match theta.filter(|_| windowed) {
                _ if last_of(known.still_every, layer) => LayerRope::None,
                Some(theta) => LayerRope::Theta(theta),
                None => LayerRope::Model,
            };
            LayerKind { rope, window: window.filter(|_| windowed) }
        };
        let kinds: Vec<LayerKind> = (1..=layers).map(kind).collect();
        Ok(if kinds.iter().all(|kind| *kind == LayerKind::default()) { Vec::new() } else { kinds })
    }

    /// A cap on logits or scores, where there may be one; 0 stands for none.
    fn softcap(&self, name: &'static str) -> Result<Option<f32>> {
        match self.architecture.gemma {
            true => Ok(self.number(name, 0.0..=1e6)?.filter(|cap| *cap > 0.0).map(|cap| cap as f32)),
            false => Ok(None),
        }
    }

    /// Gemma's models of 27B have another factor on scores, which no key says: llama.cpp knows them by their layers.
    fn odd_scale(&self, layers: usize, width: usize) -> Option<f64> {
        (self.architecture.odd_scale == Some(layers)).then(|| (width as f64).powf(-0.5))
    }

    /// Elements of a head that rotate, if not all.
    fn rotated(&self, head_dim: usize) -> Result<Option<usize>> {
        const KEY: &str = "rope.dimension_count";
        if !self.architecture.partial {
            self.must_be(KEY, head_dim)?;
        }
        let rotated = self.count(KEY, 1..=head_dim)?.unwrap_or(head_dim);
        match rotated.is_multiple_of(2) {
            true => Ok(Some(rotated).filter(|rotated| *rotated < head_dim)),
            false => Err(self.bad(KEY, "is odd, so it cannot be rotated in pairs")),
        }
    }

    /// The tokens that the tokenizer knows must be the embedding's rows.
    fn check_vocabulary(&self, rows: usize) -> Result<()> {
        let key = "tokenizer.ggml.tokens";
        let Some(tokens) = self.file.list(key)? else { return Ok(()) };
        match tokens.count == rows as u64 {
            true => Ok(()),
            false => Err(self.file.bad(key, &format!("of which the embedding token_embd.weight has {rows} rows"))),
        }
    }

    fn grouped(&self, q_heads: usize, hidden: usize) -> Result<(AttentionConfig, usize, usize)> {
        let head_dim = match self.count("attention.key_length", 1..=WIDTH)? {
            Some(head_dim) => head_dim,
            None if hidden.is_multiple_of(q_heads) => hidden / q_heads,
            None => {
                let why = format!("does not divide the embedding_length, {hidden}");
                return Err(self.bad("attention.head_count", &why));
            }
        };
        self.must_be("attention.value_length", head_dim)?;
        if !head_dim.is_multiple_of(2) {
            return Err(self.bad("attention.head_count", &format!("makes heads of {head_dim}, which is odd")));
        }
        let kv_heads = self.size_of_all("attention.head_count_kv", WIDTH)?.unwrap_or(q_heads);
        if !q_heads.is_multiple_of(kv_heads) {
            let why = format!("does not divide attention.head_count = {q_heads}");
            return Err(self.bad("attention.head_count_kv", &why));
        }
        Ok((AttentionConfig::Gqa { kv_heads }, head_dim, head_dim))
    }

    /// Attention, width of a head's part without position, and of its value.
    fn latent(&self, q_heads: usize) -> Result<(AttentionConfig, usize, usize)> {
        let rope_dim = self.size("rope.dimension_count", WIDTH)?;
        let latent_dim = self.size("attention.kv_lora_rank", WIDTH)?;
        // Of newer files, whose attn_kv_b is in two parts, the plain widths are those of what is cached.
        let parted = self.has("attention.key_length_mla") || self.has("attention.value_length_mla");
        let (key, value) = match parted {
            true => {
                self.must_be("attention.head_count_kv", 1)?;
                self.must_be("attention.key_length", latent_dim + rope_dim)?;
                self.must_be("attention.value_length", latent_dim)?;
                ("attention.key_length_mla", "attention.value_length_mla")
            }
            false => {
                self.must_be("attention.head_count_kv", q_heads)?;
                ("attention.key_length", "attention.value_length")
            }
        };
        let both = self.size(key, 2 * WIDTH)?;
        let head_dim = both.checked_sub(rope_dim).filter(|dim| *dim > 0 && rope_dim.is_multiple_of(2));
        let no_room = || format!("has no room for rope.dimension_count = {rope_dim}, or that is odd");
        let head_dim = head_dim.ok_or_else(|| self.bad(key, &no_room()))?;
        let q_latent_dim = self.count("attention.q_lora_rank", 0..=1 << 16)?.filter(|rank| *rank > 0);
        let attention = AttentionConfig::Latent { latent_heads: 1, latent_dim, q_latent_dim, rope_dim };
        Ok((attention, head_dim, self.size(value, WIDTH)?))
    }

    fn experts(&self, biased: bool) -> Result<Option<ExpertsConfig>> {
        let Some(usual) = self.architecture.experts else {
            return self.must_be("expert_count", 0).map(|()| None);
        };
        let experts = self.count("expert_count", 0..=1 << 10)?.unwrap_or(0);
        let first_layer = self.count("leading_dense_block_count", 0..=1 << 10)?.unwrap_or(0);
        let sigmoid = match self.count("expert_gating_func", 0..=2)? {
            None | Some(0 | 1) => false,
            Some(_) => true,
        };
        // Mixtral's and Qwen3's files do not say that theirs are.
        let normalise = self.file.flag(&self.key("expert_weights_norm"))?.unwrap_or(usual);
        let factor = self.number("expert_weights_scale", 0.0..=1e6)?.filter(|factor| *factor > 0.0).unwrap_or(1.0);
        let shared = self.count("expert_shared_count", 0..=1 << 10)?.unwrap_or(0);
        let groups = self.count("expert_group_count", 0..=1 << 10)?.unwrap_or(0).max(1);
        let top_groups = self.count("expert_group_used_count", 0..=groups)?.filter(|n| *n > 0).unwrap_or(groups);
        if experts == 0 || first_layer >= self.layers()? {
            return Ok(None);
        }
        let top = self.size("expert_used_count", experts.min(64))?;
        let width = match self.architecture.reordered && !self.has("expert_feed_forward_length") {
            true => self.size("feed_forward_length", 1 << 20)?,
            false => self.size("expert_feed_forward_length", 1 << 20)?,
        };
        let group_best = if sigmoid && groups > 1 { 2 } else { 1 };
        let factor = factor as f32;
        let route = RouteShape { experts, top, groups, top_groups, group_best, sigmoid, normalise, factor };
        route.check().map_err(|e| self.bad("expert_count", &format!(": {e}")))?;
        let with_biases = self.architecture.sinks;
        Ok(Some(ExpertsConfig { first_layer, route, biased, with_biases, width, shared_width: shared * width }))
    }
}
