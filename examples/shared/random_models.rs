//! The paper's model shapes with random weights: one Llama-style decoder per variant of attention.

use latten::model::{AttentionConfig, Config, Decoder, LoadOptions, WeightBytes};
use latten::{DType, Gpu, Result};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use std::time::{Duration, Instant};

/// A row of the paper's table of models.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Size {
    pub name: &'static str,
    pub layers: usize,
    pub hidden: usize,
    pub heads: usize,
    pub head_dim: usize,
    /// GLA and MLA; GTA has half of `head_dim`.
    pub rope_dim: usize,
    pub vocab: usize,
}

pub const SIZES: [Size; 4] = [
    Size { name: "183m", layers: 12, hidden: 768, heads: 12, head_dim: 64, rope_dim: 32, vocab: 50_304 },
    Size { name: "433m", layers: 24, hidden: 1024, heads: 16, head_dim: 64, rope_dim: 32, vocab: 50_304 },
    Size { name: "876m", layers: 24, hidden: 1536, heads: 16, head_dim: 96, rope_dim: 32, vocab: 50_304 },
    Size { name: "1471m", layers: 24, hidden: 2048, heads: 16, head_dim: 128, rope_dim: 64, vocab: 50_304 },
];

pub const VARIANTS: [&str; 4] = ["gqa-4", "gta-4", "gla-2", "mla"];
/// With the two ends of GQA, as many KV heads as query heads and one.
#[allow(dead_code)] // not all who include this offer them
pub const ALL_VARIANTS: [&str; 6] = ["mha", "mqa", "gqa-4", "gta-4", "gla-2", "mla"];

/// Elements that are drawn; weights are taken from them at one place after another. No power of two.
const DRAWN: usize = 12_000_011;

/// Random bf16 elements that any tensor is a part of.
pub struct Weights {
    matrices: Vec<u8>,
    gains: Vec<u8>,
}

/// A model's tensors: name and shape.
type Tensors = Vec<(String, Vec<usize>)>;

/// About normal values.
fn normal(n: usize, seed: u64) -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..n).map(|_| random.f32() + random.f32() + random.f32() + random.f32() - 2.0).collect()
}

impl Size {
    /// SwiGLU of 2.75 times the stream (5,632 of 2,048), in whole 64s.
    pub fn ffn(&self) -> usize {
        (self.hidden * 11 / 4).next_multiple_of(64)
    }

    pub fn config(&self, variant: &str, max_positions: usize) -> Result<Config> {
        let mut config = json!({
            "model_type": "latten", "vocab_size": self.vocab, "hidden_size": self.hidden,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads, "head_dim": self.head_dim,
            "intermediate_size": self.ffn(), "rms_norm_eps": 1e-6, "rope_theta": 1e4, "rope_interleaved": false,
            "max_position_embeddings": max_positions, "tie_word_embeddings": true, "tokenizer": "bytes",
            "attention": if variant == "mha" || variant == "mqa" { Some("gqa") } else { variant.split('-').next() },
        });
        let latent = |heads: usize| {
            json!({
                "latent_heads": heads, "latent_dim": 4 * self.head_dim / heads, "q_latent_dim": 8 * self.head_dim,
                "rope_dim": self.rope_dim,
            })
        };
        let own = match variant {
            "mha" => json!({ "num_key_value_heads": self.heads }),
            "mqa" => json!({ "num_key_value_heads": 1 }),
            "gqa-4" => json!({ "num_key_value_heads": 4 }),
            "gta-4" => json!({ "num_key_value_heads": 4, "rope_dim": self.head_dim / 2 }),
            "gla-2" => latent(2),
            _ => latent(1),
        };
        if let (Some(config), serde_json::Value::Object(own)) = (config.as_object_mut(), own) {
            config.extend(own);
        }
        Config::parse("random weights", &config.to_string())
    }

    fn tensors(&self, config: &Config) -> Tensors {
        let Size { hidden, heads, head_dim, .. } = *self;
        let mut all = vec![
            ("model.embed_tokens".to_string(), vec![self.vocab, hidden]),
            ("model.norm".to_string(), vec![hidden]),
        ];
        for layer in 0..config.layers {
            let mut add =
                |name: &str, shape: &[usize]| all.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                add(norm, &[hidden]);
            }
            add("mlp.gate_proj", &[self.ffn(), hidden]);
            add("mlp.up_proj", &[self.ffn(), hidden]);
            add("mlp.down_proj", &[hidden, self.ffn()]);
            let mut add = |name: &str, shape: &[usize]| add(&format!("self_attn.{name}"), shape);
            add("o_proj", &[hidden, heads * head_dim]);
            match config.attention {
                AttentionConfig::Gqa { kv_heads } => {
                    add("q_proj", &[heads * head_dim, hidden]);
                    add("k_proj", &[kv_heads * head_dim, hidden]);
                    add("v_proj", &[kv_heads * head_dim, hidden]);
                }
                AttentionConfig::Gta { kv_heads, rope_dim } => {
                    add("q_proj", &[heads * head_dim, hidden]);
                    add("kv_proj", &[kv_heads * head_dim, hidden]);
                    add("k_rope_proj", &[rope_dim, hidden]);
                }
                AttentionConfig::Latent { latent_heads, latent_dim, q_latent_dim, rope_dim } => {
                    let q_latent_dim = q_latent_dim.unwrap_or(hidden);
                    add("q_a_proj", &[q_latent_dim, hidden]);
                    add("q_a_layernorm", &[q_latent_dim]);
                    add("q_b_proj", &[heads * (head_dim + rope_dim), q_latent_dim]);
                    add("kv_a_proj_with_mqa", &[latent_heads * latent_dim + rope_dim, hidden]);
                    add("kv_a_layernorm", &[latent_heads, latent_dim]);
                    add("kv_b_proj", &[heads * 2 * head_dim, latent_dim]);
                }
                other => unreachable!("{other:?} has no tensors here yet"),
            }
        }
        all
    }

    /// Elements of the matrices of all blocks: a token goes through each once.
    #[allow(dead_code)] // not all who include this count them
    pub fn block_elements(&self, config: &Config) -> usize {
        self.elements_of(config, "")
    }

    /// [`Size::block_elements`] of attention alone.
    #[allow(dead_code)]
    pub fn attention_elements(&self, config: &Config) -> usize {
        self.elements_of(config, "self_attn")
    }

    #[allow(dead_code)]
    fn elements_of(&self, config: &Config, part: &str) -> usize {
        let tensors = self.tensors(config);
        let matrices = tensors.iter().filter(|(name, _)| name.contains("proj") && name.contains(part));
        matrices.map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }
}

impl Weights {
    /// For models of this size.
    pub fn new(size: &Size) -> Self {
        let bf16 = |values: Vec<f32>| values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
        let drawn = normal(DRAWN, 11);
        // What keeps a stream of unit size, about.
        let deviation = (size.hidden as f32).powf(-0.5);
        let mut matrices: Vec<u8> = bf16(drawn.iter().map(|v| v * deviation * 1.7).collect());
        let most = 2 * (size.vocab.max(size.ffn()) * size.hidden + DRAWN);
        let period = matrices.len();
        while matrices.len() < most {
            let more = (most - matrices.len()).min(period);
            matrices.extend_from_within(..more);
        }
        let gains = bf16(drawn[..1 << 16].iter().map(|v| 1.0 + 0.1 * v).collect());
        Weights { matrices, gains }
    }

    /// The model on the device, its matrices in `dtype`, and how long loading it took.
    #[allow(dead_code)]
    pub fn decoder(
        &self,
        gpu: &Gpu,
        size: &Size,
        config: &Config,
        dtype: DType,
    ) -> Result<(Decoder, Duration), String> {
        self.decoder_with(gpu, size, config, LoadOptions { dtype, ..Default::default() })
    }

    /// The same with options.
    pub fn decoder_with(
        &self,
        gpu: &Gpu,
        size: &Size,
        config: &Config,
        options: LoadOptions<'_>,
    ) -> Result<(Decoder, Duration), String> {
        let tensors = size.tensors(config);
        let views = tensors.iter().enumerate().map(|(index, (name, shape))| {
            let bytes = 2 * shape.iter().product::<usize>();
            let (source, from) = match name.contains("norm") {
                true => (&self.gains, 0),
                false => (&self.matrices, 2 * (index * 1_000_003 % DRAWN)),
            };
            let view = TensorView::new(Dtype::BF16, shape.clone(), &source[from..from + bytes]);
            view.map(|view| (format!("{name}.weight"), view)).map_err(|e| e.to_string())
        });
        let views = views.collect::<Result<Vec<_>, String>>()?;
        let bytes = safetensors::serialize(views, None).map_err(|e| e.to_string())?;
        let start = Instant::now();
        Decoder::from_bytes_with(gpu, config.clone(), WeightBytes { name: "random", bytes: &bytes }, options)
            .map(|decoder| (decoder, start.elapsed()))
            .map_err(|e| e.to_string())
    }
}
