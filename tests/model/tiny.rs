//! Tiny random models of each variant: written to a folder, and run in f64 by the reference.

use crate::common::{f64s, Rng};
use latten::reference;
use latten::reference::Rope;
use latten::reference::{DecodeInputs, DecodeOptions, Form, GlaWeights, GtaWeights, LayerConfig, Projected, RopePairs};
use latten::{Gla, Gta, HeadLayout};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{json, Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// One tensor: shape and values.
pub type Values = (Vec<usize>, Vec<f32>);

/// A model as it lies in its folder.
#[derive(Clone)]
pub struct Tiny {
    pub config: Map<String, Value>,
    pub tensors: BTreeMap<String, Values>,
}

const HIDDEN: usize = 20;
const HEADS: usize = 4;
const HEAD_DIM: usize = 6;
const FFN: usize = 22;
const LAYERS: usize = 2;
const VOCAB: usize = 257;
const Q_LATENT: usize = 14;
pub const MAX_POSITIONS: usize = 40;

pub const VARIANTS: [&str; 4] = ["gqa", "gta", "gla", "mla"];

impl Tiny {
    /// Every projection with a bias; odd widths; GLA untied and interleaved.
    pub fn new(variant: &str, seed: u64) -> Tiny {
        let odd_one = variant == "gla";
        let mut config = json!({
            "model_type": "latten", "attention": variant, "vocab_size": VOCAB, "hidden_size": HIDDEN,
            "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "head_dim": HEAD_DIM, "intermediate_size": FFN,
            "rms_norm_eps": 1e-6, "rope_theta": 1e4, "rope_interleaved": odd_one,
            "max_position_embeddings": MAX_POSITIONS, "tie_word_embeddings": !odd_one, "tokenizer": "bytes",
        });
        let extra = match variant {
            "gqa" => json!({ "num_key_value_heads": 2 }),
            "gta" => json!({ "num_key_value_heads": 2, "rope_dim": 4 }),
            "gla" => json!({ "latent_heads": 2, "latent_dim": 10, "q_latent_dim": Q_LATENT, "rope_dim": 4 }),
            _ => json!({ "latent_heads": 1, "latent_dim": 21, "q_latent_dim": Q_LATENT, "rope_dim": 2 }),
        };
        let (Value::Object(config), Value::Object(extra)) = (&mut config, extra) else { unreachable!() };
        config.extend(extra);
        let mut tiny = Tiny { config: config.clone(), tensors: BTreeMap::new() };
        tiny.fill(&mut Rng(seed));
        tiny
    }

    pub fn size(&self, key: &str) -> usize {
        self.config[key].as_u64().unwrap() as usize
    }

    pub fn variant(&self) -> &str {
        self.config["attention"].as_str().unwrap()
    }

    fn fill(&mut self, rng: &mut Rng) {
        // A grid of 1/128 below 2 is exact in f32, f16 and bf16.
        let mut draw = |n: usize, centre: f32, deviation: f32| -> Vec<f32> {
            (0..n).map(|_| ((centre + rng.normal(deviation)) * 128.0).round().clamp(-255.0, 255.0) / 128.0).collect()
        };
        let mut add = |tensors: &mut BTreeMap<String, Values>, name: String, shape: &[usize]| {
            let (centre, deviation) = if name.contains("norm") { (1.0, 0.2) } else { (0.0, 0.25) };
            let values = draw(shape.iter().product(), centre, deviation);
            tensors.insert(name, (shape.to_vec(), values));
        };
        let mut projections = Vec::new();
        let mut norms = vec![("model.norm".to_string(), vec![HIDDEN])];
        add(&mut self.tensors, "model.embed_tokens.weight".into(), &[VOCAB, HIDDEN]);
        if self.config["tie_word_embeddings"] == json!(false) {
            projections.push(("lm_head".to_string(), VOCAB, HIDDEN));
        }
        for i in 0..LAYERS {
            let layer = format!("model.layers.{i}");
            norms.push((format!("{layer}.input_layernorm"), vec![HIDDEN]));
            norms.push((format!("{layer}.post_attention_layernorm"), vec![HIDDEN]));
            let mut own = vec![
                ("mlp.gate_proj", FFN, HIDDEN),
                ("mlp.up_proj", FFN, HIDDEN),
                ("mlp.down_proj", HIDDEN, FFN),
                ("self_attn.o_proj", HIDDEN, HEADS * HEAD_DIM),
            ];
            if let Some(latent_heads) = self.config.get("latent_heads").and_then(Value::as_u64) {
                let (groups, dim, rope) = (latent_heads as usize, self.size("latent_dim"), self.size("rope_dim"));
                own.extend([
                    ("self_attn.q_a_proj", Q_LATENT, HIDDEN),
                    ("self_attn.q_b_proj", HEADS * (HEAD_DIM + rope), Q_LATENT),
                    ("self_attn.kv_a_proj_with_mqa", groups * dim + rope, HIDDEN),
                    ("self_attn.kv_b_proj", HEADS * 2 * HEAD_DIM, dim),
                ]);
                norms.push((format!("{layer}.self_attn.q_a_layernorm"), vec![Q_LATENT]));
                norms.push((format!("{layer}.self_attn.kv_a_layernorm"), vec![groups, dim]));
            } else {
                own.push(("self_attn.q_proj", HEADS * HEAD_DIM, HIDDEN));
                if self.variant() == "gqa" {
                    own.extend([
                        ("self_attn.k_proj", 2 * HEAD_DIM, HIDDEN),
                        ("self_attn.v_proj", 2 * HEAD_DIM, HIDDEN),
                    ]);
                } else {
                    let rope = self.size("rope_dim");
                    own.extend([("self_attn.kv_proj", 2 * HEAD_DIM, HIDDEN), ("self_attn.k_rope_proj", rope, HIDDEN)]);
                }
            }
            projections.extend(own.into_iter().map(|(name, out, dim)| (format!("{layer}.{name}"), out, dim)));
        }
        for (name, out, dim) in projections {
            add(&mut self.tensors, format!("{name}.weight"), &[out, dim]);
            // The reference's GTA and GLA layers have a bias only where the paper's do; GQA here has them all.
            let latent = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "k_rope_proj"];
            let in_paper = latent.iter().any(|n| name.ends_with(n));
            if in_paper || self.variant() == "gqa" || !name.contains("self_attn") {
                add(&mut self.tensors, format!("{name}.bias"), &[out]);
            }
        }
        for (name, shape) in norms {
            add(&mut self.tensors, format!("{name}.weight"), &shape);
        }
    }

    /// Makes the logits after this token, and no other, NaN and infinite: all weights are finite, but one number of the
    /// hidden state, that only this token has, passes f32 in the last norm.
    pub fn spoil_logits_after(&mut self, token: u32) {
        const CHANNEL: usize = 3;
        for (name, (shape, values)) in &mut self.tensors {
            let residual = name.contains("o_proj") || name.contains("down_proj");
            if name.contains("embed_tokens") {
                values.chunks_exact_mut(HIDDEN).for_each(|row| row[CHANNEL] = 0.0);
                values[token as usize * HIDDEN + CHANNEL] = 100.0;
            } else if residual && name.ends_with("weight") {
                values[CHANNEL * shape[1]..(CHANNEL + 1) * shape[1]].fill(0.0);
            } else if residual {
                values[CHANNEL] = 0.0;
            } else if name == "model.norm.weight" {
                values[CHANNEL] = 1e38;
            }
        }
    }

    /// More rows in the vocabulary, padding, with this for a bias where the head has one.
    pub fn pad_vocabulary(&mut self, rows: usize, bias: f32) {
        let vocab = self.size("vocab_size") + rows;
        self.config.insert("vocab_size".into(), vocab.into());
        for name in ["model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"] {
            let Some((shape, values)) = self.tensors.get_mut(name) else { continue };
            shape[0] = vocab;
            values.resize(shape.iter().product(), if name == "lm_head.bias" { bias } else { 0.0 });
        }
    }

    /// The safetensors file, in this dtype.
    pub fn bytes(&self, dtype: Dtype) -> Vec<u8> {
        let data: Vec<(&String, Vec<usize>, Vec<u8>)> = self
            .tensors
            .iter()
            .map(|(name, (shape, values))| {
                let bytes = match dtype {
                    Dtype::F16 => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
                    Dtype::BF16 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
                    _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
                };
                (name, shape.clone(), bytes)
            })
            .collect();
        let views = data.iter().map(|(name, shape, b)| (name, TensorView::new(dtype, shape.clone(), b).unwrap()));
        safetensors::serialize(views, None).unwrap()
    }

    pub fn config_json(&self) -> String {
        serde_json::to_string(&self.config).unwrap()
    }

    /// Writes the folder; its name is unique to `test`.
    pub fn write(&self, test: &str) -> Folder {
        let folder = Folder::new(test);
        std::fs::write(folder.path().join("config.json"), self.config_json()).unwrap();
        std::fs::write(folder.path().join("model.safetensors"), self.bytes(Dtype::F32)).unwrap();
        folder
    }

    fn get(&self, name: &str) -> Vec<f64> {
        self.tensors.get(name).map(|(_, values)| f64s(values)).unwrap_or_else(|| panic!("{name}"))
    }

    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let (shape, _) = &self.tensors[&format!("{name}.weight")];
        let bias = self.tensors.get(&format!("{name}.bias")).map(|(_, b)| f64s(b));
        reference::linear(x, &self.get(&format!("{name}.weight")), bias.as_deref(), shape[1]).unwrap()
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        reference::rms_norm(x, &self.get(&format!("{name}.weight")), HIDDEN, f64::from(1e-6f32)).unwrap()
    }

    /// Logits after each token, in f64.
    pub fn forward(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        self.forward_seeing(tokens, &DecodeOptions::default())
    }

    /// The same where a token sees a window and first tokens.
    pub fn forward_seeing(&self, tokens: &[u32], seen: &DecodeOptions<'_>) -> Vec<Vec<f64>> {
        let mut x = reference::embedding(&self.get("model.embed_tokens.weight"), tokens, HIDDEN).unwrap();
        let add = |x: &mut Vec<f64>, y: Vec<f64>| x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
        for i in 0..LAYERS {
            let layer = format!("model.layers.{i}");
            let normed = self.norm(&format!("{layer}.input_layernorm"), &x);
            let attention = format!("{layer}.self_attn");
            let attended = (1..=tokens.len()).flat_map(|n| self.attention(&attention, &normed[..n * HIDDEN], seen));
            add(&mut x, attended.collect());
            let normed = self.norm(&format!("{layer}.post_attention_layernorm"), &x);
            for (row, x) in normed.chunks_exact(HIDDEN).zip(x.chunks_exact_mut(HIDDEN)) {
                let gate = self.linear(&format!("{layer}.mlp.gate_proj"), row);
                let gate_up = [gate, self.linear(&format!("{layer}.mlp.up_proj"), row)].concat();
                let ffn = reference::swiglu(&gate_up, FFN).unwrap();
                let down = self.linear(&format!("{layer}.mlp.down_proj"), &ffn);
                x.iter_mut().zip(down).for_each(|(x, y)| *x += y);
            }
        }
        let normed = self.norm("model.norm", &x);
        let head = |row: &[f64]| match self.tensors.contains_key("lm_head.weight") {
            true => self.linear("lm_head", row),
            false => self.linear("model.embed_tokens", row),
        };
        normed.chunks_exact(HIDDEN).map(head).collect()
    }

    /// The last token's output of an attention layer over `x`.
    fn attention(&self, name: &str, x: &[f64], seen: &DecodeOptions<'_>) -> Vec<f64> {
        let get = |part: &str| self.get(&format!("{name}.{part}"));
        let rope_dim = self.config.get("rope_dim").and_then(Value::as_u64).unwrap_or(0) as usize;
        let rotated = if rope_dim == 0 { HEAD_DIM } else { rope_dim };
        let pairs =
            if self.config["rope_interleaved"] == json!(true) { RopePairs::Interleaved } else { RopePairs::Half };
        let mut config = LayerConfig {
            model_dim: HIDDEN,
            q_heads: HEADS,
            groups: 2,
            head_dim: HEAD_DIM,
            rope_dim,
            state_dim: HEAD_DIM,
            q_latent_dim: 0,
            eps: f64::from(1e-6f32),
            rotation: Rope::new(1e4, rotated, pairs).unwrap(),
        };
        match self.variant() {
            "gqa" => self.gqa(name, x, &config.rotation, seen),
            "gta" => {
                let weights = GtaWeights {
                    w_q: get("q_proj.weight"),
                    w_kv: get("kv_proj.weight"),
                    w_rope_k: get("k_rope_proj.weight"),
                    b_rope_k: get("k_rope_proj.bias"),
                    w_o: get("o_proj.weight"),
                };
                if seen.window.is_none() {
                    return reference::gta_layer(&config, &weights, x).unwrap();
                }
                let (q_heads, kv_heads) = (HEADS, 2);
                let heads = HeadLayout::gta(Gta { q_heads, kv_heads, head_dim: HEAD_DIM, rope_dim }).unwrap();
                let projected = reference::gta_project(&config, &weights, x).unwrap();
                let out = attend_seeing(&heads, &projected, &projected.q, HEAD_DIM, seen);
                reference::linear(&out, &weights.w_o, None, HEADS * HEAD_DIM).unwrap()
            }
            _ => {
                config.groups = self.size("latent_heads");
                config.state_dim = self.size("latent_dim");
                config.q_latent_dim = Q_LATENT;
                let weights = GlaWeights {
                    w_dq: get("q_a_proj.weight"),
                    b_dq: get("q_a_proj.bias"),
                    q_gain: get("q_a_layernorm.weight"),
                    w_uq: get("q_b_proj.weight"),
                    b_uq: get("q_b_proj.bias"),
                    w_dkv: get("kv_a_proj_with_mqa.weight"),
                    b_dkv: get("kv_a_proj_with_mqa.bias"),
                    c_gain: get("kv_a_layernorm.weight"),
                    w_ukv: get("kv_b_proj.weight"),
                    b_ukv: get("kv_b_proj.bias"),
                    w_o: get("o_proj.weight"),
                };
                if seen.window.is_none() {
                    return reference::gla_layer(&config, &weights, x, Form::Explicit).unwrap();
                }
                let (q_heads, latent_heads, latent_dim) = (HEADS, config.groups, config.state_dim);
                let heads = HeadLayout::gla(Gla { q_heads, latent_heads, latent_dim, rope_dim }).unwrap();
                let projected = reference::gla_project(&config, &weights, x).unwrap();
                let q = reference::absorb_query(&config, &weights, &projected.q).unwrap();
                let out = attend_seeing(&heads, &projected, &q, HEAD_DIM + rope_dim, seen);
                let values = reference::unabsorb_values(&config, &weights, &out).unwrap();
                reference::linear(&values, &weights.w_o, None, HEADS * HEAD_DIM).unwrap()
            }
        }
    }

    /// As `reference::gqa_layer`, with biases on all four projections.
    fn gqa(&self, name: &str, x: &[f64], rotation: &Rope, seen: &DecodeOptions<'_>) -> Vec<f64> {
        let project = |part: &str, row: &[f64]| self.linear(&format!("{name}.{part}"), row);
        let last = x.len() / HIDDEN - 1;
        let mut values = Vec::new();
        let mut q = project("q_proj", &x[last * HIDDEN..]);
        for (h, q) in q.chunks_exact_mut(HEAD_DIM).enumerate() {
            reference::rope(q, last as u32, rotation).unwrap();
            let (mut scores, mut v) = (Vec::new(), Vec::new());
            let sees = |t: &usize| *t < seen.keep_first || seen.window.is_none_or(|window| t + window > last);
            for (position, row) in x.chunks_exact(HIDDEN).enumerate().filter(|(t, _)| sees(t)) {
                let group = h / 2 * HEAD_DIM..(h / 2 + 1) * HEAD_DIM;
                let mut k = project("k_proj", row)[group.clone()].to_vec();
                reference::rope(&mut k, position as u32, rotation).unwrap();
                let dot: f64 = q.iter().zip(&k).map(|(q, k)| q * k).sum();
                scores.push(dot * (HEAD_DIM as f64).powf(-0.5));
                v.extend_from_slice(&project("v_proj", row)[group]);
            }
            values.extend(reference::attend(&scores, &v, HEAD_DIM).unwrap().0);
        }
        project("o_proj", &values)
    }
}

/// Attention of the last token, of a width before absorption, over what it sees.
fn attend_seeing(heads: &HeadLayout, rows: &Projected, q: &[f64], width: usize, seen: &DecodeOptions<'_>) -> Vec<f64> {
    let (states, rope_keys, softmax_scale) = (&rows.states, &rows.rope_keys, (width as f64).powf(-0.5));
    let step = DecodeInputs { q, states, rope_keys, softmax_scale, causal: true };
    reference::decode_with(heads, &step, seen).unwrap().out
}

/// A temporary folder, removed when dropped.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(test: &str) -> Folder {
        // Two tests of one binary may ask for the same name at the same time.
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("latten-{test}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
