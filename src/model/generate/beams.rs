//! Beam search: the most probable continuations that can be found by keeping a few at a time.

use super::check_positions;
use super::continuation::{log_sum_exp, score, Common, Continuation};
use crate::cache::SeqId;
use crate::error::Result;
use crate::model::session::owned::{pause, Owned};
use crate::model::session::Session;
use std::slice::from_ref;

/// How [`beam_search`] looks for continuations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BeamOptions<'a> {
    /// Continuations kept at a time, and most that are returned; at most the session's `max_batch`. One without stop
    /// tokens is greedy search.
    pub beams: usize,
    /// Most tokens of a continuation.
    pub max_new_tokens: usize,
    /// A continuation ends with any of these tokens, as [`Tokenizer::end_tokens`](crate::model::Tokenizer::end_tokens).
    pub stop_tokens: &'a [u32],
    /// What continuations of different lengths are compared by, in -10..=10: log-probability over length to this power.
    /// 0 takes the most probable, which favours short ones; 1 the mean per token; more favours long ones.
    pub length_penalty: f64,
}

impl Default for BeamOptions<'_> {
    fn default() -> Self {
        BeamOptions { beams: 4, max_new_tokens: 100, stop_tokens: &[], length_penalty: 1.0 }
    }
}

/// A continuation that may go on. All but its last token are in its sequence.
struct Beam {
    id: SeqId,
    tokens: Vec<u32>,
    log_probability: f64,
}

/// A beam with one more token.
struct Candidate {
    beam: usize,
    token: u32,
    log_probability: f64,
}

/// Searches for probable continuations of what a sequence holds and `input` after it. Returns up to `beams` of them,
/// the highest score first.
///
/// A step feeds one token to all beams in one call. Of all that their next tokens could be, the `beams` most probable
/// that do not end there are kept; one that does ends if it is among the `beams` most probable of all. Equal ones go by
/// the rank of their beam, then by token. The search is over when no beam can come to beat `beams` ended ones, or after
/// `max_new_tokens`, where what is left ends too.
///
/// The input is computed once and shared by fork; so are beams, as far as their tokens are the same. `sequence` stays
/// as it is: to go on with a continuation, feed it `input` and the continuation's tokens. All other sequences are gone
/// at the end, after an error, and when the future is dropped, which it can be between steps.
///
/// # Errors
///
/// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for options out of their range, an empty input, where
/// tokens exceed the model's `max_position_embeddings`, or where its logits are no numbers; [`Session::logits`]'s, as
/// [`ErrorKind::CacheFull`](crate::ErrorKind::CacheFull) at any step.
pub async fn beam_search(
    session: &mut Session,
    sequence: SeqId,
    input: &[u32],
    options: BeamOptions<'_>,
) -> Result<Vec<Continuation>> {
    let BeamOptions { beams, max_new_tokens, stop_tokens, length_penalty } = options;
    Common { count: ("beams", beams), max_new_tokens, stop_tokens, length_penalty }.check(session)?;
    let mut own = Owned::new(session);
    check_positions(own.session, sequence, input, max_new_tokens)?;
    let mut live = vec![Beam { id: own.fork(sequence)?, tokens: Vec::new(), log_probability: 0.0 }];
    let mut ended = Vec::new();
    for made in 1..=max_new_tokens {
        let fed = live.iter().map(|beam| (beam.id, beam.tokens.last().map_or(input, from_ref)));
        let logits = own.session.logits(&fed.collect::<Vec<_>>()).await?;
        // Each beam has so many ways to end, and as many as beams are left beside all of them.
        let candidates = candidates(&live, &logits, beams.saturating_mul(1 + stop_tokens.len()))?;
        let ends = |c: &Candidate| stop_tokens.contains(&c.token);
        for candidate in candidates.iter().take(beams).filter(|c| ends(c)) {
            options.end(candidate.after(&live), candidate.log_probability, &mut ended);
        }
        let kept: Vec<&Candidate> = candidates.iter().filter(|c| !ends(c)).take(beams).collect();
        if made == max_new_tokens {
            for candidate in kept {
                options.end(candidate.after(&live), candidate.log_probability, &mut ended);
            }
            break;
        }
        live = branch(&mut own, &live, &kept)?;
        if options.is_over(&live, &ended) {
            break;
        }
        pause().await;
    }
    Ok(ended)
}

impl BeamOptions<'_> {
    /// Adds a continuation that goes no further to the best so far. Of equal ones the first stays first.
    fn end(&self, tokens: Vec<u32>, log_probability: f64, ended: &mut Vec<Continuation>) {
        let stopped = tokens.last().is_some_and(|token| self.stop_tokens.contains(token));
        let new = Continuation::new(tokens, log_probability, self.length_penalty, stopped);
        let place = ended.partition_point(|other| other.score >= new.score);
        ended.insert(place, new);
        ended.truncate(self.beams);
    }

    /// Whether no beam, whatever follows, can come before one of the ended.
    fn is_over(&self, live: &[Beam], ended: &[Continuation]) -> bool {
        // At best all that follows is certain, and the length the one that is best for a score.
        let best = |beam: &Beam| {
            let length = if self.length_penalty > 0.0 { self.max_new_tokens } else { beam.tokens.len() + 1 };
            score(beam.log_probability, length, self.length_penalty)
        };
        match ended.last() {
            Some(worst) if ended.len() == self.beams => live.iter().all(|beam| best(beam) <= worst.score),
            _ => live.is_empty(),
        }
    }
}

impl Candidate {
    fn after(&self, live: &[Beam]) -> Vec<u32> {
        [&live[self.beam].tokens[..], &[self.token]].concat()
    }
}

/// The `most` most probable, in order; of equal ones those of the first beam, then of the lowest token. What has no
/// probability at all is left out.
fn candidates(live: &[Beam], logits: &[Vec<f32>], most: usize) -> Result<Vec<Candidate>> {
    let mut best: Vec<Candidate> = Vec::new();
    for (beam, (before, row)) in live.iter().zip(logits).enumerate() {
        let log_sum = log_sum_exp(row)?;
        for (token, logit) in (0..).zip(row) {
            let log_probability = before.log_probability + (f64::from(*logit) - log_sum);
            let least = if best.len() < most { f64::NEG_INFINITY } else { best[most - 1].log_probability };
            if log_probability > least {
                best.truncate(most - 1);
                let place = best.partition_point(|c| c.log_probability >= log_probability);
                best.insert(place, Candidate { beam, token, log_probability });
            }
        }
    }
    Ok(best)
}

/// Beams of the candidates: a sequence goes to its first one, and forks of it to the others.
fn branch(own: &mut Owned<'_>, live: &[Beam], kept: &[&Candidate]) -> Result<Vec<Beam>> {
    for (i, beam) in live.iter().enumerate() {
        if kept.iter().all(|c| c.beam != i) {
            own.remove(beam.id)?;
        }
    }
    let mut taken = vec![false; live.len()];
    let mut next = Vec::with_capacity(kept.len());
    for candidate in kept {
        let id = match std::mem::replace(&mut taken[candidate.beam], true) {
            true => own.fork(live[candidate.beam].id)?,
            false => live[candidate.beam].id,
        };
        next.push(Beam { id, tokens: candidate.after(live), log_probability: candidate.log_probability });
    }
    Ok(next)
}

#[cfg(test)]
#[path = "beams_tests.rs"]
mod tests;
