//! Guesses of a smaller model and their judgement, in a row on the device: each step is submitted before what it feeds is known to
//! the host, which waits once for all of them. Greedy ones alone: what is drawn is drawn and judged on the host, in f64.

use super::behind::whole;
use super::draws::StepDraws;
use super::feed::{no_probabilities, Call, Fed, Undrawn, Want};
use super::ids::Ids;
use super::Session;
use crate::cache::SeqId;
use crate::error::Result;
use crate::gpu::{DType, HostPart, Run, Tensor};
use crate::model::sampler::DrawRow;
use crate::nn::Sample;

/// Guesses that are with the device.
pub(crate) struct Guesses {
    /// (count or more) U32
    tokens: Tensor,
    count: usize,
    /// Commands that were lost before.
    losses: u64,
    /// The drafter's sequence and its tokens before the first guess.
    after: (SeqId, usize),
}

/// Guesses and the target's most likely tokens: after the last token that is none, and after each of them.
pub(crate) struct JudgedGuesses {
    pub(crate) guesses: Vec<u32>,
    pub(crate) most_likely: Vec<u32>,
}

impl Session {
    /// Whether this session can judge what the other guesses before the host reads it: on one device, by one rank.
    pub(crate) fn judges_unread(&self, drafter: &Session) -> bool {
        self.decoder.gpu().is_same(drafter.decoder.gpu()) && self.ranks.is_none() && drafter.ranks.is_none()
    }

    /// Feeds `input` and then most likely tokens, each step what the one before gave, and submits all of it: `count` guesses, of
    /// which the last is not fed. What is fed counts as committed, its tokens unknown. After an error, and where the guesses
    /// are not judged, the sequence is of no use: the caller removes it.
    ///
    /// Errors: as [`Session::next_tokens`].
    pub(crate) async fn submit_guesses(&mut self, id: SeqId, input: &[u32], count: usize) -> Result<Guesses> {
        let rows = [DrawRow::default()];
        let want = Want::Tokens(&rows);
        // All but the last token of a prompt, where that is more than a step.
        let (before, input) = match input.len() > self.capacity() {
            true => input.split_at(input.len() - 1),
            false => (&input[..0], input),
        };
        if !before.is_empty() {
            self.feed(&[(id, before)], want, Undrawn::IsTold(&[])).await?;
        }
        self.roll_back();
        self.check(&[(id, input)], &want)?;
        let after = (id, self.len(id)? + input.len());
        let guesses = self.guesses_of(count)?;
        let (gpu, losses) = (self.decoder.gpu().clone(), self.decoder.gpu().losses());
        for guess in 0..count {
            let (tokens, ids) = if guess == 0 { (input, Ids::Host) } else { (&[0][..], Ids::Drawn) };
            let (batch, clock) = ([(id, tokens)], gpu.clock());
            let call = Call { batch: &batch, want, undrawn: Undrawn::IsTold(&[]) };
            let draws = StepDraws::new(vec![(0, &rows[0])], |_| None);
            self.record_step(&call, &whole(&batch), Some(&draws), ids)?;
            let run = Run { from: 0, to: 4 * guess as u64, size: 4 };
            gpu.record_copies(&self.buffers.tokens.buffer, &guesses.buffer, &[run])?;
            gpu.stop(clock, HostPart::Record);
            gpu.submit()?;
            self.cache.commit(&[id], tokens.len())?;
        }
        Ok(Guesses { tokens: guesses, count, losses, after })
    }

    fn guesses_of(&mut self, count: usize) -> Result<Tensor> {
        let there = self.buffers.guesses.take().filter(|there| count <= there.len());
        let guesses = match there {
            Some(there) => there,
            None => Tensor::scratch(self.decoder.gpu(), &[count], DType::U32)?,
        };
        Ok(self.buffers.guesses.insert(guesses).clone())
    }

    /// Feeds tokens and the drafter's guesses behind them, as many as a step has, and waits for what is most likely after each.
    ///
    /// Errors: as [`Session::all_tokens`], as if nothing had been fed; the drafter's, where a guess is no token.
    pub(crate) async fn judge_guesses(
        &mut self,
        (id, tokens): (SeqId, &[u32]),
        submitted: Guesses,
    ) -> Result<JudgedGuesses> {
        let judged = self.feed_guesses((id, tokens), submitted).await;
        match judged {
            Ok(_) => self.finish(),
            Err(_) => self.roll_back(),
        }
        judged
    }

    async fn feed_guesses(&mut self, (id, tokens): (SeqId, &[u32]), submitted: Guesses) -> Result<JudgedGuesses> {
        let Guesses { tokens: guesses, count, losses, after } = submitted;
        // The host has no guess yet, and needs their count alone.
        let unknown = [tokens, &vec![0; count]].concat();
        let (batch, want) = ([(id, &unknown[..])], Want::AllTokens);
        self.roll_back();
        self.check(&batch, &want)?;
        self.begin(&batch)?;
        self.reserve_all(unknown.len(), true)?;
        let call = Call { batch: &batch, want, undrawn: Undrawn::Fails };
        let step = self.submit_step_of(&call, whole(&batch), Ids::Guessed { guesses: &guesses, count })?;
        let mut read = Fed { all_tokens: vec![Vec::new()], ..Default::default() };
        self.read_results(&call, step, &mut read).await?;
        // Among the steps before may be one that was lost.
        self.decoder.gpu().expect_no_loss(losses, "this step")?;
        let guesses = read.ids.split_off(tokens.len());
        if let Some(place) = guesses.iter().position(|guess| *guess == Sample::NO_TOKEN) {
            return Err(no_probabilities(after.0, after.1 + place - 1));
        }
        self.cache.commit_tokens(&[(id, &[tokens, &guesses].concat())])?;
        Ok(JudgedGuesses { guesses, most_likely: read.all_tokens.pop().unwrap_or_default() })
    }
}
