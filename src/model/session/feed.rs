//! Feeding tokens to sequences: what a caller may ask for, and the steps that a call is cut into.

use super::schedule::{schedule, TokenRun};
use super::Session;
use crate::cache::SeqId;
use crate::error::{Error, ErrorKind, Result};
use crate::model::sampler::{Draw, DrawRow, Drawn, Sampler};
use crate::nn::Sample;

/// What [`Session::next_tokens_and_logits`] returns, by sequence in the order of the call.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct TokensAndLogits {
    /// The token drawn for each sequence.
    pub tokens: Vec<u32>,
    /// What it was drawn from, the logits after the sequence's last token: (vocab_size) each.
    pub logits: Vec<Vec<f32>>,
}

/// What a call has read, by sequence in the order of the call. What was not wanted is empty.
#[derive(Debug, Default)]
pub(crate) struct Fed {
    /// [`Sample::NO_TOKEN`] where none could be drawn.
    pub(crate) tokens: Vec<u32>,
    pub(crate) logits: Vec<Vec<f32>>,
    /// Of [`Want::AllTokens`].
    pub(crate) all_tokens: Vec<Vec<u32>>,
    /// All that a step fed that had guesses.
    pub(crate) ids: Vec<u32>,
    /// The drawn token's log-probability, then those of the most likely ones, as [`Logprobs`](crate::nn::Logprobs) has them.
    pub(crate) logprobs: Vec<Vec<(u32, f32)>>,
    /// Sequences for which the host knows why they got no token.
    pub(crate) faults: Vec<(usize, ErrorKind)>,
}

impl Fed {
    /// With room for a call that draws tokens.
    pub(crate) fn of_tokens(sequences: usize) -> Self {
        Fed { tokens: vec![0; sequences], logprobs: vec![Vec::new(); sequences], ..Default::default() }
    }

    /// Why a sequence got no token, where that is not for its logits.
    pub(crate) fn fault(&self, sequence: usize) -> Option<&ErrorKind> {
        self.faults.iter().find(|(of, _)| *of == sequence).map(|(_, fault)| fault)
    }

    /// The token of a sequence, with what was asked for beside it: so many of the most likely ones.
    pub(crate) fn drawn(&self, sequence: usize, logprobs: Option<usize>) -> Drawn {
        let token = self.tokens.get(sequence).copied().unwrap_or(Sample::NO_TOKEN);
        let read = self.logprobs.get(sequence).map(Vec::as_slice).unwrap_or_default();
        let wanted = logprobs.map_or(0, |count| (1 + count).min(read.len()));
        Drawn::new(token, read.get(..wanted).unwrap_or_default())
    }
}

/// What a call is to read back for each sequence.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Want<'a> {
    /// The token after its last one: one row per sequence.
    Tokens(&'a [DrawRow]),
    /// The logits after its last token.
    Logits,
    /// Both.
    TokensAndLogits(&'a [DrawRow]),
    /// The logits after each of its tokens.
    AllLogits,
    /// The most likely token after each of its tokens.
    AllTokens,
}

impl<'a> Want<'a> {
    pub(super) fn draws(&self) -> Option<&'a [DrawRow]> {
        match *self {
            Want::Tokens(draws) | Want::TokensAndLogits(draws) => Some(draws),
            Want::Logits | Want::AllLogits | Want::AllTokens => None,
        }
    }

    /// Whether tokens are drawn.
    pub(super) fn tokens(&self) -> bool {
        self.draws().is_some()
    }

    /// Whether logits are read.
    pub(super) fn logits(&self) -> bool {
        !matches!(self, Want::Tokens(_) | Want::AllTokens)
    }

    /// Whether something is read of tokens before the last one, too.
    pub(super) fn all(&self) -> bool {
        matches!(self, Want::AllLogits | Want::AllTokens)
    }

    /// Whether the most likely token after each is read.
    pub(super) fn all_tokens(&self) -> bool {
        matches!(self, Want::AllTokens)
    }
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
    /// Whether the part is a sequence's last, its token matters, and none could be drawn: `tokens` are those of the call.
    pub(crate) fn spoils(&self, part: &TokenRun, tokens: &[u32]) -> bool {
        let matters = match self {
            Undrawn::Fails => true,
            Undrawn::IsTold(matters) => matters.get(part.sequence).copied().unwrap_or(true),
        };
        matters && part.last && tokens.get(part.sequence) == Some(&Sample::NO_TOKEN)
    }
}

/// A call, checked.
pub(super) struct Call<'a> {
    pub(super) batch: &'a [(SeqId, &'a [u32])],
    pub(super) want: Want<'a>,
    pub(super) undrawn: Undrawn<'a>,
}

impl Session {
    /// Adds tokens to sequences, any number to each, and returns the token that follows each sequence, drawn on the device:
    /// one of `draws` per sequence. Nothing else is read back.
    ///
    /// Tokens beyond `chunk` go in several steps. Each step is one submit, and one wait if results come with it.
    /// Whatever fails has changed nothing; a call that is dropped before it ends is undone by the next. With a window,
    /// a prompt may be longer than the cache: what it needs is then known step by step, and a call of several steps
    /// holds what its sequences had before, and a copy of their last pages, until it ends.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for an empty batch or no tokens, a token not in the vocabulary, a sequence that
    /// would exceed [`Session::max_positions`], a bad [`Draw`]; [`ErrorKind::Shape`] for another number of draws than of
    /// sequences; [`ErrorKind::UnknownSequence`], [`ErrorKind::RepeatedSequence`], [`ErrorKind::CacheFull`];
    /// [`ErrorKind::CommandsLost`] where commands that were recorded on this [`Gpu`](crate::Gpu) were lost during a step, maybe
    /// those of others: call it again; those of the device.
    /// [`ErrorKind::Argument`] named `logits`, with the sequence and the position of its last token, where the logits give no
    /// probabilities: one is NaN or +infinity, or none is finite (-infinity forbids a token).
    pub async fn next_tokens(&mut self, batch: &[(SeqId, &[u32])], draws: &[Draw]) -> Result<Vec<u32>> {
        Ok(self.feed(batch, Want::Tokens(&DrawRow::of(draws)), Undrawn::Fails).await?.tokens)
    }

    /// [`Session::next_tokens`] by samplers, one per sequence: with penalties, biases, constraints and log-probabilities where they
    /// have such. Each is told of its token, and moves on to the next; after an error all are as they were.
    ///
    /// # Errors
    ///
    /// As [`Session::next_tokens`]; [`ErrorKind::Argument`] for a token of a sampler that is not in the vocabulary;
    /// [`ErrorKind::Grammar`] where a constraint allows no token, and whatever it fails with.
    pub async fn draw(&mut self, batch: &[(SeqId, &[u32])], samplers: &mut [Sampler]) -> Result<Vec<Drawn>> {
        let rows: Vec<DrawRow> = samplers.iter().map(|sampler| sampler.row(0)).collect();
        let fed = self.feed(batch, Want::Tokens(&rows), Undrawn::Fails).await?;
        samplers.iter_mut().zip(&fed.tokens).for_each(|(sampler, token)| sampler.take(*token));
        Ok(rows.iter().enumerate().map(|(sequence, row)| fed.drawn(sequence, row.logprobs)).collect())
    }

    /// Adds tokens as [`Session::next_tokens`] does, and returns the logits after each sequence's last token, whatever numbers
    /// they are: (vocab_size) each.
    ///
    /// # Errors
    ///
    /// As [`Session::next_tokens`], but for what is said of draws and logits.
    pub async fn logits(&mut self, batch: &[(SeqId, &[u32])]) -> Result<Vec<Vec<f32>>> {
        Ok(self.feed(batch, Want::Logits, Undrawn::Fails).await?.logits)
    }

    /// Adds tokens as [`Session::next_tokens`] does, and returns the logits after each token of each sequence, whatever numbers
    /// they are: (tokens, vocab_size) each, flat. Memory for the logits of a step is allocated by the first call that needs as
    /// much.
    ///
    /// # Errors
    ///
    /// As [`Session::logits`]; [`ErrorKind::TooLarge`] and [`ErrorKind::OutOfMemory`] for the logits of a step.
    pub async fn all_logits(&mut self, batch: &[(SeqId, &[u32])]) -> Result<Vec<Vec<f32>>> {
        Ok(self.feed(batch, Want::AllLogits, Undrawn::Fails).await?.logits)
    }

    /// Adds tokens as [`Session::next_tokens`] does, and returns the most likely token after each token of each sequence, found on
    /// the device: (tokens) each. It is what [`Draw::default`] would draw there, the first of equals, and
    /// [`Sample::NO_TOKEN`] where the logits give no probabilities. So guesses are judged without reading logits back.
    /// Memory for the logits of a step is allocated by the first call that needs as much.
    ///
    /// # Errors
    ///
    /// As [`Session::all_logits`].
    pub async fn all_tokens(&mut self, batch: &[(SeqId, &[u32])]) -> Result<Vec<Vec<u32>>> {
        Ok(self.feed(batch, Want::AllTokens, Undrawn::Fails).await?.all_tokens)
    }

    /// [`Session::next_tokens`], with the logits that the tokens were drawn from.
    ///
    /// # Errors
    ///
    /// As [`Session::next_tokens`].
    pub async fn next_tokens_and_logits(
        &mut self,
        batch: &[(SeqId, &[u32])],
        draws: &[Draw],
    ) -> Result<TokensAndLogits> {
        let fed = self.feed(batch, Want::TokensAndLogits(&DrawRow::of(draws)), Undrawn::Fails).await?;
        Ok(TokensAndLogits { tokens: fed.tokens, logits: fed.logits })
    }

    /// What all of these are, with a say in what becomes of a sequence for which no token can be drawn. What was not wanted is
    /// empty in the result.
    pub(crate) async fn feed(
        &mut self,
        batch: &[(SeqId, &[u32])],
        want: Want<'_>,
        undrawn: Undrawn<'_>,
    ) -> Result<Fed> {
        self.roll_back();
        self.check(batch, &want)?;
        self.begin(batch)?;
        let fed = self.feed_checked(&Call { batch, want, undrawn }).await;
        match fed {
            Ok(_) => self.finish(),
            Err(_) => self.roll_back(),
        }
        fed
    }

    async fn feed_checked(&mut self, call: &Call<'_>) -> Result<Fed> {
        let lengths: Vec<usize> = call.batch.iter().map(|(_, tokens)| tokens.len()).collect();
        let steps = schedule(&lengths, self.capacity());
        if call.want.all() {
            let most = steps.iter().map(|s| s.iter().map(|p| p.tokens.len()).sum::<usize>()).max();
            self.reserve_all(most.unwrap_or(1), call.want.all_tokens())?;
        }
        let count = |wanted| if wanted { lengths.len() } else { 0 };
        let logits = vec![Vec::new(); count(call.want.logits())];
        let all_tokens = vec![Vec::new(); count(call.want.all_tokens())];
        let mut fed = Fed { logits, all_tokens, ..Fed::of_tokens(count(call.want.tokens())) };
        for parts in steps {
            let step = self.submit_step(call, parts)?;
            self.read_step(call, step, &mut fed).await?;
        }
        Ok(fed)
    }

    pub(super) fn check(&self, batch: &[(SeqId, &[u32])], want: &Want<'_>) -> Result<()> {
        if batch.is_empty() || batch.len() > self.options.max_batch {
            let why = format!("{} sequences, wanted 1..={}", batch.len(), self.options.max_batch);
            return Err(ErrorKind::argument("batch", why));
        }
        // Unknown or repeated sequences.
        let ids: Vec<SeqId> = batch.iter().map(|(id, _)| *id).collect();
        self.cache.check_ids(&ids)?;
        let most = self.max_positions();
        for (id, tokens) in batch {
            let len = self.cache.len(*id)?;
            if tokens.is_empty() {
                return Err(ErrorKind::argument("batch", format!("no tokens for sequence {id}")));
            }
            if len + tokens.len() > most {
                let why = format!(
                    "sequence {id} has {len} tokens and gets {}, {} is {most}",
                    tokens.len(),
                    self.what_is_most()
                );
                return Err(ErrorKind::argument("batch", why));
            }
            self.decoder.inner.embedding.check_ids(tokens)?;
        }
        let wanted: Vec<(SeqId, usize)> = batch.iter().map(|(id, tokens)| (*id, tokens.len())).collect();
        if !self.frees_between_steps(batch) {
            self.cache.check_reserve(&wanted)?;
        }
        match want.draws() {
            Some(draws) if draws.len() != batch.len() => {
                Err(ErrorKind::shape("draws", &[draws.len()], format!("({})", batch.len())))
            }
            Some(draws) => draws.iter().try_for_each(|row| row.check(self.decoder.config().vocab_size)),
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
