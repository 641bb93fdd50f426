//! The server as clients see it, over HTTP, with the models of bytes.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, which clippy.toml does not reach

mod answers;
mod bad;
mod client;
mod ends;
mod many;
mod ranks;
