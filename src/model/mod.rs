//! A Llama-style decoder over the crate's attention: GQA, GTA, GLA or MLA.
//!
//! A [`Decoder`] is the weights and compiled kernels, shared and never changed; a [`Session`] is a KV cache and the
//! buffers of a step; [`generate()`] runs one prompt, [`beam_search`] and [`best_of`] look for its best continuation.
//! A [`Scheduler`] runs many that come and go; [`generate_speculative`] takes fewer steps by guessing tokens ahead.
//! [`Session::save_file`] and [`Session::load_file`] keep sequences between runs.
//!
//! # Published models
//!
//! [`Decoder::load`] takes folders as the `transformers` library writes them: `config.json`, and `model.safetensors` or
//! the files that `model.safetensors.index.json` names, in f32, f16 or bf16. What [`Config::parse`] knows, by
//! `model_type`:
//!
//! | | attention | |
//! |---|---|---|
//! | `gemma2`, `gemma3_text` | GQA | windows in some layers, with a base of their own ([`Config::layer_kinds`], [`SessionOptions::window_pools`]); GeGLU ([`Config::activation`]); softcaps ([`Config::logit_softcap`], [`Config::score_softcap`]) |
//! | `llama`, `mistral`, `ministral`, `qwen2`, `qwen3`, `phi3` | GQA | any biases; `head_dim` apart from `hidden_size`; tied embeddings; one `sliding_window` in all layers ([`Config::window`]), or in some; norms of heads ([`Config::qk_norm`]); projections in one matrix |
//! | `granite`, `smollm3`, `olmo2`, `glm`, `glm4` | GQA | multipliers ([`Config::residual_scale`]); layers that do not rotate ([`Config::layer_kinds`]); norms behind a block's parts ([`Config::norms`]) and over all heads; a part of each head that rotates ([`Config::rotated_dim`]) |
//! | `mixtral`, `qwen3_moe` | GQA | the same with experts in every layer |
//! | `gpt_oss` | GQA | a window in every other layer; sinks ([`Config::sinks`]); biases in all products, the experts' too ([`ExpertsConfig::with_biases`]); a clamped SwiGLU ([`Activation::Clamped`]) |
//! | `deepseek_v2`, `deepseek_v3`, `kimi_k2`, `glm4_moe_lite` | MLA | with or without `q_lora_rank`; dense layers, and experts beside shared ones |
//! | `llama` with `rope_dim` or `qk_rope_dim` | GTA, or GLA with two latents | the layers of their authors, by their names of tensors (below) |
//!
//! Biases are those that a family has, or that `attention_bias` and `mlp_bias` ask for: a missing one
//! is an error. Where biases of Qwen2's keys are much larger than the rest, caches of integers keep those channels apart
//! ([`SessionOptions::kv_dtype`]).
//!
//! A tensor that looks like a weight of the model and that no part of it uses is an error
//! ([`LoadOptions::leave_out`] leaves it out with a warning): other biases, norms of queries and keys, more layers. What is known to
//! change nothing is left out: `inv_freq` and masks, which are computed; scales of caches; biases of zeros; a second copy of a
//! tensor without the prefix `model.`; DeepSeek-V3's further heads, which are layers past `num_hidden_layers` with an `eh_proj`.
//! What is beside the model, as a value head, is left out with a warning. Where embeddings are tied, an `lm_head.weight` that
//! differs from the embedding is the head all the same, as in the library.
//!
//! Rotations are of `rope_type` `default`, `linear`, `llama3`, `dynamic`, `longrope` ([`Config::long_rope`]) or `yarn` (with
//! `attention_factor`, `mscale` and `mscale_all_dim`), in `rope_parameters` or, in older files, `rope_theta` and `rope_scaling`. A key that would change
//! what the model computes and is not known is refused by name: other activations,
//! other ways to choose experts, weights quantised otherwise than in 4 bits by AWQ or GPTQ, in 8 as FP8, or experts in MXFP4. Everything here works on tokens;
//! [`Tokenizer`] makes them of text, by the folder's `tokenizer.json` where the feature `tokenizers` is on.
//!
//! The authors of GTA and GLA published their layers within a Llama (github.com/Dao-AILab/grouped-latent-attention). Files of
//! their code are known by a key of `config.json`: `rope_dim` for GTA; `qk_rope_dim` for GLA, which has two latents of
//! `2 head_dim` and a query latent of `8 head_dim`. `partial_rotary_factor`, where it is there, must say the same. Their names in
//! `self_attn`, for those in the table below:
//!
//! | | here | theirs |
//! |---|---|---|
//! | GTA | `k_rope_proj` | `W_rope_k`, with a bias |
//! | GLA | `q_a_proj`, `q_a_layernorm`, `q_b_proj` | `W_dQ`, `q_norm`, `W_uQ_rope`, the matrices with biases |
//! | GLA | `kv_a_proj_with_mqa` | `W_dKV`, with a bias |
//! | GLA | `kv_a_layernorm` | `kv_norm_1` and `kv_norm_2`, (latent_dim) each |
//! | GLA | `kv_b_proj` | `W_ukv_1` and `W_ukv_2`, of half the heads each, with biases |
//!
//! # GGUF files
//!
//! [`Decoder::load`] takes a GGUF file too, or a folder with one, of version 2 or 3; of a model in several
//! (`name-00001-of-00003.gguf`) any of them. Numbers come from its metadata: architectures `llama` (Mistral's models and Mixtral are of
//! it), `qwen2`, `qwen3`, `qwen3moe`, `phi3`, `granite`, `smollm3`, `olmo2`, `glm4`, `gemma2`, `gemma3`, `gpt-oss`, and `deepseek2` (GLM-4.7-Flash too), with `attn_kv_b` or with `attn_k_b` and `attn_v_b`. Tensors are F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K,
//! Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS or MXFP4 ([`BlockType`](crate::nn::BlockType)), and become the decoder's dtype, row by row, as
//! they are read. [`GgufMetadata`] says what a file holds.
//!
//! # This crate's own folder
//!
//! `config.json` with the keys that [`Config`] names, and `"model_type": "latten"`, `"tokenizer": "bytes"`; all are
//! required, but `sliding_window`. The tensors, whose names published models share; a `{name}.bias` beside any matrix is optional, but for
//! the embedding, and other tensors are as above:
//!
//! | tensor | shape |
//! |---|---|
//! | `model.embed_tokens.weight`, and `lm_head.weight` where embeddings are not tied | (vocab_size, hidden_size) |
//! | `model.norm.weight` | (hidden_size) |
//! | per layer, prefix `model.layers.N.`: | |
//! | `input_layernorm.weight`, `post_attention_layernorm.weight` | (hidden_size) |
//! | `mlp.gate_proj.weight`, `mlp.up_proj.weight` | (intermediate_size, hidden_size) |
//! | `mlp.down_proj.weight` | (hidden_size, intermediate_size) |
//! | `self_attn.o_proj.weight` | (hidden_size, heads * v_head_dim) |
//! | GQA, GTA: `self_attn.q_proj.weight` | (heads * head_dim, hidden_size) |
//! | GQA: `self_attn.k_proj.weight`, `self_attn.v_proj.weight` | (kv_heads * head_dim, hidden_size) |
//! | GTA: `self_attn.kv_proj.weight` | (kv_heads * head_dim, hidden_size) |
//! | GTA: `self_attn.k_rope_proj.weight` | (rope_dim, hidden_size) |
//! | GLA, MLA: `self_attn.q_a_proj.weight` | (q_latent_dim, hidden_size) |
//! | GLA, MLA: `self_attn.q_a_layernorm.weight` | (q_latent_dim) |
//! | GLA, MLA: `self_attn.q_b_proj.weight`, per head `[nope, rope]` | (heads * (head_dim + rope_dim), q_latent_dim) |
//! | GLA, MLA: `self_attn.kv_a_proj_with_mqa.weight` | (latent_heads * latent_dim + rope_dim, hidden_size) |
//! | GLA, MLA: `self_attn.kv_a_layernorm.weight` | (latent_heads, latent_dim) |
//! | GLA, MLA: `self_attn.kv_b_proj.weight`, per head `[key, value]` | (heads * (head_dim + v_head_dim), latent_dim) |
//! | without a query latent, for the three of `q_a` and `q_b`: `self_attn.q_proj.weight` | (heads * (head_dim + rope_dim), hidden_size) |
//!
//! A GTA head is `[nope, rope]`: its last `rope_dim` elements rotate. In this crate's own folders `v_head_dim` is
//! `head_dim` and GLA and MLA have a query latent.

#[cfg(feature = "tokenizers")]
mod chat;
mod config;
mod decoder;
mod generate;
#[cfg(feature = "constrained")]
mod grammar;
mod layers;
mod sampler;
mod serve;
mod session;
mod text;
mod weights;

#[cfg(feature = "tokenizers")]
pub use chat::{AnswerEnd, AnswerFacts, Chat, ChatAnswer, ChatOptions};
pub use config::{
    Activation, AttentionConfig, BlockNorms, Config, ExpertsConfig, LayerKind, LayerRope, LongRope, QkNorm,
};
pub use decoder::{Decoder, LoadOptions};
pub use generate::{
    beam_search, best_of, continue_sequence, continue_with, generate, generate_speculative, BeamOptions, BestOfOptions,
    Continuation, Drafter, GenerateOptions, Speculated, SpeculativeOptions,
};
#[cfg(feature = "constrained")]
pub use grammar::{Grammar, GrammarCompiler};
pub use layers::{Attention, AttentionArgs, ExplicitPrefill, PrefillPath};
pub use sampler::random::SplitMix64;
pub use sampler::{Constraint, Draw, Drawn, Sampler, TokenMask};
pub use serve::{Event, Finished, Request, RequestId, Scheduler, StopStrings};
pub use session::{follow, DrawSource, Samplers, Session, SessionOptions, TokenStream, TokensAndLogits};
#[cfg(feature = "tokenizers")]
pub use text::{ChatTemplate, Message};
pub use text::{TextStream, Tokenizer, Utf8Stream};
pub use weights::{GgufMetadata, GgufTensor, ReadAt, WeightBytes};
