//! The architectures of GGUF files, as data: what a file's keys do not say. Pure.

use super::layers::{Activation, BlockNorms, QkNorm};
use crate::nn::GateClamp;

/// What is known of the files of a `general.architecture` beside their metadata.
#[derive(Debug, Clone, Copy)]
pub(super) struct Architecture {
    pub(super) name: &'static str,
    /// Projections that have a bias; none for those that a file has.
    pub(super) biases: Option<&'static [&'static str]>,
    pub(super) qk_norm: QkNorm,
    pub(super) norms: BlockNorms,
    /// Whether queries, keys and values are one matrix, and whether gate and up are.
    pub(super) fused: (bool, bool),
    /// Whether attention is through latents (MLA).
    pub(super) latent: bool,
    /// Whether neighbours rotate together, not halves.
    pub(super) interleaved: bool,
    /// Whether rows of queries and keys, which rotate in halves, lie as neighbours rotate: llama.cpp's writers order them so, of Llamas
    /// alone.
    pub(super) reordered: bool,
    /// Whether a part of a head may rotate.
    pub(super) partial: bool,
    /// Whether there may be experts, and whether their weights are normalised where the key is missing.
    pub(super) experts: Option<bool>,
    /// Whether `embedding_scale` and others of Granite are there.
    pub(super) multipliers: bool,
    /// Every so many layers there is one that does not rotate, which no key says.
    pub(super) still_every: Option<usize>,
    /// Every so many layers there is one without the window, which no key says.
    pub(super) whole_every: Option<usize>,
    /// The base of the rotation of layers with a window, if that is another, where the key is missing.
    pub(super) theta_of_windows: Option<f64>,
    pub(super) activation: Activation,
    /// Whether embeddings are scaled by the root of their width, and there are keys of softcaps (Gemma).
    pub(super) gemma: bool,
    /// Whether each head has a sink, and experts have biases (gpt-oss).
    pub(super) sinks: bool,
    /// Whether YaRN's bounds are whole numbers of pairs: no key says it.
    pub(super) truncates: bool,
    /// Layers of the model whose scores are scaled by the width of the stream over the heads, not by that of a head.
    pub(super) odd_scale: Option<usize>,
}

const PLAIN: Architecture = Architecture {
    name: "",
    biases: Some(&[]),
    qk_norm: QkNorm::None,
    norms: BlockNorms::Before,
    fused: (false, false),
    latent: false,
    interleaved: false,
    reordered: false,
    partial: false,
    experts: None,
    multipliers: false,
    still_every: None,
    whole_every: None,
    theta_of_windows: None,
    activation: Activation::Silu,
    gemma: false,
    sinks: false,
    truncates: true,
    odd_scale: None,
};
const LLAMA: Architecture = Architecture { name: "llama", biases: None, reordered: true, experts: Some(true), ..PLAIN };
const QWEN3: Architecture = Architecture { name: "qwen3", qk_norm: QkNorm::Heads, ..PLAIN };

const GEMMA2: Architecture = Architecture {
    name: "gemma2",
    norms: BlockNorms::Around,
    whole_every: Some(2),
    activation: Activation::GeluTanh,
    gemma: true,
    odd_scale: Some(46),
    ..PLAIN
};

pub(super) const ARCHITECTURES: [Architecture; 13] = [
    LLAMA,
    Architecture { name: "qwen2", biases: Some(&["q_proj", "k_proj", "v_proj"]), ..PLAIN },
    QWEN3,
    Architecture { name: "qwen3moe", experts: Some(true), ..QWEN3 },
    Architecture { name: "phi3", fused: (true, true), partial: true, ..PLAIN },
    Architecture { name: "deepseek2", biases: None, latent: true, interleaved: true, experts: Some(false), ..PLAIN },
    Architecture { name: "granite", experts: None, multipliers: true, ..LLAMA },
    Architecture { name: "smollm3", experts: None, still_every: Some(4), ..LLAMA },
    Architecture { name: "olmo2", qk_norm: QkNorm::Whole, norms: BlockNorms::After, ..PLAIN },
    Architecture {
        name: "glm4",
        biases: None,
        norms: BlockNorms::Around,
        fused: (false, true),
        interleaved: true,
        partial: true,
        ..PLAIN
    },
    GEMMA2,
    Architecture {
        name: "gemma3",
        qk_norm: QkNorm::Heads,
        whole_every: Some(6),
        theta_of_windows: Some(1e4),
        odd_scale: Some(62),
        ..GEMMA2
    },
    Architecture {
        name: "gpt-oss",
        biases: Some(&["q_proj", "k_proj", "v_proj", "o_proj", "gate"]),
        experts: Some(true),
        whole_every: Some(2),
        activation: Activation::Clamped(GateClamp { alpha: 1.702, limit: 7.0 }),
        sinks: true,
        truncates: false,
        ..PLAIN
    },
];

/// What `general.architecture` may be.
pub(super) fn names() -> Vec<&'static str> {
    ARCHITECTURES.iter().map(|architecture| architecture.name).collect()
}
