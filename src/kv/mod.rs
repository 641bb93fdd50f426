//! What a cached token is and where it lies: [`HeadLayout`], the one description of a variant of attention; rows in pages, page
//! tables, and [`Append`], the kernel that writes rows.

pub mod append;
pub mod heads;
#[cfg(feature = "serde")]
mod heads_serde;
pub mod layout;
pub(crate) mod pool;
mod shard;
pub mod tables;
pub(crate) mod turns;
pub mod view;
mod wide;

pub use crate::gpu::Span;
pub use append::{Append, AppendArgs};
pub use heads::{Gla, Gqa, Gta, HeadLayout, Mla};
pub use layout::{KvView, StateLayout};
pub use shard::HeadShard;
pub use view::{KvBatch, KvSource, SeqView};
pub use wide::WideChannels;
