//! Decode attention with a small KV cache, on any GPU that [wgpu](https://wgpu.rs) reaches.
//!
//! Grouped-Tied (GTA), Grouped Latent (GLA), Multi-head Latent (MLA) and Grouped-Query Attention (GQA, with MHA and MQA
//! as its ends) of Zadouri, Strauss, Dao, "Hardware-Efficient Attention for Fast Decoding", arXiv 2505.21487, as WGSL
//! compute kernels over a paged cache in f32, f16, bf16, i8 or i4. "GLA" here is never Gated Linear Attention.
//!
//! # Which layer do I use?
//!
//! latten has three layers. Each is used without those behind it.
//!
//! | you have | you want | use |
//! |---|---|---|
//! | your own model and your own compute passes | **attention**: the kernels | [`Decode::encode`], [`kv::Append::encode`]; a [`PagedKvCache`] holds the pages. `examples/own_device.rs` |
//! | your own model | **cache**: attention with sequences, sharing, saving | [`PagedKvCache`], [`Decode::run`]; [`nn`] has linear, norm, rope, SwiGLU, sampling. `examples/own_layer/` |
//! | a model folder | **model**: text | [`Decoder`], [`Session`], [`model::generate()`]; [`model::Scheduler`] for many requests. `examples/quickstart.rs` |
//!
//! The module `model` is behind the feature of that name, which is on by default.
//!
//! # The short program
//!
//! One [`HeadLayout`] describes the variant to everything else; the loop is the same for all of them.
//!
//! ```no_run
//! use latten::{CacheOptions, DType, Decode, DecodeArgs, Gla, Gpu, HeadLayout, PagedKvCache};
//! use latten::{Pages, Result, Rope, RopePairs, Tensor};
//!
//! /// Your model's part of a layer.
//! trait Layer {
//!     /// Absorbed and rotated queries (tokens, q_heads, q_dim); cache rows (tokens, kv_dim), not rotated.
//!     fn project(&self, x: &Tensor, cos_sin: &Tensor) -> Result<(Tensor, Tensor)>;
//!     /// The residual stream after the layer, from the attended values (tokens, q_heads, v_dim).
//!     fn finish(&self, x: &Tensor, attended: &Tensor) -> Result<Tensor>;
//! }
//!
//! async fn decode_loop(layers: &[Box<dyn Layer>], mut x: Tensor, steps: usize) -> Result<()> {
//!     let gpu = Gpu::new().await?; // or Gpu::from_wgpu(&adapter, device, queue)?
//!     let heads = HeadLayout::gla(Gla { q_heads: 16, latent_heads: 2, latent_dim: 256, rope_dim: 64 })?;
//!     let rope = Rope::new(heads.rotated_dim(), 10_000.0, RopePairs::Half)?;
//!     let pages = Pages { count: 1024, size: 64, layers: layers.len() };
//!     let options = CacheOptions { rope: Some(rope), ..CacheOptions::new(DType::F16, pages) }; // append rotates keys
//!     let mut cache = PagedKvCache::new(&gpu, heads, options)?;
//!     let decode = Decode::new(&gpu, heads, DType::F16)?; // compiles here, not in the loop
//!     let softmax_scale = (128.0f32 + 64.0).powf(-0.5); // head_dim + rope_dim, before absorption
//!
//!     let seq = cache.insert();
//!     for _ in 0..steps {
//!         cache.reserve(&[seq], 1)?; // or an error, CacheFull { needed, free }, and nothing changed
//!         let plan = decode.plan(&cache, &[seq])?; // which workgroup reads what, for all layers
//!         let cos_sin = cache.cos_sin(&[seq])?; // at the new token's position
//!         for (i, layer) in layers.iter().enumerate() {
//!             let (q, kv) = layer.project(&x, &cos_sin)?; // (1, 16, 320) and (1, 576)
//!             cache.append(i, &[seq], &kv)?;
//!             let attended = decode.run(DecodeArgs::new(&plan, &cache.layer(i)?, &q, softmax_scale))?;
//!             x = layer.finish(&x, &attended.out)?; // out: (1, 16, 256)
//!         }
//!         let _logits: Vec<f32> = gpu.download(&x).await?; // the step's one submit, and its one wait
//!         cache.commit(&[seq], 1)?;
//!     }
//!     Ok(())
//! }
//! ```
//!
//! With a model in this crate's folder format, [`model`] does all of that:
//!
//! ```no_run
//! use latten::model::{generate, GenerateOptions};
//! use latten::{DType, Decoder, Gpu, Session, SessionOptions};
//! use std::ops::ControlFlow;
//!
//! # async fn f() -> latten::Result<()> {
//! let gpu = Gpu::new().await?;
//! // A folder with config.json and model.safetensors; this one is in latten's repository.
//! let decoder = Decoder::load(&gpu, "examples/models/gla", DType::F16)?;
//! let mut session = Session::new(&decoder, SessionOptions::default())?;
//! let prompt: Vec<u32> = "ROMEO:\n".bytes().map(u32::from).collect();
//! let tokens = generate(&mut session, &prompt, GenerateOptions::default(), |_token| ControlFlow::Continue(())).await?;
//! # Ok(()) }
//! ```
//!
//! # Modules
//!
//! - [`gpu`]: device, tensors, uploads and downloads. Every kernel has `run`, which records into the [`Gpu`]'s own
//!   commands, and `encode`, which records into a compute pass of yours. Nothing is submitted until a result is read,
//!   memory is overwritten from the host, or [`Gpu::submit`] is called.
//! - [`kv`]: [`HeadLayout`], the kernel that appends rows, and what kernels see of a cache.
//! - [`attention`]: [`Decode`], its options, and plans.
//! - [`cache`]: [`PagedKvCache`], sequences and pages, saved and loaded.
//! - [`rope`]: frequencies, their scaling, and tables of cosines and sines.
//! - [`nn`]: linear, norm, rotary positions, SwiGLU, experts, embedding, sampling.
//! - [`parallel`]: what ranks exchange, where several devices compute one model.
//! - [`model`]: a Llama-style decoder over all of these.
//! - [`reference`](mod@reference): every kernel as plain f64 loops, the specification. Needs no GPU.
//! - [`inspect`]: the assembled text of the attention kernels. Needs no GPU.
//!
//! # Conventions
//!
//! Tensors are dense and row-major; shapes are written `(tokens, q_heads, q_dim)`, sizes count elements unless a name
//! ends in `_bytes`. Activations are F32; weights are F32 or F16, caches F32, F16, BF16, I8 or I4 (packed in `u32`s: no
//! `shader-f16` needed).
//! Every failure is an [`Error`] with an [`ErrorKind`] to match on; arguments are checked before anything is recorded.
//! Functions are `async` only where they wait for the device: creation and downloads.
//!
//! # Features
//!
//! `vulkan`, `metal`, `dx12` and `webgpu`, wgpu's backends, all on by default; each compiles to nothing on a platform
//! that lacks it. OpenGL is refused: it has no bounds checks. wgpu itself is re-exported as [`wgpu`].
//!
//! `model`, on by default: the module of that name. Without it the crate is attention, cache and the other kernels of a layer, and
//! depends on no JSON and no safetensors. `tokenizers`, off: `tokenizer.json` of published models, for
//! `model::Tokenizer`. `serde`, off: `Serialize` and `Deserialize` for options, [`HeadLayout`], [`DType`] and other small enums, as
//! an app keeps them in its settings; what is left out of options is as by default.

// What only `model` uses stays where it belongs. The default build tells what nobody uses.
#![cfg_attr(not(feature = "model"), allow(dead_code, unused_imports, rustdoc::broken_intra_doc_links))]

pub mod attention;
pub mod cache;
mod error;
pub mod gpu;
pub mod inspect;
mod io;
pub mod kv;
#[cfg(feature = "model")]
pub mod model;
pub mod nn;
pub mod parallel;
pub mod reference;
pub mod rope;
mod self_test;
mod sizes;
mod start;

#[doc(inline)]
pub use attention::{AttentionOptions, Decode, DecodeArgs, DecodeOutput, Plan, SplitPolicy};
#[doc(inline)]
pub use cache::{CacheOptions, CacheStats, PagedKvCache, Pages, SeqId, SequenceOptions};
#[doc(inline)]
pub use error::{Error, ErrorKind, RankFault, Result, SavedFault};
#[doc(inline)]
pub use gpu::{
    Capabilities, CompileTime, DType, DispatchTime, Element, Gpu, GpuOptions, LimitsChoice, Parallelism, PassTime,
    SubmitTimes, Tensor, Tier,
};
#[doc(inline)]
pub use kv::{Gla, Gqa, Gta, HeadLayout, KvBatch, KvSource, KvView, Mla, WideChannels};
#[cfg(feature = "model")]
#[doc(inline)]
pub use model::{Decoder, Session, SessionOptions};
#[doc(inline)]
pub use rope::{Rope, RopePairs};
pub use wgpu;

/// The programs of the README and of the guides compile.
#[cfg(all(doctest, feature = "model"))]
#[doc = include_str!("../README.md")]
#[doc = include_str!("../docs/guide/own-device.md")]
#[doc = include_str!("../docs/guide/saving.md")]
#[doc = include_str!("../docs/guide/serving.md")]
#[doc = include_str!("../docs/guide/sharing.md")]
#[doc = include_str!("../docs/sharding.md")]
struct Readme;
