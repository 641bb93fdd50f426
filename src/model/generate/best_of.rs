//! Best of n: several samples of one prompt, made side by side and ordered by what the model says of them.

use super::continuation::{log_sum_exp, Common, Continuation};
use super::{check_positions, GenerateOptions};
use crate::cache::SeqId;
use crate::error::Result;
use crate::model::sampler::random::SplitMix64;
use crate::model::sampler::{DrawRow, Sampler};
use crate::model::session::feed::{Undrawn, Want};
use crate::model::session::owned::{pause, Owned};
use crate::model::session::Session;
use std::slice::from_ref;

/// How [`best_of`] makes its samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BestOfOptions<'a> {
    /// How many; at most the session's `max_batch`.
    pub samples: usize,
    /// How each is drawn. Sample 0 has the `seed`, and sample i the i-th number of [`SplitMix64`] from there as its
    /// own, so that none depends on when others end.
    pub generate: GenerateOptions,
    /// A sample ends with any of these tokens, as [`Tokenizer::end_tokens`](crate::model::Tokenizer::end_tokens).
    pub stop_tokens: &'a [u32],
    /// What samples are ordered by, in -10..=10: log-probability over length to this power. 1 is the mean per token, 0
    /// the total.
    pub length_penalty: f64,
}

impl Default for BestOfOptions<'_> {
    /// Four samples of 100 tokens, of the model's own probabilities.
    fn default() -> Self {
        let mut generate = GenerateOptions::default();
        generate.sampling.temperature = 1.0;
        BestOfOptions { samples: 4, generate, stop_tokens: &[], length_penalty: 1.0 }
    }
}

struct SampledSequence {
    index: usize,
    id: SeqId,
    sampler: Sampler,
    tokens: Vec<u32>,
    log_probability: f64,
}

/// Draws several continuations of what a sequence holds and `input` after it, and returns them all, the highest score
/// first (of equal ones the first sample). The first sample is what [`continue_sequence`](crate::model::continue_sequence)
/// draws; in a session with a window, whose samples part before the last token of the input, but for the last bits of
/// the logits.
///
/// A step feeds one token to all samples that have not ended, in one call. The input is computed once and shared by
/// fork, but for its last token, which all but the first sample compute again, each for its first draw. `sequence`
/// stays as it is: to go on with a sample, feed it `input` and the sample's tokens. All other sequences are gone at the
/// end, after an error, and when the future is dropped, which it can be between steps.
///
/// # Errors
///
/// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for options out of their range, an empty input, where
/// tokens exceed the model's `max_position_embeddings`, or where its logits are no numbers; [`Session::next_tokens`]'s, as
/// [`ErrorKind::CacheFull`](crate::ErrorKind::CacheFull) at any step.
pub async fn best_of(
    session: &mut Session,
    sequence: SeqId,
    input: &[u32],
    options: BestOfOptions<'_>,
) -> Result<Vec<Continuation>> {
    let BestOfOptions { samples, generate, stop_tokens, length_penalty } = options;
    let max_new_tokens = generate.max_new_tokens;
    Common { count: ("samples", samples), max_new_tokens, stop_tokens, length_penalty }.check(session)?;
    let mut own = Owned::new(session);
    check_positions(own.session, sequence, input, max_new_tokens)?;

    let root = own.fork(sequence)?;
    let (before, last) = input.split_at(input.len().saturating_sub(1));
    // What a window has freed a sequence cut by a token may still see, so there all part before that token.
    let windowed = own.session.window().is_some() && samples > 1;
    if windowed && !before.is_empty() {
        own.session.logits(&[(root, before)]).await?;
    }
    let mut live = vec![SampledSequence::new(0, root, (generate, generate.seed), input)?];
    if !windowed {
        options.draw(&mut own, &mut live, input).await?;
    }
    let held = own.session.len(root)?;
    let mut seeds = SplitMix64::new(generate.seed);
    let mut others = Vec::new();
    for index in 1..samples {
        let id = own.fork(root)?;
        if !windowed {
            own.session.truncate(id, held - 1)?;
        }
        others.push(SampledSequence::new(index, id, (generate, seeds.next_u64()), input)?);
    }
    if windowed {
        live.append(&mut others);
        options.draw(&mut own, &mut live, last).await?;
    } else if !others.is_empty() {
        options.draw(&mut own, &mut others, last).await?;
        live.append(&mut others);
    }

    let mut ended = Vec::new();
    loop {
        for i in (0..live.len()).rev().filter(|i| options.has_ended(&live[*i])).collect::<Vec<_>>() {
            let sample = live.remove(i);
            own.remove(sample.id)?;
            ended.push(sample);
        }
        if live.is_empty() {
            break;
        }
        pause().await;
        options.draw(&mut own, &mut live, &[]).await?;
    }
    ended.sort_by_key(|sample| sample.index);
    let mut ended: Vec<Continuation> = ended.into_iter().map(|sample| options.finished(sample)).collect();
    ended.sort_by(|a, b| b.score.total_cmp(&a.score));
    Ok(ended)
}

impl BestOfOptions<'_> {
    /// One more token for each of these: after its last one, or after `input` if it has none.
    async fn draw(&self, own: &mut Owned<'_>, samples: &mut [SampledSequence], input: &[u32]) -> Result<()> {
        let rows: Vec<DrawRow> = samples.iter().map(|s| s.sampler.row(0)).collect();
        let fed: Vec<_> = samples.iter().map(|s| (s.id, s.tokens.last().map_or(input, from_ref))).collect();
        let fed = own.session.feed(&fed, Want::TokensAndLogits(&rows), Undrawn::Fails).await?;
        for ((sample, token), logits) in samples.iter_mut().zip(fed.tokens).zip(fed.logits) {
            let logit = logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
            sample.log_probability += f64::from(logit) - log_sum_exp(&logits)?;
            sample.sampler.take(token);
            sample.tokens.push(token);
        }
        Ok(())
    }

    fn stopped(&self, sample: &SampledSequence) -> bool {
        sample.tokens.last().is_some_and(|token| self.stop_tokens.contains(token))
    }

    fn has_ended(&self, sample: &SampledSequence) -> bool {
        self.stopped(sample) || sample.tokens.len() == self.generate.max_new_tokens
    }

    fn finished(&self, sample: SampledSequence) -> Continuation {
        let stopped = self.stopped(&sample);
        Continuation::new(sample.tokens, sample.log_probability, self.length_penalty, stopped)
    }
}

impl SampledSequence {
    fn new(index: usize, id: SeqId, (generate, seed): (GenerateOptions, u64), input: &[u32]) -> Result<Self> {
        let mut sampler = Sampler::new(generate.sampling, seed)?;
        sampler.see(input);
        Ok(SampledSequence { index, id, sampler, tokens: Vec::new(), log_probability: 0.0 })
    }
}
