//! Attention of new tokens over cached ones: [`Decode`] compiles the kernels for a [`HeadLayout`](crate::HeadLayout), plans a step
//! (which workgroup reads which tokens of which sequence) and records it, with the options of [`AttentionOptions`].
//!
//! One [`Plan`] serves all layers of a step. Kernels see buffers and page tables ([`KvView`](crate::KvView)), whoever manages
//! them; [`PagedKvCache`](crate::PagedKvCache) is the manager that comes with latten.

mod classes;
pub mod decode;
pub(crate) mod explicit;
pub(crate) mod kernels;
pub mod options;
mod output;
pub mod plan;

pub use decode::{Decode, DecodeArgs};
pub use options::AttentionOptions;
pub use output::DecodeOutput;
pub use plan::{Plan, SplitPolicy};
