//! The paged KV cache: sequences, their pages, and the pools that hold them.

mod pages;
mod table;

pub use table::{CacheStats, SeqId, SeqTable};
