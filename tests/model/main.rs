//! Model folders, forward passes, batching and errors, on tiny random models that the tests write themselves.

mod batching;
mod folders;
mod forward;
#[path = "../shared/mod.rs"]
mod shared;
mod tiny;
