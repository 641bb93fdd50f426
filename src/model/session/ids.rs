//! Where the tokens of a step come from.

use crate::gpu::{Run, Tensor};

/// Where the tokens of a step come from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ids<'a> {
    /// The call has them.
    Host,
    /// The step before drew them, one for each sequence in order, and the host may not have them yet.
    Drawn,
    /// The step before drew some: for each sequence which of its tokens, or none where the call has them.
    Some(&'a [Option<usize>]),
    /// The call has the first, and the last ones are guesses, which are with the device: (count or more) U32.
    Guessed { guesses: &'a Tensor, count: usize },
}

impl Ids<'_> {
    /// Which of the tokens of the step before a sequence feeds, where the host may not have it.
    pub(super) fn drawn(&self, sequence: usize) -> Option<usize> {
        match self {
            Ids::Host | Ids::Guessed { .. } => None,
            Ids::Drawn => Some(sequence),
            Ids::Some(drawn) => drawn[sequence],
        }
    }

    /// The guesses among them.
    pub(super) fn guesses(&self) -> Option<(&'_ Tensor, usize)> {
        match *self {
            Ids::Guessed { guesses, count } => Some((guesses, count)),
            _ => None,
        }
    }
}

/// The copy of a drawn token to where a step reads its id.
pub(super) fn id_copy(token: usize, row: usize) -> Run {
    Run { from: 4 * token as u64, to: 4 * row as u64, size: 4 }
}

/// Copies of neighbours to neighbours as one.
pub(super) fn joined(copies: Vec<Run>) -> Vec<Run> {
    let mut joined: Vec<Run> = Vec::new();
    for copy in copies {
        match joined.last_mut().filter(|last| last.from + last.size == copy.from && last.to + last.size == copy.to) {
            Some(last) => last.size += copy.size,
            None => joined.push(copy),
        }
    }
    joined
}
