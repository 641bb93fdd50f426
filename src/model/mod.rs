//! A small Llama-style decoder over the crate's attention: GQA, GTA, GLA or MLA.
//!
//! A [`Decoder`] is the weights and compiled kernels, shared and never changed; a [`Session`] is a KV cache and the
//! buffers of a step; [`generate()`] runs one prompt, [`beam_search`] and [`best_of`] look for its best continuation.
//! A [`Scheduler`] runs many that come and go; [`generate_speculative`] takes fewer steps by guessing tokens ahead.
//! [`Session::save_file`] and [`Session::load_file`] keep sequences between runs.
//!
//! # The model folder
//!
//! `config.json` with the keys that [`Config`] names, and `"model_type": "latten"`, `"tokenizer": "bytes"`, no other
//! being known. `model.safetensors` with these tensors in f32, f16 or bf16; a `{name}.bias` beside any matrix is optional,
//! but for the embedding, and other tensors are left out with a warning in the log:
//!
//! | tensor | shape |
//! |---|---|
//! | `model.embed_tokens.weight`, and `lm_head.weight` where embeddings are not tied | (vocab_size, hidden_size) |
//! | `model.norm.weight` | (hidden_size) |
//! | per layer, prefix `model.layers.N.`: | |
//! | `input_layernorm.weight`, `post_attention_layernorm.weight` | (hidden_size) |
//! | `mlp.gate_proj.weight`, `mlp.up_proj.weight` | (intermediate_size, hidden_size) |
//! | `mlp.down_proj.weight` | (hidden_size, intermediate_size) |
//! | `self_attn.o_proj.weight` | (hidden_size, heads * head_dim) |
//! | GQA, GTA: `self_attn.q_proj.weight` | (heads * head_dim, hidden_size) |
//! | GQA: `self_attn.k_proj.weight`, `self_attn.v_proj.weight` | (kv_heads * head_dim, hidden_size) |
//! | GTA: `self_attn.kv_proj.weight` | (kv_heads * head_dim, hidden_size) |
//! | GTA: `self_attn.k_rope_proj.weight` | (rope_dim, hidden_size) |
//! | GLA, MLA: `self_attn.q_a_proj.weight` | (q_latent_dim, hidden_size) |
//! | GLA, MLA: `self_attn.q_a_layernorm.weight` | (q_latent_dim) |
//! | GLA, MLA: `self_attn.q_b_proj.weight`, per head `[nope, rope]` | (heads * (head_dim + rope_dim), q_latent_dim) |
//! | GLA, MLA: `self_attn.kv_a_proj_with_mqa.weight` | (latent_heads * latent_dim + rope_dim, hidden_size) |
//! | GLA, MLA: `self_attn.kv_a_layernorm.weight` | (latent_heads, latent_dim) |
//! | GLA, MLA: `self_attn.kv_b_proj.weight`, per head `[key, value]` | (heads * 2 * head_dim, latent_dim) |
//!
//! A GTA head is `[nope, rope]`: its last `rope_dim` elements rotate. The names of MLA are DeepSeek's; its checkpoints do
//! not load as they are (config, tokenizer, experts).

mod attention;
mod beams;
mod best_of;
mod block;
mod config;
mod continuation;
mod decoder;
mod generate;
mod lookup;
mod owned;
mod rebuild;
mod rejection;
mod request;
mod save;
mod schedule;
mod scheduler;
mod session;
mod sharing;
mod speculative;
mod stops;
mod warm_up;
mod weights;

pub use attention::Attention;
pub use beams::{beam_search, BeamOptions};
pub use best_of::{best_of, BestOfOptions};
pub use config::{AttentionConfig, Config};
pub use continuation::Continuation;
pub use decoder::Decoder;
pub use generate::{continue_sequence, generate, GenerateOptions, SplitMix64, Utf8Stream};
pub use request::{Event, Finished, Request, RequestId};
pub use scheduler::Scheduler;
pub use session::{Draw, Fed, Session, SessionOptions, Want};
pub use speculative::{generate_speculative, Drafter, Speculated, SpeculativeOptions};
