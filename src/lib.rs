//! Latent attention on any GPU.

pub mod attention;
pub mod cache;
mod error;
pub mod gpu;

pub use attention::{Gla, Gqa, Gta, HeadLayout, Mla, SplitPolicy};
pub use cache::{CacheStats, SeqId, SeqTable};
pub use error::{Error, ErrorKind, Result};
pub use gpu::{DType, Gpu, GpuOptions, Tensor};
pub use wgpu;
