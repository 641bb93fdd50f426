//! The attention kernels and their planner.

pub mod heads;
#[allow(dead_code)] // until decode.rs calls it
pub(crate) mod plan;
pub mod view;

pub use heads::{Gla, Gqa, Gta, HeadLayout, Mla};
pub use plan::SplitPolicy;
pub use view::{KvBatch, KvSource, SeqView};
