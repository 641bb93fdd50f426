//! Rotary positions as numbers. Pure; the kernel is in `nn`.

mod angles;
mod scaling;

pub use angles::{cos_sin_table, Rope, RopePairs};
pub use scaling::RopeScaling;
