//! Latent attention on any GPU.

pub mod attention;
pub mod cache;
mod error;
pub mod gpu;
pub mod inspect;
pub mod model;
pub mod nn;
pub mod reference;

pub use attention::{Decode, DecodeOutput, Gla, Gqa, Gta, HeadLayout, KvSource, Mla, Plan, Rotation, SplitPolicy};
pub use cache::{PagedKvCache, Pages, SeqId};
pub use error::{Error, ErrorKind, Result};
pub use gpu::{DType, Gpu, GpuOptions, Tensor};
pub use wgpu;
