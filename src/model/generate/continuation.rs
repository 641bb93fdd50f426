//! What beam search and best-of-n have in common: texts with their probabilities, and what is asked for in their
//! options.

use crate::error::{ErrorKind, Result};
use crate::model::session::Session;

/// A continuation of a prompt, with what the model says of it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Continuation {
    /// Its tokens, the stop token included if it ends with one.
    pub tokens: Vec<u32>,
    /// Natural logarithm of their probability after the prompt: the sum over the tokens of `logit - ln(sum of
    /// exp(logits))`, whatever temperature and nucleus they were drawn with.
    pub log_probability: f64,
    /// `log_probability / tokens.len()^length_penalty`: what continuations are ordered by.
    pub score: f64,
    /// Whether it ends with a stop token; else with the most tokens that were allowed.
    pub stopped: bool,
}

impl Continuation {
    pub(crate) fn new(tokens: Vec<u32>, log_probability: f64, length_penalty: f64, stopped: bool) -> Self {
        let score = score(log_probability, tokens.len(), length_penalty);
        Continuation { tokens, log_probability, score, stopped }
    }
}

/// Never rises with a lower probability.
pub(crate) fn score(log_probability: f64, tokens: usize, length_penalty: f64) -> f64 {
    log_probability / (tokens as f64).powf(length_penalty)
}

/// ln(sum of exp(logits)), at least each logit.
///
/// Errors: [`ErrorKind::Argument`] where that is no finite number.
pub(crate) fn log_sum_exp(logits: &[f32]) -> Result<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - f64::from(max)).exp()).sum();
    let log_sum = f64::from(max) + sum.ln();
    match log_sum.is_finite() {
        true => Ok(log_sum),
        false => {
            let why = format!("a NaN or an infinity among {}: the model gives no probabilities", logits.len());
            Err(ErrorKind::argument("logits", why))
        }
    }
}

/// What the options of both have.
pub(crate) struct Common<'a> {
    /// How many, and the option's name.
    pub(crate) count: (&'static str, usize),
    pub(crate) max_new_tokens: usize,
    pub(crate) stop_tokens: &'a [u32],
    pub(crate) length_penalty: f64,
}

impl Common<'_> {
    pub(crate) fn check(&self, session: &Session) -> Result<()> {
        let (name, count) = self.count;
        let (most, vocab) = (session.max_batch(), session.decoder().config().vocab_size);
        if !(1..=most).contains(&count) {
            return Err(ErrorKind::argument(name, format!("{count}, wanted 1..={most}, the session's max_batch")));
        }
        if self.max_new_tokens == 0 {
            return Err(ErrorKind::argument("max_new_tokens", "0, wanted at least 1"));
        }
        if let Some(token) = self.stop_tokens.iter().find(|token| **token as usize >= vocab) {
            return Err(ErrorKind::argument("stop_tokens", format!("{token} is not in the vocabulary of {vocab}")));
        }
        if !(-10.0..=10.0).contains(&self.length_penalty) {
            return Err(ErrorKind::argument("length_penalty", format!("{} is not in -10..=10", self.length_penalty)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_of_exponentials_is_that_of_f64_and_nothing_exceeds_it() {
        let logits = [1.0f32, -3.5, 80.0, 79.25, f32::NEG_INFINITY];
        let plain: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum::<f64>().ln();
        assert!((log_sum_exp(&logits).unwrap() - plain).abs() < 1e-12);
        // Beyond what f64 can take the exponential of.
        assert_eq!(log_sum_exp(&[1e30]).unwrap(), f64::from(1e30f32));
        for logits in [[0.1f32, 0.1], [-700.0, 3.0], [0.1, -5e8]] {
            assert!(logits.iter().all(|l| f64::from(*l) <= log_sum_exp(&logits).unwrap()), "{logits:?}");
        }
    }

    #[test]
    fn logits_without_probabilities_are_refused() {
        let none: [&[f32]; 5] = [&[], &[0.0, f32::NAN], &[f32::NAN], &[1.0, f32::INFINITY], &[f32::NEG_INFINITY; 2]];
        for logits in none {
            let error = log_sum_exp(logits).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Argument { name: "logits", .. }), "{logits:?}: {error}");
        }
    }
}
