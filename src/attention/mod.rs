//! The attention kernels and their planner.

pub mod append;
mod balance;
pub mod decode;
pub(crate) mod decode_plan;
pub(crate) mod explicit;
mod gap;
pub mod heads;
pub(crate) mod kernels;
pub mod layout;
pub(crate) mod matrix;
pub mod options;
pub(crate) mod plan;
pub(crate) mod plan_buffer;
mod plan_shape;
pub(crate) mod pool;
pub(crate) mod rows;
pub(crate) mod select;
pub(crate) mod shape;
pub mod tables;
pub(crate) mod tree;
pub mod view;
mod wide;

pub use append::{Append, AppendArgs, Rotation};
pub use decode::{Decode, DecodeArgs, DecodeOutput};
pub use decode_plan::Plan;
pub use heads::{Gla, Gqa, Gta, HeadLayout, Mla};
pub use layout::{KvView, StateLayout};
pub use options::AttentionOptions;
pub use plan::SplitPolicy;
pub use view::{KvBatch, KvSource, SeqView};
pub use wide::WideChannels;
