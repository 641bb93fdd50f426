//! A small Llama-style decoder over the crate's attention: GQA, GTA, GLA or MLA.
//!
//! A model folder holds `config.json` ([`Config`]) and `model.safetensors`. A [`Decoder`] is the weights and compiled
//! kernels, shared and never changed; a [`Session`] is a KV cache and the buffers of a step; [`generate()`] runs one
//! prompt.

mod attention;
mod block;
mod config;
mod decoder;
mod generate;
mod schedule;
mod session;
mod weights;

pub use attention::Attention;
pub use config::{AttentionConfig, Config};
pub use decoder::Decoder;
pub use generate::{generate, GenerateOptions, SplitMix64, Utf8Stream};
pub use session::{Draw, Fed, Session, SessionOptions, Want};
