//! Which form of latent attention a sequence's new tokens take: absorbed or explicit. Pure.

use crate::attention::explicit::PART_PAGE;
use crate::error::{Error, ErrorKind, Result};
use crate::kv::SeqView;
use crate::model::config::{AttentionConfig, Config};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// In which of its two forms latent attention (GLA, MLA) takes the new tokens of a prompt. Both give the same result up
/// to rounding; GQA and GTA have one form.
///
/// Absorbed, queries go into the latent space: cached tokens are read as they are, and each pair of a query and a token
/// costs `2 latent_dim + rope_dim` multiply-adds per head. Explicit, keys and values are made of the cached latents
/// first: `latent_dim (head_dim + v_head_dim)` multiply-adds per head and cached token, then only
/// `head_dim + rope_dim + v_head_dim` per pair. A sequence of one new token is always absorbed.
///
/// Chosen per sequence and step, so a step may have both. Windows hold in both forms; first tokens beside a window
/// ([`keep_first`](crate::AttentionOptions::keep_first)) are absorbed only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum PrefillPath {
    /// Whichever form has fewer multiply-adds, counted for the sequence's new tokens and those that they see; absorbed
    /// below 64 new tokens, which is a tile of the explicit kernel. Over a long context explicit is from
    /// [`Config::prefill_break_even`] new tokens on, without one from 64 on.
    #[default]
    Auto,
    /// Absorbed, always.
    Absorbed,
    /// Explicit from two new tokens on.
    Explicit,
    /// Explicit from so many new tokens on, whatever the context: what was measured on an adapter
    /// ([`Session::measure_prefill`](crate::model::Session::measure_prefill)).
    From(usize),
}

/// `auto`, `absorbed`, `explicit`, or `from 300`: what [`PrefillPath::from_str`] reads.
impl fmt::Display for PrefillPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PrefillPath::Auto => f.write_str("auto"),
            PrefillPath::Absorbed => f.write_str("absorbed"),
            PrefillPath::Explicit => f.write_str("explicit"),
            PrefillPath::From(tokens) => write!(f, "from {tokens}"),
        }
    }
}

impl FromStr for PrefillPath {
    type Err = Error;

    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for other words.
    fn from_str(word: &str) -> Result<Self> {
        match word {
            "auto" => Ok(PrefillPath::Auto),
            "absorbed" => Ok(PrefillPath::Absorbed),
            "explicit" => Ok(PrefillPath::Explicit),
            _ => match word.strip_prefix("from ").map(str::parse) {
                Some(Ok(tokens)) => Ok(PrefillPath::From(tokens)),
                _ => {
                    let why = format!(
                        "{word:?} is not \"auto\", \"absorbed\", \"explicit\" or \"from\" and a number of tokens"
                    );
                    Err(ErrorKind::argument("prefill", why))
                }
            },
        }
    }
}

/// Below, a tile of the explicit kernel, whose rows are new tokens of one head, is not full.
const LEAST: usize = 64;

impl Config {
    /// New tokens from which on the explicit form of prefill has fewer multiply-adds than the absorbed one, over a context
    /// much longer than themselves: `latent_dim (k + v) / (2 latent_dim - k - v)` for heads of `k` and `v` elements. 171
    /// for DeepSeek-V3, 256 for the paper's GLA-2. None where there is no such number: GQA, GTA, and latents no wider than
    /// the mean of `k` and `v` (GLA-4).
    pub fn prefill_break_even(&self) -> Option<usize> {
        let costs = Costs::of(self)?;
        (costs.saved > 0).then(|| (costs.up as usize).div_ceil(costs.saved as usize))
    }
}

/// Multiply-adds per head.
#[derive(Debug, Clone, Copy)]
struct Costs {
    /// Of the absorbed form beyond the explicit one, per pair of a query and a token.
    saved: i64,
    /// Of making a token's key and value. Absorbing a query, and its values out of the latent space, cost the same.
    up: i64,
}

impl Costs {
    fn of(config: &Config) -> Option<Self> {
        let AttentionConfig::Latent { latent_dim, .. } = config.attention else { return None };
        // Widths that no model has have no costs either, and those of all others stay far inside 64 bits.
        let width = |dim: usize| u32::try_from(dim).ok().filter(|dim| *dim <= 1 << 20).map(i64::from);
        let (latent_dim, both) = (width(latent_dim)?, width(config.head_dim)? + width(config.v_head_dim)?);
        Some(Costs { saved: 2 * latent_dim - both, up: latent_dim * both })
    }
}

/// Chooses the form of sequences.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Choice {
    path: PrefillPath,
    costs: Costs,
    /// 0 for none.
    window: u32,
}

impl Choice {
    /// None where no sequence with up to `most_new` new tokens is ever explicit: another variant, or the path says so.
    pub(crate) fn new(config: &Config, path: PrefillPath, window: Option<usize>, most_new: usize) -> Option<Self> {
        let costs = Costs::of(config)?;
        let window = window.map_or(0, |window| u32::try_from(window).unwrap_or(u32::MAX));
        let choice = Choice { path, costs, window };
        let ever = choice.may_take(most_new) && (path != PrefillPath::Auto || costs.saved > 0);
        ever.then_some(choice)
    }

    /// Whether a sequence of so many new tokens may be explicit; with Auto it depends on those before them, too.
    pub(crate) fn may_take(&self, new: usize) -> bool {
        match self.path {
            PrefillPath::Auto => new >= LEAST,
            PrefillPath::Absorbed => false,
            PrefillPath::Explicit => new > 1,
            PrefillPath::From(least) => new >= least.max(2),
        }
    }

    /// Tokens that a sequence has at most where it is explicit, with up to `most_new` new ones.
    pub(crate) fn most_tokens(&self, most_new: usize) -> usize {
        let PrefillPath::Auto = self.path else { return usize::MAX };
        let view = |kv_len: usize| SeqView {
            page_table_first: 0,
            q_token_first: 0,
            q_len: most_new as u32,
            kv_len: kv_len as u32,
            gap_first: 0,
            gap_last: 0,
        };
        // The longer the context, the less is saved.
        let (mut least, mut most) = (most_new, 1 << 24);
        if most_new >= most || self.explicit(&view(most)).is_some() {
            return usize::MAX;
        }
        while most - least > 1 {
            let middle = least + (most - least) / 2;
            match self.explicit(&view(middle)) {
                Some(_) => least = middle,
                None => most = middle,
            }
        }
        least
    }

    /// First token that one of a sequence's new ones sees, rounded down to a page of the scratch pool.
    fn first_seen(&self, sequence: &SeqView) -> u32 {
        let before = sequence.kv_len - sequence.q_len;
        let first = if self.window == 0 { 0 } else { (before + 1).saturating_sub(self.window) };
        first - first % PART_PAGE as u32
    }

    /// What is to be made explicit for a sequence; none where it is absorbed.
    pub(crate) fn explicit(&self, sequence: &SeqView) -> Option<Range<u32>> {
        let new = sequence.q_len;
        let first = self.first_seen(sequence);
        let explicit = self.may_take(new as usize) && (self.path != PrefillPath::Auto || self.saves(sequence, first));
        explicit.then_some(first..sequence.kv_len)
    }

    /// Whether what is saved per pair is more than what keys and values cost. Those of the new tokens themselves cost
    /// what their queries and outputs do in the absorbed form.
    fn saves(&self, sequence: &SeqView, first: u32) -> bool {
        let (new, before) = (i128::from(sequence.q_len), i128::from(sequence.kv_len - sequence.q_len));
        let window = if self.window == 0 { i128::MAX } else { self.window.into() };
        // New tokens whose window is not full see all that is before them.
        let growing = (window - before).clamp(0, new);
        let full = if growing < new { (new - growing) * window } else { 0 };
        let pairs = growing * before + growing * (growing + 1) / 2 + full;
        pairs * i128::from(self.costs.saved) > (before - i128::from(first)) * i128::from(self.costs.up)
    }
}

#[cfg(test)]
#[path = "prefill_tests.rs"]
mod tests;
