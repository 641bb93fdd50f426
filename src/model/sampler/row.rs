//! How one token is drawn.

use super::constraint::ConstraintCell;
use crate::error::{ErrorKind, Result};
use crate::nn::{ListedToken, Sampling};
use std::sync::Arc;

/// How the next token of one sequence is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Draw {
    /// Temperature and cuts; the default is greedy. Penalties look at tokens, which a [`Sampler`](super::Sampler) knows.
    pub sampling: Sampling,
    /// A uniform random number in [0, 1); not used by greedy draws.
    pub u: f32,
}

/// A token that was drawn.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Drawn {
    /// Which.
    pub token: u32,
    /// Its log-probability by the model's logits as they are, where it was asked for.
    pub log_probability: Option<f32>,
    /// The most likely tokens with theirs, the more likely first, where they were asked for.
    pub most_likely: Vec<(u32, f32)>,
}

impl Drawn {
    /// Of what was read back: the token's own log-probability first, then those of the most likely ones.
    pub(crate) fn new(token: u32, logprobs: &[(u32, f32)]) -> Self {
        let known = |(token, logprob): &(u32, f32)| (*token != u32::MAX).then_some((*token, *logprob));
        let log_probability = logprobs.first().and_then(known).map(|(_, logprob)| logprob);
        Drawn { token, log_probability, most_likely: logprobs.iter().skip(1).filter_map(known).collect() }
    }
}

/// How one token is drawn, with all that it hangs on.
#[derive(Debug, Clone, Default)]
pub(crate) struct DrawRow {
    pub(crate) sampling: Sampling,
    pub(crate) u: f32,
    /// Ascending.
    pub(crate) listed: Vec<ListedToken>,
    /// How many of the most likely tokens are told, if any log-probability is.
    pub(crate) logprobs: Option<usize>,
    pub(crate) constraint: Option<Arc<ConstraintCell>>,
    /// Whether `listed` has the window's tokens.
    pub(crate) knows_tokens: bool,
}

impl From<Draw> for DrawRow {
    fn from(Draw { sampling, u }: Draw) -> Self {
        DrawRow { sampling, u, ..Default::default() }
    }
}

impl DrawRow {
    /// Those of plain draws.
    pub(crate) fn of(draws: &[Draw]) -> Vec<Self> {
        draws.iter().map(|draw| Self::from(*draw)).collect()
    }

    /// Errors: [`ErrorKind::Argument`].
    pub(crate) fn check(&self, vocab: usize) -> Result<()> {
        let Sampling { penalties, .. } = self.sampling;
        self.sampling.check()?;
        if !(self.knows_tokens || penalties.are_off()) {
            let why =
                "a Draw knows no tokens that it could penalise: a Sampler does (Session::draw, Session::stream_with)";
            return Err(ErrorKind::argument("penalties", why));
        }
        if !(0.0..1.0).contains(&self.u) {
            return Err(ErrorKind::argument("u", format!("{} is not in [0, 1)", self.u)));
        }
        match self.listed.last().filter(|listed| listed.token as usize >= vocab) {
            Some(ListedToken { token, seen, .. }) => {
                let name = if *seen > 0 { "tokens" } else { "bias" };
                Err(ErrorKind::argument(name, format!("{token} is not in the vocabulary of {vocab}")))
            }
            None => Ok(()),
        }
    }

    /// Whether it has temperature and nucleus, and no more.
    pub(crate) fn is_plain(&self) -> bool {
        self.sampling.beyond_nucleus().is_none() && self.listed.is_empty() && self.constraint.is_none()
    }
}
