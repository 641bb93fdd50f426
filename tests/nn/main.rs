//! The decoder block's kernels on the adapter that is there, against the f64 reference.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, which clippy.toml does not reach

mod blocks;
#[path = "../common/mod.rs"]
mod common;
mod encode;
mod experts;
mod fused;
mod integer_dot;
mod linear;
mod logprobs;
mod lost;
mod matrix;
mod rows;
mod sample;
mod sampled;
mod threads;
