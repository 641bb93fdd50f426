//! How the tokens of a call are cut into steps. Pure.
#![warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use std::ops::Range;

/// Some of one sequence's tokens, in one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenRun {
    /// Index in the call's batch.
    pub(crate) sequence: usize,
    /// Which of its tokens.
    pub(crate) tokens: Range<usize>,
    /// Whether they are its last, so that its result comes with this step.
    pub(crate) last: bool,
}

/// Steps of at most `capacity` tokens in all, each filled from the sequences in order.
pub(crate) fn schedule(lengths: &[usize], capacity: usize) -> Vec<Vec<TokenRun>> {
    let capacity = capacity.max(1);
    let (mut steps, mut step, mut room) = (Vec::new(), Vec::new(), capacity);
    for (sequence, &length) in lengths.iter().enumerate() {
        let mut done = 0;
        while done < length {
            let end = length.min(done.saturating_add(room));
            step.push(TokenRun { sequence, tokens: done..end, last: end == length });
            room = room.saturating_sub(end.saturating_sub(done));
            done = end;
            if room == 0 {
                steps.push(std::mem::take(&mut step));
                room = capacity;
            }
        }
    }
    if !step.is_empty() {
        steps.push(step);
    }
    steps
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_in_one_step_in_order_and_steps_are_full() {
        for lengths in [vec![1], vec![1, 1, 1], vec![5, 1, 9], vec![8, 8], vec![3, 20, 1, 7]] {
            for capacity in [1, 2, 3, 8, 100] {
                let steps = schedule(&lengths, capacity);
                let mut seen = vec![0; lengths.len()];
                let mut ended = vec![false; lengths.len()];
                for (i, step) in steps.iter().enumerate() {
                    let tokens: usize = step.iter().map(|p| p.tokens.len()).sum();
                    assert!(
                        tokens == capacity || (i + 1 == steps.len() && tokens < capacity),
                        "{lengths:?} {capacity}"
                    );
                    for part in step {
                        assert_eq!(part.tokens.start, seen[part.sequence]);
                        assert!(!part.tokens.is_empty());
                        seen[part.sequence] = part.tokens.end;
                        ended[part.sequence] |= part.last;
                        assert_eq!(part.last, part.tokens.end == lengths[part.sequence]);
                    }
                }
                assert_eq!(seen, lengths);
                assert!(ended.iter().all(|e| *e));
            }
        }
    }
}
