//! What tests share: the adapter, seeded numbers, layouts, comparison with the f64 reference.
#![allow(dead_code, unused_imports)] // each test binary uses a part of it

pub mod checkout;
mod compare;
mod doomed;
mod gpu;
mod layouts;
mod random;
pub mod tier;

pub use compare::*;
pub use doomed::*;
pub use gpu::*;
pub use layouts::*;
pub use random::*;
pub use tier::gpu_with;
