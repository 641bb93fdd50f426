//! A [`HeadLayout`] in an app's settings: its numbers by name, read back through the constructors and their checks. Pure.

use super::heads::{Gqa, HeadLayout};
use crate::error::{Error, ErrorKind};
use serde::{Deserialize, Serialize};

/// What is written of a [`HeadLayout`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HeadNumbers {
    q_heads: usize,
    groups: usize,
    state_dim: usize,
    nope_dim: usize,
    rope_dim: usize,
    v_offset: usize,
    v_dim: usize,
    /// Of [`HeadLayout::gqa_wide`] alone.
    #[serde(default, skip_serializing_if = "is_zero")]
    wide_dim: usize,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde gives a reference
fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl From<HeadLayout> for HeadNumbers {
    fn from(heads: HeadLayout) -> Self {
        let HeadLayout { q_heads, groups, state_dim, nope_dim, rope_dim, v_offset, v_dim, wide_dim } = heads;
        HeadNumbers { q_heads, groups, state_dim, nope_dim, rope_dim, v_offset, v_dim, wide_dim }
    }
}

impl TryFrom<HeadNumbers> for HeadLayout {
    type Error = Error;

    /// Numbers that no constructor makes are refused.
    fn try_from(numbers: HeadNumbers) -> Result<Self, Error> {
        let HeadNumbers { q_heads, groups, state_dim, nope_dim, rope_dim, v_offset, v_dim, wide_dim } = numbers;
        let heads = HeadLayout { q_heads, groups, state_dim, nope_dim, rope_dim, v_offset, v_dim, wide_dim };
        let made = match wide_dim {
            0 => heads.remade(),
            wide => HeadLayout::gqa_wide(Gqa { q_heads, kv_heads: groups, head_dim: v_dim }, wide).ok(),
        };
        made.filter(|made| *made == heads)
            .ok_or_else(|| ErrorKind::argument("heads", format!("no variant of attention has the numbers {heads:?}")))
    }
}
