//! `config.json`: the numbers of a model. Pure.
#![warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

mod architectures;
#[allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)] // of numbers that `keys` has bounded
mod authors;
mod bounds;
#[allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)] // of numbers that `keys` has bounded
mod experts;
mod families;
#[allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)] // of numbers that it bounds where they come in
pub(crate) mod gguf;
#[allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)] // of numbers that `gguf` has bounded
mod gguf_rope;
#[allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)] // it bounds them
pub(crate) mod keys;
mod layers;
mod names;
#[allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)] // of numbers that `keys` has bounded
mod own;
#[allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)] // of numbers that `keys` has bounded
mod published;
pub(crate) mod quantised;
#[allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)] // of numbers that `keys` has bounded
mod rope_keys;
pub(crate) mod share;
#[allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)] // of numbers that `keys` has bounded
mod window_keys;

pub use layers::{Activation, BlockNorms, LayerKind, LayerRope, LongRope, QkNorm};

use keys::Keys;
pub(crate) use names::TensorNames;
use quantised::Quantised;

use crate::error::Result;
use crate::kv::{Gla, Gqa, Gta, HeadLayout, Mla};
use crate::nn::RouteShape;
use crate::rope::RopeScaling;
use std::fmt;

/// The numbers of a model. The names are those of the keys of this crate's own `config.json`. [`Config::parse`] reads them from
/// a file; [`Config::new`] begins with few of them, for a layer by itself.
#[derive(Clone, PartialEq)]
pub struct Config {
    /// `attention` and the keys that go with it.
    pub attention: AttentionConfig,
    /// `vocab_size`: tokens.
    pub vocab_size: usize,
    /// `hidden_size`: width of the residual stream, a multiple of 4.
    pub hidden_size: usize,
    /// `num_hidden_layers`.
    pub layers: usize,
    /// `num_attention_heads`: query heads.
    pub q_heads: usize,
    /// `head_dim`: width of a head; GLA and MLA: of its part without position.
    pub head_dim: usize,
    /// Width of a head's value; GQA, GTA, and this crate's own folders: `head_dim`.
    pub v_head_dim: usize,
    /// `intermediate_size`: width of the SwiGLU.
    pub intermediate_size: usize,
    /// The layers whose feed-forward part is a mixture of experts; none in this crate's own folders.
    pub experts: Option<ExpertsConfig>,
    /// `rms_norm_eps`.
    pub rms_norm_eps: f32,
    /// Norms of GQA's queries and keys; of this crate's own folders none.
    pub qk_norm: QkNorm,
    /// Where the norms of a block are; of this crate's own folders before attention and feed-forward.
    pub norms: BlockNorms,
    /// What embeddings are multiplied by (Granite); 1 for nothing, as of the two below.
    pub embedding_scale: f32,
    /// What attention and feed-forward part are multiplied by before they are added to the stream.
    pub residual_scale: f32,
    /// What logits are multiplied by.
    pub logit_scale: f32,
    /// What logits are capped at: `cap tanh(logit / cap)` (Gemma 2); none for nothing.
    pub logit_softcap: Option<f32>,
    /// What scores are capped at, before the softmax. A [`Decode`](crate::Decode) for a layer by itself wants it in its
    /// [`AttentionOptions`](crate::AttentionOptions).
    pub score_softcap: Option<f32>,
    /// Whether each query head has a sink, a score beside those of the tokens that a token sees (gpt-oss), of GQA alone. A
    /// [`Decode`](crate::Decode) for a layer by itself wants [`AttentionOptions::sinks`](crate::AttentionOptions::sinks).
    pub sinks: bool,
    /// What is between gate and up.
    pub activation: Activation,
    /// Of each layer what it differs in from others; empty where all are alike.
    pub layer_kinds: Vec<LayerKind>,
    /// Elements of GQA's heads that rotate, the first ones (`partial_rotary_factor`); none for all.
    pub rotated_dim: Option<usize>,
    /// Of the norms inside GLA and MLA.
    pub latent_norm_eps: f32,
    /// `rope_theta`.
    pub rope_theta: f64,
    /// What becomes of the frequencies.
    pub rope_scaling: RopeScaling,
    /// What the frequency of each pair is divided by, after `rope_scaling`: half as many numbers as elements rotate, as GGUF files of
    /// Llama 3 have them; empty for nothing.
    pub rope_factors: Vec<f32>,
    /// Other such factors for longer sequences.
    pub long_rope: Option<LongRope>,
    /// What rotated elements, of queries and of keys, are multiplied by (YaRN's "attention factor"); 1 for nothing.
    pub rope_gain: f32,
    /// `rope_interleaved`: pairs (2i, 2i + 1) instead of (i, i + rope_dim / 2).
    pub rope_interleaved: bool,
    /// A factor on the scores beside the usual one (DeepSeek's `mscale` squared); 1 for nothing.
    pub score_gain: f32,
    /// `max_position_embeddings`: tokens of the longest sequence.
    pub max_positions: usize,
    /// `sliding_window`: tokens that a token sees, its own included, in every layer; none for all (in this crate's own
    /// folders the key may be left out). A [`Session`](super::Session) sees no further, whatever its options; a
    /// [`Decode`](crate::Decode) for a layer by itself wants it in its [`AttentionOptions`](crate::AttentionOptions).
    pub window: Option<usize>,
    /// `tie_word_embeddings`: the embedding table is the output matrix too, unless the files have an `lm_head.weight` that
    /// differs from it, which is used then (as in transformers).
    pub tied: bool,
    /// What the files of the weights are like, which is no number of the model.
    pub(crate) files: FileFacts,
}

/// What a `config.json` says of the files of the weights.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FileFacts {
    /// What the attention's tensors are called.
    pub(crate) names: TensorNames,
    /// The projections that have a bias, by the last part of their names (`q_proj`): one that is missing in the files is
    /// an error, and so is one of others that is not all 0 ([`LoadOptions::leave_out`](super::LoadOptions)). None for those
    /// that the files have.
    pub(crate) biases: Option<Vec<&'static str>>,
    /// Whether queries, keys and values are one matrix (`qkv_proj`).
    pub(crate) fused_qkv: bool,
    /// Whether gate and up are one (`gate_up_proj`).
    pub(crate) fused_gate_up: bool,
    /// Whether gains of norms are one more than the numbers (Gemma).
    pub(crate) gains_from_one: bool,
    /// Whether rows of queries and keys lie as neighbours rotate, and are to be those of halves (GGUF files of Llamas).
    pub(crate) reordered: bool,
    /// Whether matrices are quantised in several tensors each.
    pub(crate) quantised: Option<Quantised>,
}

/// [`Decoder::fingerprint`](super::Decoder::fingerprint) is made of this text, so it may not change: saved sessions would be
/// refused.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("Config");
        fields
            .field("attention", &self.attention)
            .field("vocab_size", &self.vocab_size)
            .field("hidden_size", &self.hidden_size)
            .field("layers", &self.layers)
            .field("q_heads", &self.q_heads)
            .field("head_dim", &self.head_dim)
            .field("v_head_dim", &self.v_head_dim)
            .field("intermediate_size", &self.intermediate_size)
            .field("experts", &self.experts)
            .field("rms_norm_eps", &self.rms_norm_eps)
            .field("latent_norm_eps", &self.latent_norm_eps)
            .field("rope_theta", &self.rope_theta)
            .field("rope_scaling", &self.rope_scaling)
            .field("rope_gain", &self.rope_gain)
            .field("rope_interleaved", &self.rope_interleaved)
            .field("score_gain", &self.score_gain)
            .field("max_positions", &self.max_positions)
            .field("window", &self.window)
            .field("tied", &self.tied)
            .field("names", &self.files.names)
            .field("biases", &self.files.biases);
        if !self.rope_factors.is_empty() {
            fields.field("rope_factors", &self.rope_factors);
        }
        match self.qk_norm {
            QkNorm::None => {}
            QkNorm::Heads => drop(fields.field("qk_norm", &true)),
            QkNorm::Whole => drop(fields.field("qk_norm", &self.qk_norm)),
        }
        self.add_further(&mut fields);
        fields.finish()
    }
}

impl Config {
    /// Fields of [`Config`]'s text that are there only where they are not a Llama's.
    fn add_further(&self, fields: &mut fmt::DebugStruct<'_, '_>) {
        if self.norms != BlockNorms::Before {
            fields.field("norms", &self.norms);
        }
        for (name, scale) in [
            ("embedding_scale", self.embedding_scale),
            ("residual_scale", self.residual_scale),
            ("logit_scale", self.logit_scale),
        ] {
            if scale != 1.0 {
                fields.field(name, &scale);
            }
        }
        for (name, cap) in [("logit_softcap", self.logit_softcap), ("score_softcap", self.score_softcap)] {
            if cap.is_some() {
                fields.field(name, &cap);
            }
        }
        if self.sinks {
            fields.field("sinks", &true);
        }
        if self.activation != Activation::Silu {
            fields.field("activation", &self.activation);
        }
        if !self.layer_kinds.is_empty() {
            fields.field("layer_kinds", &self.layer_kinds);
        }
        if self.rotated_dim.is_some() {
            fields.field("rotated_dim", &self.rotated_dim);
        }
        if self.long_rope.is_some() {
            fields.field("long_rope", &self.long_rope);
        }
    }
}

/// A mixture of experts, as DeepSeek's models have it, with shared experts, and Mixtral and Qwen3's, without.
#[derive(Clone, Copy, PartialEq)]
pub struct ExpertsConfig {
    /// The first layer that has one; all after it have.
    pub first_layer: usize,
    /// How experts are chosen, and their number.
    pub route: RouteShape,
    /// Whether the choice has a bias of its own (DeepSeek-V3).
    pub biased: bool,
    /// Whether the router and the experts' products have biases (gpt-oss).
    pub with_biases: bool,
    /// Width of an expert's SwiGLU.
    pub width: usize,
    /// Width of the SwiGLU that every token goes through; 0 for none.
    pub shared_width: usize,
}

/// Part of [`Config`]'s text, which may not change: a field that is newer stands there only where it is not what it was before.
impl fmt::Debug for ExpertsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ExpertsConfig { first_layer, route, biased, with_biases, width, shared_width } = self;
        let mut fields = f.debug_struct("ExpertsConfig");
        fields.field("first_layer", first_layer).field("route", route).field("biased", biased);
        if *with_biases {
            fields.field("with_biases", with_biases);
        }
        fields.field("width", width).field("shared_width", shared_width).finish()
    }
}

/// What the variants of attention differ in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AttentionConfig {
    /// `"gqa"`: grouped-query; the whole head rotates.
    Gqa {
        /// `num_key_value_heads`.
        kv_heads: usize,
    },
    /// `"gta"`: grouped-tied.
    Gta {
        /// `num_key_value_heads`.
        kv_heads: usize,
        /// `rope_dim`.
        rope_dim: usize,
    },
    /// `"gla"` and, with one latent head, `"mla"`.
    Latent {
        /// `latent_heads`.
        latent_heads: usize,
        /// `latent_dim`: width of ONE latent head.
        latent_dim: usize,
        /// `q_latent_dim`; none where queries are made without a latent.
        q_latent_dim: Option<usize>,
        /// `rope_dim`.
        rope_dim: usize,
    },
}

impl Config {
    /// A model of these numbers, of which the others are a plain Llama's, to be set where they differ: one layer of a vocabulary
    /// of 256, `v_head_dim` as `head_dim`, an `intermediate_size` of 4 times the hidden one, no experts, epsilons of 1e-6, a
    /// `rope_theta` of 10,000 in halves and without scaling, 2,048 positions, no window, embeddings that are not tied. Its tensors
    /// have the names of published models, and the biases that the files have. Numbers are checked where the config is used.
    pub fn new(attention: AttentionConfig, hidden_size: usize, q_heads: usize, head_dim: usize) -> Self {
        Config {
            attention,
            vocab_size: 256,
            hidden_size,
            layers: 1,
            q_heads,
            head_dim,
            v_head_dim: head_dim,
            intermediate_size: hidden_size.saturating_mul(4),
            experts: None,
            rms_norm_eps: 1e-6,
            qk_norm: QkNorm::None,
            norms: BlockNorms::Before,
            embedding_scale: 1.0,
            residual_scale: 1.0,
            logit_scale: 1.0,
            logit_softcap: None,
            score_softcap: None,
            sinks: false,
            activation: Activation::Silu,
            layer_kinds: Vec::new(),
            rotated_dim: None,
            latent_norm_eps: 1e-6,
            rope_theta: 1e4,
            rope_scaling: RopeScaling::None,
            rope_factors: Vec::new(),
            long_rope: None,
            rope_gain: 1.0,
            rope_interleaved: false,
            score_gain: 1.0,
            max_positions: 2048,
            window: None,
            tied: false,
            files: FileFacts::default(),
        }
    }

    /// Reads the text of a `config.json`, this crate's own (`"model_type": "latten"`) or one of the published families
    /// that the [module](super) names; `path` is for messages.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](crate::ErrorKind::Config), naming the key and its value.
    pub fn parse(path: &str, json: &str) -> Result<Self> {
        let keys = Keys::parse(path, json)?;
        let family = keys.word_of("model_type", &families::names(), ", the families that latten reads")?;
        let config = match families::FAMILIES.iter().find(|known| known.model_type == family) {
            None => own::config(&keys)?,
            Some(family) => published::config(&keys, family)?,
        };
        if !config.hidden_size.is_multiple_of(4) {
            return Err(keys.bad("hidden_size", "is not a multiple of 4"));
        }
        let fits = config.layout();
        fits.map_err(|e| keys.error(format!("the attention's sizes do not fit: {e}")))?;
        Ok(config)
    }

    /// `"gqa"`, `"gta"`, `"gla"` or `"mla"`.
    pub fn variant(&self) -> &'static str {
        match self.attention {
            AttentionConfig::Gqa { .. } => "gqa",
            AttentionConfig::Gta { .. } => "gta",
            AttentionConfig::Latent { latent_heads: 1, .. } => "mla",
            AttentionConfig::Latent { .. } => "gla",
        }
    }

    /// The numbers by which cache and kernels know the attention.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for numbers that no variant of attention has.
    pub fn layout(&self) -> Result<HeadLayout> {
        let (q_heads, head_dim) = (self.q_heads, self.head_dim);
        match self.attention {
            AttentionConfig::Gqa { kv_heads } => HeadLayout::gqa(Gqa { q_heads, kv_heads, head_dim }),
            AttentionConfig::Gta { kv_heads, rope_dim } => {
                HeadLayout::gta(Gta { q_heads, kv_heads, head_dim, rope_dim })
            }
            AttentionConfig::Latent { latent_heads: 1, latent_dim, rope_dim, .. } => {
                HeadLayout::mla(Mla { q_heads, latent_dim, rope_dim })
            }
            AttentionConfig::Latent { latent_heads, latent_dim, rope_dim, .. } => {
                HeadLayout::gla(Gla { q_heads, latent_heads, latent_dim, rope_dim })
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)]
mod tests {
    use super::*;

    /// Saved sessions know their model by a sum of this text.
    #[test]
    fn the_text_that_fingerprints_are_made_of_stays() {
        let mut config = Config::new(AttentionConfig::Gta { kv_heads: 2, rope_dim: 8 }, 64, 4, 16);
        let want = "Config { attention: Gta { kv_heads: 2, rope_dim: 8 }, vocab_size: 256, hidden_size: 64, layers: 1, q_heads: 4, \
                    head_dim: 16, v_head_dim: 16, intermediate_size: 256, experts: None, rms_norm_eps: 1e-6, \
                    latent_norm_eps: 1e-6, rope_theta: 10000.0, rope_scaling: None, rope_gain: 1.0, rope_interleaved: false, \
                    score_gain: 1.0, max_positions: 2048, window: None, tied: false, names: Published, biases: None }";
        assert_eq!(format!("{config:?}"), want);
        config.files =
            FileFacts { names: TensorNames::Authors, biases: Some(vec!["W_rope_k"]), ..FileFacts::default() };
        let end = "tied: false, names: Authors, biases: Some([\"W_rope_k\"]) }";
        assert!(format!("{config:?}").ends_with(end), "{config:?}");
    }
}
