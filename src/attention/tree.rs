//! Tree masks: which of a step's own tokens each of them sees, for verifying a tree of drafted tokens. Pure.

use super::view::SeqView;
use crate::error::{ErrorKind, Result};

/// New tokens of a sequence that masks can tell apart.
pub(crate) const MAX_TREE: u32 = u64::BITS;

/// Checks masks, one per query token, and leaves in each the last `window` tokens that it lets through (0: all).
///
/// Errors: [`ErrorKind::Shape`] for another number of masks; [`ErrorKind::Argument`] for a sequence of more than 64 new
/// tokens, a bit past them, or a token that does not see itself.
pub(crate) fn tree_masks(sequences: &[SeqView], masks: &[u64], window: u32) -> Result<Vec<u64>> {
    let tokens: usize = sequences.iter().map(|s| s.q_len as usize).sum();
    if masks.len() != tokens {
        return Err(ErrorKind::shape("masks", &[masks.len()], format!("({tokens}), one per query token")));
    }
    let mut trimmed = masks.to_vec();
    for (index, sequence) in sequences.iter().enumerate() {
        expect_tree(index, sequence)?;
        for m in 0..sequence.q_len {
            let mask = &mut trimmed[(sequence.q_token_first + m) as usize];
            let what = || format!("that of token {m} of sequence {index}, {mask:#x},");
            if sequence.q_len < MAX_TREE && *mask >> sequence.q_len != 0 {
                let why = format!("{} has bits past the {} new tokens", what(), sequence.q_len);
                return Err(ErrorKind::argument("masks", why));
            }
            if *mask >> m & 1 == 0 {
                return Err(ErrorKind::argument("masks", format!("{} does not let it see itself", what())));
            }
            while window > 0 && mask.count_ones() > window {
                *mask &= *mask - 1; // the earliest
            }
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
        masks.extend((0..sequence.q_len).map(|m| u64::MAX >> (MAX_TREE - 1 - m)));
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
mod tests {
    use super::*;

    fn sequences(q_lens: &[u32]) -> Vec<SeqView> {
        let mut first = 0;
        let view = |&q_len: &u32| {
            first += q_len;
            SeqView { page_table_first: 0, q_token_first: first - q_len, q_len, kv_len: 100, kv_first: 0 }
        };
        q_lens.iter().map(view).collect()
    }

    #[test]
    fn chains() {
        let batch = sequences(&[2, 0, 64]);
        let masks = chain_masks(&batch).unwrap();
        assert_eq!((masks.len(), masks[0], masks[1], masks[2], masks[65]), (66, 1, 3, 1, u64::MAX));
        assert_eq!(tree_masks(&batch, &masks, 0).unwrap(), masks);
        assert!(chain_masks(&sequences(&[65])).unwrap_err().to_string().contains("65"));
    }

    #[test]
    fn a_window_keeps_the_last() {
        let batch = sequences(&[4]);
        assert_eq!(tree_masks(&batch, &[0b1, 0b11, 0b101, 0b1011], 2).unwrap(), [0b1, 0b11, 0b101, 0b1010]);
        assert_eq!(tree_masks(&batch, &[0b1, 0b11, 0b101, 0b1011], 1).unwrap(), [0b1, 0b10, 0b100, 0b1000]);
    }
}
