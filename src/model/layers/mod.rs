//! The layers of a decoder: a block's attention, in its forms, and its feed-forward part.

pub(crate) mod attention;
pub(crate) mod block;
mod direct;
pub(crate) mod explicit;
pub(crate) mod feed_forward;
pub(crate) mod kinds;
pub(crate) mod large_keys;
pub(crate) mod prefill;
pub(crate) mod projections;

pub use attention::{Attention, AttentionArgs};
pub use explicit::ExplicitPrefill;
pub use prefill::PrefillPath;
