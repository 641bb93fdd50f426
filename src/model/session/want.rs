//! What a call of [`Session::feed`] is to return, and what it does where no token can be drawn.

use super::schedule::Part;
use super::Session;
use crate::cache::SeqId;
use crate::error::{Error, ErrorKind, Result};
use crate::nn::{Sample, Sampling};

/// How the next token of one sequence is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Draw {
    /// Temperature and nucleus; the default is greedy.
    pub sampling: Sampling,
    /// A uniform random number in [0, 1); not used by greedy draws.
    pub u: f32,
}

/// What [`Session::feed`] is to return for each sequence.
#[derive(Debug, Clone, Copy)]
pub enum Want<'a> {
    /// The token after its last one, drawn on the device: one [`Draw`] per sequence. Nothing else is read back.
    Token(&'a [Draw]),
    /// The logits after its last token.
    Logits,
    /// [`Want::Token`] and the logits that it was drawn from: the logits after its last token.
    TokenAndLogits(&'a [Draw]),
    /// The logits after each of its tokens.
    AllLogits,
}

impl<'a> Want<'a> {
    pub(crate) fn draws(&self) -> Option<&'a [Draw]> {
        match *self {
            Want::Token(draws) | Want::TokenAndLogits(draws) => Some(draws),
            Want::Logits | Want::AllLogits => None,
        }
    }
}

/// What [`Session::feed`] returns, by sequence in the order of the call.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fed {
    /// For [`Want::Token`] and [`Want::TokenAndLogits`].
    pub tokens: Vec<u32>,
    /// For [`Want::Logits`] and [`Want::TokenAndLogits`] (vocab_size), [`Want::AllLogits`] (tokens, vocab_size), flat.
    pub logits: Vec<Vec<f32>>,
}

/// What becomes of a call in which no token can be drawn for one of the sequences.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Undrawn<'a> {
    /// It fails, for all.
    Fails,
    /// It goes on. Those sequences of the batch for which it matters get [`Sample::NO_TOKEN`], and keep nothing of their
    /// last step.
    IsTold(&'a [bool]),
}

impl Undrawn<'_> {
    /// Whether the part is a sequence's last, its token matters, and none could be drawn.
    pub(crate) fn spoils(&self, part: &Part, fed: &Fed) -> bool {
        let matters = match self {
            Undrawn::Fails => true,
            Undrawn::IsTold(matters) => matters.get(part.sequence).copied().unwrap_or(true),
        };
        matters && part.last && fed.tokens.get(part.sequence) == Some(&Sample::NO_TOKEN)
    }
}

impl Session {
    /// Fails where no token was drawn for one of the parts that end, if that is to fail.
    pub(crate) fn check_drawn(
        &self,
        batch: &[(SeqId, &[u32])],
        ending: &[&Part],
        fed: &Fed,
        undrawn: Undrawn<'_>,
    ) -> Result<()> {
        let fails = matches!(undrawn, Undrawn::Fails);
        match ending.iter().find(|part| fails && undrawn.spoils(part, fed)) {
            Some(part) => {
                let id = batch[part.sequence].0;
                // The tokens of this step are not committed yet.
                let last = (self.len(id)? + part.tokens.len()).saturating_sub(1);
                Err(no_probabilities(id, last))
            }
            None => Ok(()),
        }
    }
}

/// The error of logits from which no token can be drawn: those after a sequence's token `position`, counted from 0.
pub(crate) fn no_probabilities(id: SeqId, position: usize) -> Error {
    let why = format!(
        "of sequence {id}, after its token {position}: a NaN, +infinity or none finite, so the model gives no probabilities"
    );
    ErrorKind::argument("logits", why)
}
