//! Append, decode and merge on the adapter that is there, against the f64 reference.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, which clippy.toml does not reach

mod adversarial;
mod append;
mod appending;
mod appending_rest;
mod case;
#[path = "../common/mod.rs"]
mod common;
mod device;
mod grid;
mod inputs;
mod integers;
mod isolation;
mod kept;
mod lost;
mod options;
mod own_pass;
mod pairwise;
mod rebuild;
mod save;
mod saved_files;
mod schedules;
mod sharing;
mod slabs;
mod split;
mod squads;
mod steps;
mod tree;
mod wide;
