//! Rotary positions as numbers. Pure; the kernel is in `nn`.

mod rotation;
mod scaling;

pub use rotation::{cos_sin_table, Rotation};
pub use scaling::RopeScaling;
