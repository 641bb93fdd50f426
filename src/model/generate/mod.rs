//! From a prompt to text: the generation loop, its random numbers, and bytes as tokens.

mod beams;
mod best_of;
mod continuation;
mod lookup;
mod rejection;
mod speculative;

pub use beams::{beam_search, BeamOptions};
pub use best_of::{best_of, BestOfOptions};
pub use continuation::Continuation;
pub use speculative::{generate_speculative, Drafter, Speculated, SpeculativeOptions};

use super::sampler::{Drawn, Sampler};
use super::session::Session;
use crate::cache::SeqId;
use crate::error::{ErrorKind, Result};
use crate::model::session::owned::Owned;
use crate::nn::Sampling;
use std::ops::ControlFlow;

/// How to continue a prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
pub struct GenerateOptions {
    /// Tokens to make, unless the callback stops before.
    pub max_new_tokens: usize,
    /// How tokens are drawn; the default is greedy. Of penalties, the window reaches back to the first token that the call is given.
    pub sampling: Sampling,
    /// Start of the random numbers: the same seed gives the same tokens on the same device.
    pub seed: u64,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions { max_new_tokens: 100, sampling: Sampling::default(), seed: 0 }
    }
}

/// Continues a prompt in a sequence of its own, which is gone at the end. `on_token` gets each token as it comes and
/// may stop. Returns the new tokens.
///
/// # Errors
///
/// [`ErrorKind::Argument`] for an empty prompt, or where prompt and new tokens exceed
/// [`Session::max_positions`]; else as [`Session::next_tokens`].
pub async fn generate(
    session: &mut Session,
    prompt: &[u32],
    options: GenerateOptions,
    on_token: impl FnMut(u32) -> ControlFlow<()>,
) -> Result<Vec<u32>> {
    let mut own = Owned::new(session);
    let sequence = own.insert();
    continue_sequence(own.session, sequence, prompt, options, on_token).await
}

/// Feeds `input` to a sequence, with whatever it holds before it, and then what is drawn: [`generate()`] in a sequence of the
/// caller's. The last token returned is not fed: it belongs before the next input, and at the end of the tokens that
/// [`Session::save`] is given. After an error the sequence holds what was fed.
///
/// # Errors
///
/// As [`generate()`]; [`ErrorKind::UnknownSequence`].
pub async fn continue_sequence(
    session: &mut Session,
    sequence: SeqId,
    input: &[u32],
    options: GenerateOptions,
    mut on_token: impl FnMut(u32) -> ControlFlow<()>,
) -> Result<Vec<u32>> {
    let mut sampler = Sampler::new(options.sampling, options.seed)?;
    let (most, on_drawn) = (options.max_new_tokens, |drawn: &Drawn| on_token(drawn.token));
    continue_with(session, sequence, input, most, &mut sampler, on_drawn).await
}

/// [`continue_sequence`] by a sampler, with all that it has: it is told of `input` and of each token that is drawn, and may go on
/// from there. Ends early where its constraint is complete ([`Sampler::is_complete`]). `on_drawn` gets each token as it comes, with
/// the log-probabilities that the sampler asks for, and may stop. Returns the new tokens.
///
/// # Errors
///
/// As [`continue_sequence`] and [`Session::draw`]. The sampler is then where the last token left it.
pub async fn continue_with(
    session: &mut Session,
    sequence: SeqId,
    input: &[u32],
    max_new_tokens: usize,
    sampler: &mut Sampler,
    mut on_drawn: impl FnMut(&Drawn) -> ControlFlow<()>,
) -> Result<Vec<u32>> {
    check_positions(session, sequence, input, max_new_tokens)?;
    let mut tokens = Vec::new();
    if max_new_tokens == 0 || sampler.is_complete() {
        return Ok(tokens);
    }
    sampler.see(input);
    let mut stream = session.stream_with(&[(sequence, input)], std::slice::from_mut(sampler))?;
    while tokens.len() < max_new_tokens {
        let drawn = stream.next_drawn(tokens.len() + 1 < max_new_tokens).await?;
        tokens.extend(drawn.iter().map(|drawn| drawn.token));
        if drawn.iter().any(|drawn| on_drawn(drawn).is_break()) || stream.is_complete() {
            break;
        }
    }
    Ok(tokens)
}

/// Refuses new tokens, after what a sequence holds and `input`, for which the model has no positions.
pub(super) fn check_positions(session: &Session, sequence: SeqId, input: &[u32], max_new_tokens: usize) -> Result<()> {
    let most = session.max_positions();
    let before = session.len(sequence)?.saturating_add(input.len());
    // The last token is not fed.
    if before.saturating_add(max_new_tokens) > most.saturating_add(1) {
        let why = format!("{max_new_tokens} after a prompt of {before} exceed {}, {most}", session.what_is_most());
        return Err(ErrorKind::argument("max_new_tokens", why));
    }
    Ok(())
}
