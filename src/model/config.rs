//! `config.json`: the numbers of a model. Pure.

use crate::attention::{Gla, Gqa, Gta, HeadLayout, Mla, Rotation};
use crate::error::{Error, ErrorKind, Result};
use crate::nn::Rope;
use serde_json::{Map, Value};

/// The numbers of a model. Every key of `config.json` is required.
#[derive(Debug, Clone, PartialEq)]
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
    /// `intermediate_size`: width of the SwiGLU.
    pub intermediate_size: usize,
    /// `rms_norm_eps`.
    pub rms_norm_eps: f32,
    /// `rope_theta`.
    pub rope_theta: f64,
    /// `rope_interleaved`: pairs (2i, 2i + 1) instead of (i, i + rope_dim / 2).
    pub rope_interleaved: bool,
    /// `max_position_embeddings`: tokens of the longest sequence.
    pub max_positions: usize,
    /// `tie_word_embeddings`: the embedding table is the output matrix too.
    pub tied: bool,
}

/// What the variants of attention differ in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
        /// `q_latent_dim`.
        q_latent_dim: usize,
        /// `rope_dim`.
        rope_dim: usize,
    },
}

impl Config {
    /// Reads the text of a `config.json`; `path` is for messages.
    ///
    /// Errors: [`ErrorKind::Config`], naming the key and its value.
    pub fn parse(path: &str, json: &str) -> Result<Self> {
        let bad = |message: String| Error::from(ErrorKind::Config { path: path.into(), message });
        let value: Value = serde_json::from_str(json).map_err(|e| bad(format!("not JSON: {e}")))?;
        let Value::Object(map) = value else { return Err(bad("not a JSON object".into())) };
        let keys = Keys { path, map };
        keys.word("model_type", &["latten"])?;
        keys.word("tokenizer", &["bytes"])?;
        let config = Config {
            attention: keys.attention()?,
            vocab_size: keys.size("vocab_size", 1 << 24)?,
            hidden_size: keys.size("hidden_size", 1 << 16)?,
            layers: keys.size("num_hidden_layers", 1 << 10)?,
            q_heads: keys.size("num_attention_heads", 1 << 14)?,
            head_dim: keys.size("head_dim", 1 << 14)?,
            intermediate_size: keys.size("intermediate_size", 1 << 20)?,
            rms_norm_eps: keys.number("rms_norm_eps", 1e-12..=1e-1)? as f32,
            rope_theta: keys.number("rope_theta", 1.0..=1e12)?,
            rope_interleaved: keys.flag("rope_interleaved")?,
            max_positions: keys.size("max_position_embeddings", 1 << 24)?,
            tied: keys.flag("tie_word_embeddings")?,
        };
        if !config.hidden_size.is_multiple_of(4) {
            return Err(keys.bad("hidden_size", "is not a multiple of 4"));
        }
        if config.vocab_size < 256 {
            return Err(keys.bad("vocab_size", "is below 256, the tokens of tokenizer \"bytes\""));
        }
        let (rope_key, groups_key, groups) = match config.attention {
            AttentionConfig::Gqa { kv_heads } => ("head_dim", "num_key_value_heads", kv_heads),
            AttentionConfig::Gta { kv_heads, .. } => ("rope_dim", "num_key_value_heads", kv_heads),
            AttentionConfig::Latent { latent_heads, .. } => ("rope_dim", "latent_heads", latent_heads),
        };
        if !config.rope_dim().is_multiple_of(2) {
            return Err(keys.bad(rope_key, "is odd, so it cannot be rotated in pairs"));
        }
        if !config.q_heads.is_multiple_of(groups) {
            let why = format!("does not divide num_attention_heads = {}", config.q_heads);
            return Err(keys.bad(groups_key, &why));
        }
        if matches!(config.attention, AttentionConfig::Gta { rope_dim, .. } if rope_dim > config.head_dim) {
            return Err(keys.bad("rope_dim", &format!("exceeds head_dim = {}", config.head_dim)));
        }
        config.layout().map_err(|e| bad(format!("the attention's sizes do not fit: {e}")))?;
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

    /// Elements of a head that are rotated.
    pub fn rope_dim(&self) -> usize {
        match self.attention {
            AttentionConfig::Gqa { .. } => self.head_dim,
            AttentionConfig::Gta { rope_dim, .. } | AttentionConfig::Latent { rope_dim, .. } => rope_dim,
        }
    }

    /// Frequencies and pairs of the rotation.
    pub fn rope(&self) -> Rope {
        let rotation = if self.rope_interleaved { Rotation::Interleaved } else { Rotation::Half };
        Rope::new(self.rope_dim(), self.rope_theta, rotation)
    }

    /// Factor on the scores: the width of a head before absorption, to the power -1/2.
    pub fn softmax_scale(&self) -> f32 {
        let width = match self.attention {
            AttentionConfig::Latent { rope_dim, .. } => self.head_dim + rope_dim,
            _ => self.head_dim,
        };
        (width as f32).powf(-0.5)
    }
}

/// A JSON object whose keys are asked for one by one.
struct Keys<'a> {
    path: &'a str,
    map: Map<String, Value>,
}

impl Keys<'_> {
    /// `key num_attention_heads = 7 <why>`.
    fn bad(&self, key: &str, why: &str) -> Error {
        let message = match self.map.get(key) {
            Some(value) => format!("key {key} = {value} {why}"),
            None => format!("key {key} is missing"),
        };
        ErrorKind::Config { path: self.path.into(), message }.into()
    }

    fn size(&self, key: &str, most: usize) -> Result<usize> {
        let value = self.map.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        let value = value.filter(|n| (1..=most).contains(n));
        value.ok_or_else(|| self.bad(key, &format!("is not a whole number in 1..={most}")))
    }

    fn number(&self, key: &str, range: std::ops::RangeInclusive<f64>) -> Result<f64> {
        let value = self.map.get(key).and_then(Value::as_f64).filter(|n| range.contains(n));
        value.ok_or_else(|| self.bad(key, &format!("is not a number in {range:?}")))
    }

    fn flag(&self, key: &str) -> Result<bool> {
        self.map.get(key).and_then(Value::as_bool).ok_or_else(|| self.bad(key, "is neither true nor false"))
    }

    fn word(&self, key: &str, known: &[&'static str]) -> Result<&'static str> {
        let value = self.map.get(key).and_then(Value::as_str);
        let found = known.iter().find(|k| Some(**k) == value);
        found.copied().ok_or_else(|| self.bad(key, &format!("is not among {known:?}")))
    }

    fn attention(&self) -> Result<AttentionConfig> {
        let width = 1 << 14;
        let variant = self.word("attention", &["gqa", "gta", "gla", "mla"])?;
        Ok(match variant {
            "gqa" => AttentionConfig::Gqa { kv_heads: self.size("num_key_value_heads", width)? },
            "gta" => AttentionConfig::Gta {
                kv_heads: self.size("num_key_value_heads", width)?,
                rope_dim: self.size("rope_dim", width)?,
            },
            _ => {
                let latent_heads = self.size("latent_heads", width)?;
                if variant == "mla" && latent_heads != 1 {
                    return Err(self.bad("latent_heads", "is not 1, as \"attention\": \"mla\" wants"));
                }
                AttentionConfig::Latent {
                    latent_heads,
                    latent_dim: self.size("latent_dim", width)?,
                    q_latent_dim: self.size("q_latent_dim", 1 << 16)?,
                    rope_dim: self.size("rope_dim", width)?,
                }
            }
        })
    }
}
