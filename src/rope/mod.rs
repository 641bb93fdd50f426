//! Rotary positions as numbers: frequencies ([`Rope`]), their scaling for longer texts, and tables of cosines and sines for a
//! step. Pure; the kernel that rotates queries is [`nn::RopeKernel`](crate::nn::RopeKernel).

mod angles;
mod scaling;

pub use angles::{cos_sin_table, Rope, RopePairs};
pub use scaling::RopeScaling;
