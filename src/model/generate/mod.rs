//! From a prompt to text: the generation loop, its random numbers, and bytes as tokens.

mod beams;
mod best_of;
mod continuation;
mod lookup;
pub(crate) mod random;
mod rejection;
mod speculative;

pub use beams::{beam_search, BeamOptions};
pub use best_of::{best_of, BestOfOptions};
pub use continuation::Continuation;
pub use random::SplitMix64;
pub use speculative::{generate_speculative, Drafter, Speculated, SpeculativeOptions};

use super::session::{Draw, Session};
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
    /// Temperature and nucleus; the default is greedy.
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
    check_positions(session, sequence, input, options.max_new_tokens)?;
    if options.max_new_tokens == 0 {
        return Ok(Vec::new());
    }
    let mut random = SplitMix64::new(options.seed);
    let draw = |_| Draw { sampling: options.sampling, u: random.uniform() };
    let mut stream = session.stream(&[(sequence, input)], draw)?;
    let mut tokens = Vec::new();
    while tokens.len() < options.max_new_tokens {
        let drawn = stream.next(tokens.len() + 1 < options.max_new_tokens).await?;
        tokens.extend(&drawn);
        if drawn.into_iter().any(|token| on_token(token).is_break()) {
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
