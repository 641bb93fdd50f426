//! Latent attention on any GPU.

pub mod attention;
mod error;
pub mod gpu;
pub mod nn;
pub mod reference;

pub use attention::{Gla, Gqa, Gta, HeadLayout, Mla};
pub use error::{Error, ErrorKind, Result};
pub use gpu::{DType, Gpu, GpuOptions, Tensor};
pub use wgpu;
