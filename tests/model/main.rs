//! Model folders, forward passes, batching and errors, on tiny random models that the tests write themselves.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, which clippy.toml does not reach

mod batching;
mod beams_and_samples;
mod blocks;
mod cold;
#[path = "../common/mod.rs"]
mod common;
mod dispatches;
mod folders;
mod forward;
mod lost;
mod no_numbers;
mod prefill;
mod repeats;
mod sampled;
mod saved;
mod scheduler;
mod scheduler_ahead;
mod scheduler_hands;
mod scheduler_load;
mod scheduler_windows;
mod sharing;
mod sources;
mod speculative;
mod streams;
mod tiny;
mod wide;
mod windowed;
