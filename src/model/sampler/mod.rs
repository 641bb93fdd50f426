//! How the tokens of one sequence are drawn, one after the other: numbers, what was there before, and what is allowed. Pure, but
//! for threads that make masks.

mod constraint;
mod history;
pub(crate) mod random;
mod row;

pub(crate) use constraint::ConstraintCell;
pub use constraint::{Constraint, TokenMask};
pub(crate) use row::DrawRow;
pub use row::{Draw, Drawn};

use crate::error::{ErrorKind, Result};
use crate::nn::{ListedToken, Logprobs, Sampling};
use history::TokenWindow;
use random::SplitMix64;
use std::fmt;
use std::sync::Arc;

/// Draws the tokens of one sequence: a [`Sampling`] with the random numbers of a seed, the tokens that penalties look at, biases,
/// and what a [`Constraint`] allows. [`Session::draw`](super::Session::draw) and [`Session::stream_with`](super::Session::stream_with)
/// ask it before each token and tell it what was drawn; it moves on only then, so that a step which failed may be repeated.
///
/// It does not know what a sequence holds: [`Sampler::see`] tells it of the prompt.
pub struct Sampler {
    sampling: Sampling,
    random: SplitMix64,
    /// By token, each once.
    bias: Vec<(u32, f32)>,
    window: TokenWindow,
    logprobs: Option<usize>,
    constraint: Option<Arc<ConstraintCell>>,
}

impl Sampler {
    /// One that draws with these numbers. The same seed draws the same tokens, those of
    /// [`generate()`](crate::model::generate()) with it.
    ///
    /// # Errors
    ///
    /// Those of [`Sampling::check`].
    pub fn new(sampling: Sampling, seed: u64) -> Result<Self> {
        sampling.check()?;
        let window = TokenWindow::new(if sampling.penalties.are_off() { 0 } else { sampling.penalties.window });
        let random = SplitMix64::new(seed);
        Ok(Sampler { sampling, random, bias: Vec::new(), window, logprobs: None, constraint: None })
    }

    /// Adds these numbers to the logits of tokens, in place of those given before. Whether the tokens are in the vocabulary is
    /// checked where it draws.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for a token that is named twice, and a number outside -1000..=1000.
    pub fn with_bias(mut self, bias: &[(u32, f32)]) -> Result<Self> {
        let mut sorted = bias.to_vec();
        sorted.sort_by_key(|(token, _)| *token);
        for pair in sorted.windows(2) {
            if pair[0].0 == pair[1].0 {
                return Err(ErrorKind::argument("bias", format!("token {} is named twice", pair[0].0)));
            }
        }
        if let Some((token, bias)) = sorted.iter().find(|(_, bias)| !(-1000.0..=1000.0).contains(bias)) {
            return Err(ErrorKind::argument("bias", format!("{bias} for token {token} is not in -1000..=1000")));
        }
        self.bias = sorted;
        Ok(self)
    }

    /// Asks for the log-probability of each drawn token, and for so many of the most likely tokens with theirs. They are those of
    /// the logits as the model gives them, whatever the token was drawn with.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for more than [`Logprobs::MOST`].
    pub fn with_logprobs(self, most_likely: usize) -> Result<Self> {
        if most_likely > Logprobs::MOST {
            let why = format!("{most_likely} tokens, wanted at most {}", Logprobs::MOST);
            return Err(ErrorKind::argument("logprobs", why));
        }
        Ok(Sampler { logprobs: Some(most_likely), ..self })
    }

    /// Draws only what a constraint allows. Its next token is then known to it before the one after it is drawn, so steps are not
    /// given to the device ahead of their tokens; the mask is made while the device computes the logits.
    pub fn with_constraint(self, constraint: impl Constraint + 'static) -> Self {
        Sampler { constraint: Some(Arc::new(ConstraintCell::new(Box::new(constraint)))), ..self }
    }

    /// Tells of tokens that were there before: those of a prompt. Only repetition looks at them, as far as the window reaches.
    pub fn see(&mut self, tokens: &[u32]) {
        tokens.iter().for_each(|token| self.window.push(*token, false));
    }

    /// Tells of a token that was drawn, and moves on to the next.
    pub(crate) fn take(&mut self, token: u32) {
        self.random.uniform();
        self.window.push(token, true);
        if let Some(constraint) = &self.constraint {
            constraint.take(token);
        }
    }

    /// How tokens are drawn.
    pub fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// Whether its constraint is met and allows nothing more: the text is complete. Never without a constraint.
    pub fn is_complete(&self) -> bool {
        self.constraint.as_ref().is_some_and(|constraint| constraint.is_complete())
    }

    /// How many of the most likely tokens are told, if any log-probability is.
    pub(crate) fn logprobs(&self) -> Option<usize> {
        self.logprobs
    }

    /// Whether the next token can only be drawn when the one before it is known.
    pub(crate) fn waits(&self) -> bool {
        self.constraint.is_some()
    }

    /// How the next token is drawn, or with 1 the one after it, where the one before that is on the device alone.
    pub(crate) fn row(&self, after: usize) -> DrawRow {
        let mut random = self.random.clone();
        for _ in 0..after {
            random.uniform();
        }
        DrawRow {
            sampling: self.sampling,
            u: random.uniform(),
            listed: self.listed(after),
            logprobs: self.logprobs,
            constraint: self.constraint.clone(),
            knows_tokens: true,
        }
    }

    /// Tokens with a bias or in the window, once it has so many more.
    fn listed(&self, after: usize) -> Vec<ListedToken> {
        let mut listed = self.window.listed(after);
        for &(token, bias) in &self.bias {
            match listed.binary_search_by_key(&token, |listed| listed.token) {
                Ok(place) => listed[place].bias = bias,
                Err(place) => listed.insert(place, ListedToken { token, seen: 0, drawn: 0, bias }),
            }
        }
        listed
    }
}

impl fmt::Debug for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sampler { sampling, bias, logprobs, constraint, .. } = self;
        f.debug_struct("Sampler")
            .field("sampling", sampling)
            .field("bias", bias)
            .field("logprobs", logprobs)
            .field("constraint", constraint)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
