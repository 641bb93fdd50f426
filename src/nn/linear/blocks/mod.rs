//! Block-quantised weights: runs of elements as small integers under scales, as GGUF files hold them.

mod block_type;
mod dequantise;
mod planes;
mod quantise;

pub use block_type::BlockType;
pub(crate) use planes::WORD;
