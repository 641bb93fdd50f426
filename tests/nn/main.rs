//! The decoder block's kernels on the adapter that is there, against the f64 reference.

mod linear;
mod rows;
mod sample;
#[path = "../shared/mod.rs"]
mod shared;
mod threads;
