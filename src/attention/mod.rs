//! The attention kernels and their planner.

pub mod decode;
pub(crate) mod explicit;
pub(crate) mod kernels;
pub mod options;
pub mod plan;

pub use decode::{Decode, DecodeArgs, DecodeOutput};
pub use options::AttentionOptions;
pub use plan::{Plan, SplitPolicy};
