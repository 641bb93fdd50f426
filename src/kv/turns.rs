//! Whose token it is, where ranks divide sequences by context: they take turns, a page of the session being one turn of all. Pure.
//!
//! A page of `size * run` tokens is `run` tokens of each rank, in the order of the ranks, and a page of that number in the pool of each.
//! So page tables are alike on all ranks, and what is done to pages (a fork, a prefix that is found, a copy) is done alike.
//!
//! A rank's tokens of a sequence, in order, are a shorter sequence, which kernels take as any other. A query token sees the first so
//! many of them: as many more with each token of the rank's own run, and no more with those of others. So the new tokens of a
//! sequence are cut where turns end, and each part is planned as a sequence of its own.
#![warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use super::view::SeqView;
use crate::error::Result;
use crate::parallel::Shard;
use std::ops::Range;

/// The tokens of one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TokenShare {
    rank: u32,
    size: u32,
    /// Tokens of one turn of one rank: of its pages.
    run: u32,
}

/// Where a token is written that another rank keeps: no pool has that slot.
pub(crate) const NOT_HERE: u32 = u32::MAX;

impl TokenShare {
    /// Of pages of so many tokens over all ranks.
    ///
    /// Errors: [`ErrorKind::Argument`](crate::ErrorKind::Argument) where the ranks cannot divide a page.
    pub(crate) fn new(shard: Shard, page_size: usize) -> Result<Self> {
        let run = shard.part("page_size", page_size)?.len();
        // Ranks are at most 1024, and pages at most 4096 tokens: who makes a cache of it checks that.
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(TokenShare { rank: number(shard.rank()), size: number(shard.size()), run: number(run).max(1) })
    }

    /// That of these [`TokenShare::numbers`], if it is one that ranks have.
    pub(crate) fn of_numbers([rank, size, run]: [u32; 3]) -> Option<Self> {
        let shard = Shard::new(rank as usize, size as usize).ok().filter(|_| size > 1)?;
        Self::new(shard, (size as usize).checked_mul(run as usize).filter(|page| *page > 0)?).ok()
    }

    /// Rank, number of ranks, tokens of a turn.
    pub(crate) fn numbers(&self) -> [u32; 3] {
        [self.rank, self.size, self.run]
    }

    /// Tokens of a page of the rank's pool.
    pub(crate) fn run(&self) -> usize {
        self.run as usize
    }

    /// Of the first so many tokens of a sequence, those of this rank.
    pub(crate) fn count(&self, tokens: usize) -> usize {
        let (run, turn) = (self.run as usize, (self.run as usize).saturating_mul(self.size as usize));
        let (whole, rest) = (tokens.checked_div(turn).unwrap_or(0), tokens.checked_rem(turn).unwrap_or(0));
        let before = run.saturating_mul(self.rank as usize);
        whole.saturating_mul(run).saturating_add(rest.saturating_sub(before).min(run))
    }

    /// Where the token of a slot of all ranks' pages lies in this rank's pool, or [`NOT_HERE`].
    pub(crate) fn slot(&self, slot: u32) -> u32 {
        let turn = self.run.saturating_mul(self.size);
        let (page, offset) = (slot.checked_div(turn).unwrap_or(0), slot.checked_rem(turn).unwrap_or(0));
        match offset.checked_div(self.run) {
            Some(rank) if rank == self.rank => {
                page.saturating_mul(self.run).saturating_add(offset.checked_rem(self.run).unwrap_or(0))
            }
            _ => NOT_HERE,
        }
    }

    /// What a planner takes for the new tokens of a sequence: parts, and of each the tokens that it sees beside the causal mask. There are
    /// no gaps: where ranks divide a sequence there is no window.
    pub(crate) fn parts(&self, sequence: &SeqView) -> Vec<(SeqView, Range<u32>)> {
        let (turn_of, count) = (
            |at: u32| at.checked_div(self.run).unwrap_or(0),
            |at: u32| u32::try_from(self.count(at as usize)).unwrap_or(u32::MAX),
        );
        let own = |at: u32| turn_of(at).checked_rem(self.size) == Some(self.rank);
        let (first, mut parts) = (sequence.kv_len.saturating_sub(sequence.q_len), Vec::new());
        let mut at = first;
        while at < sequence.kv_len {
            // To the end of the run, or of the runs of others that follow each other.
            let mut end = turn_of(at).saturating_add(1).saturating_mul(self.run);
            while !own(at) && !own(end) && end < sequence.kv_len {
                end = end.saturating_add(self.run);
            }
            let end = end.min(sequence.kv_len);
            let (q_len, seen) = (end.saturating_sub(at), count(end));
            // Of a run of others all tokens see what was there before: past the end of that there is nothing to see.
            let kv_len = if own(at) { seen } else { seen.saturating_add(q_len) };
            let q_token_first = sequence.q_token_first.saturating_add(at.saturating_sub(first));
            parts.push((SeqView { q_token_first, q_len, kv_len, gap_first: 0, gap_last: 0, ..*sequence }, 0..seen));
            at = end;
        }
        parts
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn shares(size: usize, run: usize) -> Vec<TokenShare> {
        (0..size).map(|rank| TokenShare::new(Shard::new(rank, size).unwrap(), size * run).unwrap()).collect()
    }

    /// Rank of a token, by its definition.
    fn owner(token: usize, size: usize, run: usize) -> usize {
        token / run % size
    }

    #[test]
    fn every_token_is_one_ranks() {
        for (size, run) in [(1, 4), (2, 1), (2, 8), (3, 4), (4, 2)] {
            for (rank, share) in shares(size, run).into_iter().enumerate() {
                let mut own = 0;
                for token in 0..100 {
                    assert_eq!(share.count(token), own, "{share:?}, first {token}");
                    // Pages 7, 3, 7, 3, ..: the slot within the page is that of the token within the turn.
                    let page = if token / (size * run) % 2 == 0 { 7 } else { 3 };
                    let slot = share.slot((page * size * run + token % (size * run)) as u32);
                    if owner(token, size, run) == rank {
                        assert_eq!(slot as usize, page * run + own % run, "{share:?}, token {token}");
                        own += 1;
                    } else {
                        assert_eq!(slot, NOT_HERE);
                    }
                }
            }
        }
    }

    /// Each query token is in one part, and sees by causal mask and bound what this rank has up to it.
    #[test]
    fn parts_see_what_is_before() {
        for (size, run) in [(1, 4), (2, 1), (2, 8), (3, 4), (4, 2)] {
            for share in shares(size, run) {
                for (kv_len, q_len) in [(1, 1), (5, 5), (40, 1), (40, 33), (64, 7), (17, 0), (100, 64)] {
                    let all =
                        SeqView { page_table_first: 9, q_token_first: 11, q_len, kv_len, gap_first: 0, gap_last: 0 };
                    let mut next = 11;
                    for (part, seen) in share.parts(&all) {
                        assert_eq!((part.q_token_first, part.page_table_first), (next, 9));
                        assert!(part.q_len > 0 && part.kv_len >= part.q_len);
                        for m in 0..part.q_len {
                            let position = kv_len - q_len + (part.q_token_first - 11) + m;
                            let sees = (part.kv_len + m + 1 - part.q_len).min(seen.end);
                            assert_eq!(
                                (sees as usize, seen.start),
                                (share.count(position as usize + 1), 0),
                                "{share:?} {all:?}"
                            );
                        }
                        next += part.q_len;
                    }
                    assert_eq!(next, 11 + q_len, "{share:?} {all:?}");
                }
            }
        }
    }

    #[test]
    fn pages_that_cannot_be_divided_are_refused() {
        let error = TokenShare::new(Shard::new(0, 3).unwrap(), 64).unwrap_err().to_string();
        assert_eq!(error, "page_size: 64 cannot be divided among 3 ranks");
    }
}
