//! The attention kernels and their planner.

pub mod heads;
pub mod view;

pub use heads::{Gla, Gqa, Gta, HeadLayout, Mla};
pub use view::{KvBatch, KvSource, SeqView};
