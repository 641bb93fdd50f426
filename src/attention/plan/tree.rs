//! Tree masks: which of a step's own tokens each of them sees, for verifying a tree of drafted tokens. Pure.
#![warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use crate::error::{ErrorKind, Result};
use crate::kv::view::SeqView;

/// New tokens of a sequence that masks can tell apart.
pub(crate) const MAX_TREE: u32 = u64::BITS;

/// Of the tokens that a mask lets through, those before the step included, which a query token sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shown {
    /// The last this many; 0 for all.
    pub window: u32,
    /// And the first this many.
    pub keep_first: u32,
}

impl Shown {
    /// What is left of a mask over tokens that follow `before` others.
    fn of(self, mask: u64, before: u32) -> u64 {
        let first = self.keep_first.saturating_sub(before);
        let hidden = match self.window {
            0 => 0,
            window => mask.count_ones().saturating_sub(window),
        };
        let (mut left, mut rest) = (mask, mask);
        for rank in 0..hidden {
            let earliest = rest & rest.wrapping_neg();
            rest ^= earliest;
            if rank >= first {
                left ^= earliest;
            }
        }
        left
    }
}

/// Checks masks, one per query token, and leaves in each what is shown of it.
///
/// Errors: [`ErrorKind::Shape`] for another number of masks; [`ErrorKind::Argument`] for a sequence of more than 64 new
/// tokens, a bit past them, or a token that does not see itself.
pub(crate) fn tree_masks(sequences: &[SeqView], masks: &[u64], shown: Shown) -> Result<Vec<u64>> {
    let tokens: usize = sequences.iter().map(|s| s.q_len as usize).sum();
    if masks.len() != tokens {
        return Err(ErrorKind::shape("masks", &[masks.len()], format!("({tokens}), one per query token")));
    }
    let mut trimmed = masks.to_vec();
    for (index, sequence) in sequences.iter().enumerate() {
        expect_tree(index, sequence)?;
        for m in 0..sequence.q_len {
            let at = sequence.q_token_first.checked_add(m);
            let Some(mask) = at.and_then(|at| trimmed.get_mut(at as usize)) else {
                let why = format!("sequence {index} begins at query token {}, of {tokens}", sequence.q_token_first);
                return Err(ErrorKind::argument("q_token_first", why));
            };
            let what = || format!("that of token {m} of sequence {index}, {mask:#x},");
            if sequence.q_len < MAX_TREE && *mask >> sequence.q_len != 0 {
                let why = format!("{} has bits past the {} new tokens", what(), sequence.q_len);
                return Err(ErrorKind::argument("masks", why));
            }
            if *mask >> m & 1 == 0 {
                return Err(ErrorKind::argument("masks", format!("{} does not let it see itself", what())));
            }
            // Before the check that kv_len is at least q_len, which is the planner's.
            *mask = shown.of(*mask, sequence.kv_len.saturating_sub(sequence.q_len));
        }
    }
    Ok(trimmed)
}

/// The masks of plain sequences: each token sees those before it and itself.
///
/// Errors: [`ErrorKind::Argument`] for a sequence of more than 64 new tokens.
pub(crate) fn chain_masks(sequences: &[SeqView]) -> Result<Vec<u64>> {
    let mut masks = Vec::new();
    for (index, sequence) in sequences.iter().enumerate() {
        expect_tree(index, sequence)?;
        masks.extend((1..=sequence.q_len).map(|seen| u64::MAX >> MAX_TREE.saturating_sub(seen)));
    }
    Ok(masks)
}

fn expect_tree(index: usize, sequence: &SeqView) -> Result<()> {
    if sequence.q_len > MAX_TREE {
        let why = format!("sequence {index} has {} new tokens, a tree mask tells {MAX_TREE} apart", sequence.q_len);
        return Err(ErrorKind::argument("masks", why));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn sequences(q_lens: &[u32]) -> Vec<SeqView> {
        let mut first = 0;
        let view = |&q_len: &u32| {
            first += q_len;
            SeqView { page_table_first: 0, q_token_first: first - q_len, q_len, kv_len: 100, gap_first: 0, gap_last: 0 }
        };
        q_lens.iter().map(view).collect()
    }

    #[test]
    fn chains() {
        let batch = sequences(&[2, 0, 64]);
        let masks = chain_masks(&batch).unwrap();
        assert_eq!((masks.len(), masks[0], masks[1], masks[2], masks[65]), (66, 1, 3, 1, u64::MAX));
        assert_eq!(tree_masks(&batch, &masks, Shown { window: 0, keep_first: 9 }).unwrap(), masks);
        assert!(chain_masks(&sequences(&[65])).unwrap_err().to_string().contains("65"));
    }

    #[test]
    fn a_window_keeps_the_last() {
        let batch = sequences(&[4]);
        let tree = [0b1, 0b11, 0b101, 0b1011];
        let cut = |window, keep_first| tree_masks(&batch, &tree, Shown { window, keep_first }).unwrap();
        assert_eq!(cut(2, 0), [0b1, 0b11, 0b101, 0b1010]);
        assert_eq!(cut(1, 0), [0b1, 0b10, 0b100, 0b1000]);
        // 96 tokens come before the step's: the first 98 are those and two of each line.
        assert_eq!(cut(1, 96), cut(1, 0));
        assert_eq!(cut(1, 97), [0b1, 0b11, 0b101, 0b1001]);
        assert_eq!(cut(1, 98), [0b1, 0b11, 0b101, 0b1011]);
        assert_eq!(cut(1, u32::MAX), tree);
        let long = tree_masks(&sequences(&[64]), &[u64::MAX; 64].map(|mask| mask), Shown { window: 3, keep_first: 38 });
        assert_eq!(long.unwrap(), [0b11 | 0b111 << 61; 64]);
    }
}
