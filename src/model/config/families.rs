//! The published families, as data: a row says what a family's layers have that its keys do not say. Adding a family that has
//! nothing new adds a row. Pure.

use super::layers::{Activation, BlockNorms, QkNorm};
use super::names::TensorNames;
use crate::nn::GateClamp;

/// What is known of the models of a `model_type` beside their `config.json`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Family {
    pub(super) model_type: &'static str,
    /// Projections that have a bias in all models.
    pub(super) biases: &'static [&'static str],
    /// Those that have one where `attention_bias` is true.
    pub(super) attention_bias: &'static [&'static str],
    /// And where `mlp_bias` is.
    pub(super) mlp_bias: &'static [&'static str],
    /// What `attention_bias` is where the key is missing.
    pub(super) usual_bias: bool,
    pub(super) qk_norm: QkNorm,
    pub(super) norms: BlockNorms,
    pub(super) names: TensorNames,
    /// Whether queries, keys and values are one matrix, and whether gate and up are.
    pub(super) fused: (bool, bool),
    /// Whether attention is through latents (MLA).
    pub(super) latent: bool,
    pub(super) experts: FamilyExperts,
    pub(super) window: FamilyWindow,
    pub(super) activation: Activation,
    /// Whether it has Gemma's embeddings, scaled by the root of their width, gains of norms one more than the files' numbers, and keys of
    /// softcaps and of the scale of queries.
    pub(super) gemma: bool,
    /// Whether rotation is written for each kind of layer, and the base of those with a window where it is missing.
    pub(super) theta_of_windows: Option<f64>,
    pub(super) pairs: FamilyPairs,
    /// Width of a head where the key is missing; none for `hidden_size / num_attention_heads`.
    pub(super) head_dim: Option<usize>,
    /// Whether a part of a head may rotate, and which part where `partial_rotary_factor` is missing.
    pub(super) partial: Option<f64>,
    /// `tie_word_embeddings` where it is missing.
    pub(super) tied: bool,
    /// `rope_theta` where it is missing.
    pub(super) theta: f64,
    /// Whether there are `embedding_multiplier` and others of Granite.
    pub(super) multipliers: bool,
    /// Whether `no_rope_layers` says which layers rotate (SmolLM3).
    pub(super) some_rotate: bool,
    /// Whether each head has a sink.
    pub(super) sinks: bool,
}

/// By which keys experts are described.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FamilyExperts {
    None,
    Mixtral,
    Qwen3,
    DeepSeekV2,
    /// DeepSeek-V3 and GLM-4.7.
    DeepSeekV3,
    /// With biases, and matrices that may be in MXFP4.
    GptOss,
}

/// Which layers have the window of `sliding_window`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FamilyWindow {
    None,
    /// All, if it is not null.
    All,
    /// By `use_sliding_window`, those from `max_window_layers` on, or those of `layer_types`.
    Asked,
    /// Those of `layer_types`; where it is missing all.
    Listed,
    /// Those of `layer_types`; where it is missing all but the last of every so many, of which `sliding_window_pattern` is the number.
    Every(usize),
}

/// Which elements rotate together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FamilyPairs {
    Halves,
    Neighbours,
    /// Neighbours, unless `rope_interleave` is false.
    Asked,
}

const QKV: &[&str] = &["q_proj", "k_proj", "v_proj"];
const QKVO: &[&str] = &["q_proj", "k_proj", "v_proj", "o_proj"];
const LATENTS: &[&str] = &["q_a_proj", "kv_a_proj_with_mqa", "o_proj"];
const MLP: &[&str] = &["gate_proj", "up_proj", "down_proj"];

const PLAIN: Family = Family {
    model_type: "",
    biases: &[],
    attention_bias: &[],
    mlp_bias: &[],
    usual_bias: false,
    qk_norm: QkNorm::None,
    norms: BlockNorms::Before,
    names: TensorNames::Published,
    fused: (false, false),
    latent: false,
    experts: FamilyExperts::None,
    window: FamilyWindow::None,
    activation: Activation::Silu,
    gemma: false,
    theta_of_windows: None,
    pairs: FamilyPairs::Halves,
    head_dim: None,
    partial: None,
    tied: false,
    theta: 1e4,
    multipliers: false,
    some_rotate: false,
    sinks: false,
};
const LLAMA: Family = Family { model_type: "llama", attention_bias: QKVO, mlp_bias: MLP, ..PLAIN };
const QWEN3: Family = Family {
    model_type: "qwen3",
    attention_bias: QKVO,
    qk_norm: QkNorm::Heads,
    window: FamilyWindow::Asked,
    head_dim: Some(128),
    ..PLAIN
};
const DEEPSEEK_V3: Family = Family {
    model_type: "deepseek_v3",
    attention_bias: LATENTS,
    latent: true,
    experts: FamilyExperts::DeepSeekV3,
    pairs: FamilyPairs::Asked,
    ..PLAIN
};
/// GLM-4's first form, `glm`.
const GLM: Family = Family {
    model_type: "glm",
    attention_bias: QKV,
    usual_bias: true,
    fused: (false, true),
    pairs: FamilyPairs::Neighbours,
    head_dim: Some(128),
    partial: Some(0.5),
    ..PLAIN
};

const GEMMA2: Family = Family {
    model_type: "gemma2",
    attention_bias: QKVO,
    norms: BlockNorms::Around,
    names: TensorNames::Gemma,
    window: FamilyWindow::Every(2),
    activation: Activation::GeluTanh,
    gemma: true,
    head_dim: Some(256),
    tied: true,
    ..PLAIN
};

/// All that are read, beside this crate's own folders.
pub(super) const FAMILIES: [Family; 20] = [
    LLAMA,
    Family { model_type: "mistral", window: FamilyWindow::All, ..PLAIN },
    Family {
        model_type: "mixtral",
        names: TensorNames::Mixtral,
        experts: FamilyExperts::Mixtral,
        window: FamilyWindow::All,
        ..PLAIN
    },
    Family { model_type: "qwen2", biases: QKV, window: FamilyWindow::Asked, ..PLAIN },
    QWEN3,
    Family { model_type: "qwen3_moe", experts: FamilyExperts::Qwen3, ..QWEN3 },
    Family { model_type: "phi3", fused: (true, true), window: FamilyWindow::All, partial: Some(1.0), ..PLAIN },
    Family {
        model_type: "deepseek_v2",
        mlp_bias: MLP,
        experts: FamilyExperts::DeepSeekV2,
        pairs: FamilyPairs::Neighbours,
        ..DEEPSEEK_V3
    },
    DEEPSEEK_V3,
    Family { model_type: "glm4_moe_lite", ..DEEPSEEK_V3 },
    Family { model_type: "kimi_k2", ..DEEPSEEK_V3 },
    Family { model_type: "granite", multipliers: true, ..LLAMA },
    Family { model_type: "smollm3", some_rotate: true, theta: 2e6, ..LLAMA },
    Family {
        model_type: "olmo2",
        attention_bias: QKVO,
        qk_norm: QkNorm::Whole,
        norms: BlockNorms::After,
        names: TensorNames::Olmo2,
        ..PLAIN
    },
    Family { model_type: "glm4", norms: BlockNorms::Around, ..GLM },
    GLM,
    Family { model_type: "ministral", window: FamilyWindow::Listed, ..PLAIN },
    GEMMA2,
    Family {
        model_type: "gemma3_text",
        qk_norm: QkNorm::Heads,
        window: FamilyWindow::Every(6),
        theta: 1e6,
        theta_of_windows: Some(1e4),
        ..GEMMA2
    },
    Family {
        model_type: "gpt_oss",
        biases: &["router"],
        attention_bias: QKVO,
        usual_bias: true,
        names: TensorNames::GptOss,
        experts: FamilyExperts::GptOss,
        window: FamilyWindow::Every(2),
        activation: Activation::Clamped(GateClamp { alpha: 1.702, limit: 7.0 }),
        head_dim: Some(64),
        theta: 1.5e5,
        sinks: true,
        ..PLAIN
    },
];

/// What `model_type` may be.
pub(super) fn names() -> Vec<&'static str> {
    std::iter::once("latten").chain(FAMILIES.iter().map(|family| family.model_type)).collect()
}
