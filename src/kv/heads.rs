//! What a variant of attention is to a kernel: six numbers. Pure.
//!
//! Source: Zadouri, Strauss, Dao, "Hardware-Efficient Attention for Fast Decoding", arXiv 2505.21487, §3.3.
#![warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

#[cfg(feature = "serde")]
use super::heads_serde::HeadNumbers;
use crate::error::{ErrorKind, Result};
use crate::sizes::MAX_DIM;

/// Grouped-Query Attention; `kv_heads == q_heads` is MHA, `kv_heads == 1` is MQA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Gqa {
    /// Query heads.
    pub q_heads: usize,
    /// Key-value heads; divides `q_heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
}

/// Grouped-Tied Attention (§3.3.1): one state per group serves as key and value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Gta {
    /// Query heads.
    pub q_heads: usize,
    /// Tied heads; divides `q_heads`.
    pub kv_heads: usize,
    /// Width of one tied state.
    pub head_dim: usize,
    /// Width of the one rotated key shared by all groups; at most `head_dim` (the paper: half of it).
    pub rope_dim: usize,
}

/// Grouped Latent Attention (§3.3.2). Here "GLA" is never Gated Linear Attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Gla {
    /// Query heads.
    pub q_heads: usize,
    /// Latent heads; divides `q_heads`.
    pub latent_heads: usize,
    /// Width of ONE latent head.
    pub latent_dim: usize,
    /// Width of the rotated key shared by all latent heads.
    pub rope_dim: usize,
}

/// Multi-head Latent Attention: GLA with a single latent head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Mla {
    /// Query heads.
    pub q_heads: usize,
    /// Width of the latent.
    pub latent_dim: usize,
    /// Width of the rotated key.
    pub rope_dim: usize,
}

/// The numbers by which kernels, planner and cache know a variant.
///
/// One token's cached row is `groups` states of `state_dim` elements, then one rope key of `rope_dim` elements
/// (shared by all groups; `rope_dim` may be 0). In place of a rope key there may be the large channels of all groups' keys, see
/// [`HeadLayout::gqa_wide`]. For query head `h` in group `h / heads_per_group`:
/// score = q[..nope_dim]·state[..nope_dim] + q[nope_dim..]·rope_key, value = state[v_offset..v_offset+v_dim].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "HeadNumbers", into = "HeadNumbers")
)]
pub struct HeadLayout {
    pub(crate) q_heads: usize,
    pub(crate) groups: usize,
    pub(crate) state_dim: usize,
    pub(crate) nope_dim: usize,
    pub(crate) rope_dim: usize,
    pub(crate) v_offset: usize,
    pub(crate) v_dim: usize,
    pub(crate) wide_dim: usize,
}

/// Every constructor refuses, with [`ErrorKind::Argument`] and the number: heads, groups or a state width of 0 or above
/// 16,384 (a GQA head of above 8,192), groups that do not divide `q_heads`, and a `rope_dim` that is odd or (GTA) exceeds `head_dim`.
impl HeadLayout {
    /// Multi-head attention: every query head has its own key and value.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for numbers that make no layout, as said above.
    pub fn mha(q_heads: usize, head_dim: usize) -> Result<Self> {
        Self::gqa(Gqa { q_heads, kv_heads: q_heads, head_dim })
    }

    /// Multi-query attention: one key and value for all query heads.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for numbers that make no layout, as said above.
    pub fn mqa(q_heads: usize, head_dim: usize) -> Result<Self> {
        Self::gqa(Gqa { q_heads, kv_heads: 1, head_dim })
    }

    /// Grouped-query attention. State `[k, v]` (2 head_dim) per KV head, the key already rotated.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for numbers that make no layout, as said above.
    pub fn gqa(v: Gqa) -> Result<Self> {
        Self {
            q_heads: v.q_heads,
            groups: v.kv_heads,
            state_dim: v.head_dim.saturating_mul(2),
            nope_dim: v.head_dim,
            rope_dim: 0,
            v_offset: v.head_dim,
            v_dim: v.head_dim,
            wide_dim: 0,
        }
        .checked("kv_heads", ("head_dim", v.head_dim, MAX_DIM / 2))
    }

    /// [`HeadLayout::gqa`] for caches of integers ([`DType::I8`](crate::DType), [`DType::I4`](crate::DType)) under keys with
    /// a few channels that are much larger than the others, as Qwen2's biases make them: `wide` channels of every KV head,
    /// which [`WideChannels`](super::WideChannels) names, are kept in f16 as well. The state then holds what the f16 leaves
    /// of them, so that the scale of its integers is that of the other channels, and nothing is lost of either.
    ///
    /// The f16 of all KV heads lie where other layouts have the rope key, `kv_heads * wide` elements (2 bytes each): queries
    /// have as many elements more, in the place of their KV head the channels once more, in the others' zeros
    /// ([`nn::RopeWideKernel`](crate::nn::RopeWideKernel) makes them). Rows to append are those of [`HeadLayout::gqa`]. Multiples of 4
    /// are fastest.
    ///
    /// # Errors
    ///
    /// As all constructors; for a `wide` that is 0, odd or above `head_dim`, or `kv_heads * wide` above 16,384.
    pub fn gqa_wide(v: Gqa, wide: usize) -> Result<Self> {
        if wide == 0 || wide > v.head_dim || !wide.is_multiple_of(2) {
            let why = format!("{wide} is not an even number in 2..={}, the width of a head", v.head_dim);
            return Err(ErrorKind::argument("wide", why));
        }
        let plain = Self::gqa(v)?;
        Self { rope_dim: plain.groups.saturating_mul(wide), wide_dim: wide, ..plain }
            .checked("kv_heads", ("head_dim", v.head_dim, MAX_DIM / 2))
    }

    /// The same without its wide channels.
    pub(crate) fn narrow(self) -> Self {
        let rope_dim = if self.wide_dim > 0 { 0 } else { self.rope_dim };
        Self { rope_dim, wide_dim: 0, ..self }
    }

    /// Grouped-tied attention. State `kv` (head_dim, never rotated) per tied head, one rope key. The key of a head is
    /// `[kv[..head_dim - rope_dim] | rope key]`, its value all of `kv`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for numbers that make no layout, as said above.
    pub fn gta(v: Gta) -> Result<Self> {
        if v.rope_dim > v.head_dim {
            return Err(ErrorKind::argument("rope_dim", format!("{} exceeds head_dim {}", v.rope_dim, v.head_dim)));
        }
        Self {
            q_heads: v.q_heads,
            groups: v.kv_heads,
            state_dim: v.head_dim,
            nope_dim: v.head_dim.saturating_sub(v.rope_dim), // checked above
            rope_dim: v.rope_dim,
            v_offset: 0,
            v_dim: v.head_dim,
            wide_dim: 0,
        }
        .checked("kv_heads", ("head_dim", v.head_dim, MAX_DIM))
    }

    /// Grouped latent attention. State `c` (latent_dim, after its RMSNorm) per latent head, one rope key; queries absorbed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for numbers that make no layout, as said above.
    pub fn gla(v: Gla) -> Result<Self> {
        Self {
            q_heads: v.q_heads,
            groups: v.latent_heads,
            state_dim: v.latent_dim,
            nope_dim: v.latent_dim,
            rope_dim: v.rope_dim,
            v_offset: 0,
            v_dim: v.latent_dim,
            wide_dim: 0,
        }
        .checked("latent_heads", ("latent_dim", v.latent_dim, MAX_DIM))
    }

    /// Multi-head latent attention: [`HeadLayout::gla`] with one latent head.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for numbers that make no layout, as said above.
    pub fn mla(v: Mla) -> Result<Self> {
        Self::gla(Gla { q_heads: v.q_heads, latent_heads: 1, latent_dim: v.latent_dim, rope_dim: v.rope_dim })
    }

    /// GLA and MLA in the explicit form: per query head a state `[k_nope (nope_dim) | v (v_dim)]`, and the one rope key of
    /// all heads.
    pub(crate) fn explicit(q_heads: usize, nope_dim: usize, v_dim: usize, rope_dim: usize) -> Result<Self> {
        let state_dim = nope_dim.saturating_add(v_dim);
        Self { q_heads, groups: q_heads, state_dim, nope_dim, rope_dim, v_offset: nope_dim, v_dim, wide_dim: 0 }
            .checked("q_heads", ("nope_dim + v_dim", state_dim, MAX_DIM))
    }

    /// The same by a constructor, with all its checks: None for numbers that none of them makes of its arguments, such as may
    /// come from a file.
    pub(crate) fn remade(self) -> Option<Self> {
        let Self { q_heads, groups, state_dim, rope_dim, v_dim, .. } = self;
        let made = [
            Self::gqa(Gqa { q_heads, kv_heads: groups, head_dim: v_dim }),
            Self::gta(Gta { q_heads, kv_heads: groups, head_dim: state_dim, rope_dim }),
            Self::gla(Gla { q_heads, latent_heads: groups, latent_dim: state_dim, rope_dim }),
        ];
        made.into_iter().flatten().find(|made| *made == self)
    }

    /// By what the caller calls the groups; `width` is its name for that of a state, the number, and the most it may be.
    fn checked(self, groups_name: &'static str, width: (&'static str, usize, usize)) -> Result<Self> {
        for (name, value, most) in [("q_heads", self.q_heads, MAX_DIM), (groups_name, self.groups, MAX_DIM), width] {
            if value == 0 || value > most {
                return Err(ErrorKind::argument(name, format!("{value} is not in 1..={most}")));
            }
        }
        if !self.q_heads.is_multiple_of(self.groups) {
            return Err(ErrorKind::argument(
                groups_name,
                format!("{} does not divide q_heads {}", self.groups, self.q_heads),
            ));
        }
        if self.rope_dim > MAX_DIM || !self.rope_dim.is_multiple_of(2) {
            return Err(ErrorKind::argument(
                "rope_dim",
                format!("{} is not an even number up to {MAX_DIM}", self.rope_dim),
            ));
        }
        Ok(self)
    }

    /// Query heads.
    pub fn q_heads(&self) -> usize {
        self.q_heads
    }
    /// States per token: KV heads, tied heads or latent heads.
    pub fn groups(&self) -> usize {
        self.groups
    }
    /// Query heads that read one state.
    pub fn heads_per_group(&self) -> usize {
        self.q_heads.checked_div(self.groups).unwrap_or(0) // not 0: checked
    }
    /// Elements of one state.
    pub fn state_dim(&self) -> usize {
        self.state_dim
    }
    /// Leading elements of a state that are its key without position.
    pub fn nope_dim(&self) -> usize {
        self.nope_dim
    }
    /// Elements of the rope key shared by all groups, or of the wide channels of all groups ([`HeadLayout::gqa_wide`]).
    pub fn rope_dim(&self) -> usize {
        self.rope_dim
    }
    /// Elements that are rotated to a token's position, of queries and keys: the rope key; without one the whole key of each
    /// head (GQA), or nothing where that is the value too (GTA and GLA with a `rope_dim` of 0). What
    /// [`Rope::new`](crate::rope::Rope::new) takes.
    pub fn rotated_dim(&self) -> usize {
        match self.narrow().rope_dim {
            // A tied state must not turn with the key.
            0 if self.v_offset == 0 => 0,
            0 => self.nope_dim,
            rope_dim => rope_dim,
        }
    }

    /// First element of the value inside a state.
    pub fn v_offset(&self) -> usize {
        self.v_offset
    }
    /// Elements of the value.
    pub fn v_dim(&self) -> usize {
        self.v_dim
    }
    /// Elements of one query row: `nope_dim + rope_dim`.
    pub fn q_dim(&self) -> usize {
        self.nope_dim.saturating_add(self.rope_dim)
    }
    /// Channels of each group's key that are kept in f16 beside its integers ([`HeadLayout::gqa_wide`]); else 0.
    pub fn wide_dim(&self) -> usize {
        self.wide_dim
    }
    /// Elements of one token's row as `append` takes it, `groups * state_dim + rope_dim`; wide channels, which `append` makes
    /// of the states, are not among them.
    pub fn kv_dim(&self) -> usize {
        self.groups.saturating_mul(self.state_dim).saturating_add(self.narrow().rope_dim)
    }
}
