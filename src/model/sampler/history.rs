//! The last tokens of a sequence, counted. Pure.
#![warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use crate::nn::ListedToken;
use std::collections::{BTreeMap, VecDeque};

/// How often tokens are among the last ones.
#[derive(Debug, Clone, Default)]
pub(super) struct TokenWindow {
    /// How many of them count.
    size: usize,
    /// Those, and whether each was drawn. The oldest first.
    tokens: VecDeque<(u32, bool)>,
    /// Of each of them: how often it is there, and how often it was drawn.
    counts: BTreeMap<u32, (u32, u32)>,
}

impl TokenWindow {
    pub(super) fn new(size: u32) -> Self {
        TokenWindow { size: size as usize, ..Default::default() }
    }

    pub(super) fn push(&mut self, token: u32, drawn: bool) {
        if self.size == 0 {
            return;
        }
        if self.tokens.len() >= self.size {
            if let Some((oldest, drawn)) = self.tokens.pop_front() {
                if let Some(left) = self.counts.get(&oldest).and_then(|counts| less(*counts, drawn)) {
                    self.counts.insert(oldest, left);
                } else {
                    self.counts.remove(&oldest);
                }
            }
        }
        self.tokens.push_back((token, drawn));
        let (seen, times) = self.counts.entry(token).or_default();
        *seen = seen.saturating_add(1);
        *times = times.saturating_add(drawn.into());
    }

    /// The tokens that are still in the window when `after` more have come, which are not known, ascending.
    pub(super) fn listed(&self, after: usize) -> Vec<ListedToken> {
        let leaving = self.tokens.len().saturating_add(after).saturating_sub(self.size).min(self.tokens.len());
        let mut gone: BTreeMap<u32, (u32, u32)> = BTreeMap::new();
        for &(token, drawn) in self.tokens.iter().take(leaving) {
            let (seen, times) = gone.entry(token).or_default();
            *seen = seen.saturating_add(1);
            *times = times.saturating_add(drawn.into());
        }
        let left = |(&token, &(seen, drawn)): (&u32, &(u32, u32))| {
            let (seen_gone, drawn_gone) = gone.get(&token).copied().unwrap_or_default();
            let (seen, drawn) = (seen.saturating_sub(seen_gone), drawn.saturating_sub(drawn_gone));
            (seen > 0).then_some(ListedToken { token, seen, drawn, bias: 0.0 })
        };
        self.counts.iter().filter_map(left).collect()
    }
}

/// Counts of a token without one of them; none where that was the last.
fn less((seen, times): (u32, u32), drawn: bool) -> Option<(u32, u32)> {
    (seen > 1).then(|| (seen.saturating_sub(1), times.saturating_sub(drawn.into())))
}
