//! The split-KV planner: which workgroup reads which tokens, decided on the host from lengths alone.

pub(crate) mod balance;
pub(crate) mod buffer;
mod cut;
pub(crate) mod gap;
pub(crate) mod planner;
pub(crate) mod shape;
pub(crate) mod tree;
pub(crate) mod work;

pub use planner::Plan;
pub use work::SplitPolicy;
