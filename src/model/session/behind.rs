//! A step behind another: with the device before the tokens of the first are read.

use super::draws::StepDraws;
use super::feed::{Call, Fed, Undrawn, Want};
use super::ids::Ids;
use super::rollback::Unfinished;
use super::schedule::TokenRun;
use super::step::Submitted;
use super::Session;
use crate::cache::SeqId;
use crate::error::Result;
use crate::model::sampler::DrawRow;

impl Session {
    /// The first half of [`Session::feed`] for a call that is one step and draws a token for each sequence. What fails has
    /// changed nothing.
    pub(crate) fn submit_call(&mut self, batch: &[(SeqId, &[u32])], draws: &[DrawRow]) -> Result<Submitted> {
        self.roll_back();
        let want = Want::Tokens(draws);
        self.check(batch, &want)?;
        let begun = self.begin(batch);
        // Whether a token that could not be drawn matters is for whoever reads it.
        let call = Call { batch, want, undrawn: Undrawn::IsTold(&[]) };
        let submitted = begun.and_then(|()| self.submit_step(&call, whole(batch)));
        if submitted.is_err() {
            self.roll_back();
        }
        submitted
    }

    /// Records what [`Session::submit_call`] would submit, and rolls it back: for whoever names kernels (`Gpu::compile_for`).
    pub(super) fn record_call(&mut self, batch: &[(SeqId, &[u32])], draws: &[DrawRow]) -> Result<()> {
        self.roll_back();
        let want = Want::Tokens(draws);
        self.check(batch, &want)?;
        let begun = self.begin(batch);
        let call = Call { batch, want, undrawn: Undrawn::IsTold(&[]) };
        let rows = StepDraws::new(draws.iter().enumerate().collect(), |_| None);
        let recorded = begun.and_then(|()| self.record_step(&call, &whole(batch), Some(&rows), Ids::Host));
        self.roll_back();
        recorded.map(drop)
    }

    /// Commits `fed`, the tokens that `first` feeds, and submits a step of one call behind it, of tokens from where `ids` says,
    /// if that can be done before the tokens of `first` are read. What fails here is tried again, and heard of, when they are
    /// known. `first` is with the device and begun ([`Session::begin`]); if it fails, both are rolled back.
    pub(crate) fn submit_behind(
        &mut self,
        (first, fed): (&mut Submitted, &[(SeqId, &[u32])]),
        (batch, draws): (&[(SeqId, &[u32])], &[DrawRow]),
        ids: Ids<'_>,
    ) -> Option<Submitted> {
        // From a commit that gives pages back to a window there would be no way back to before `first`.
        let stays = |(id, tokens): &(SeqId, &[u32])| self.cache.frees_with(*id, tokens.len()).is_ok_and(|frees| !frees);
        let forked = self.unfinished.iter().any(|begun| begun.fork.is_some());
        // Others hear of a step with its tokens.
        if self.ranks.is_some() || forked || !fed.iter().all(stays) || self.decoder.gpu().losses() != first.losses {
            return None;
        }
        for (id, tokens) in batch {
            let own = fed.iter().find(|(other, _)| other == id).map_or(0, |(_, tokens)| tokens.len());
            if self.len(*id).ok()? + own + tokens.len() > self.max_positions() {
                return None;
            }
        }
        let vocab = self.decoder.config().vocab_size;
        draws.iter().try_for_each(|row| row.check(vocab)).ok()?;
        self.cache.commit_tokens(fed).ok()?;
        first.committed = true;
        let lengths = batch.iter().map(|(id, _)| Ok((*id, self.len(*id)?))).collect::<Result<Vec<_>>>().ok()?;
        for &(id, len) in &lengths {
            if !self.unfinished.iter().any(|begun| begun.id == id) {
                self.unfinished.push(Unfinished { id, len, fork: None });
            }
        }
        let call = Call { batch, want: Want::Tokens(draws), undrawn: Undrawn::IsTold(&[]) };
        let submitted = self.submit_step_of(&call, whole(batch), ids);
        if submitted.is_err() {
            for (id, len) in lengths {
                self.cache.discard(id, len).unwrap_or_default(); // it was there above
            }
            // Where errors come at once, `first` was sent well, and only this step was lost.
            if cfg!(not(target_arch = "wasm32")) {
                first.losses = self.decoder.gpu().losses();
            }
        }
        submitted.ok()
    }

    /// Waits for the tokens, and what comes with them, of a step of [`Session::submit_call`] or [`Session::submit_behind`], whatever they are, and commits
    /// nothing.
    pub(crate) async fn read_call(&self, batch: &[(SeqId, &[u32])], step: Submitted) -> Result<Fed> {
        let call = Call { batch, want: Want::Tokens(&[]), undrawn: Undrawn::IsTold(&[]) };
        let mut read = Fed::of_tokens(batch.len());
        self.read_results(&call, step, &mut read).await?;
        Ok(read)
    }

    /// Commits tokens of sequences.
    pub(crate) fn commit_fed(&mut self, fed: &[(SeqId, &[u32])]) -> Result<()> {
        self.cache.commit_tokens(fed)
    }

    /// [`Session::remove`] while a step is under way, which the other sequences keep.
    pub(crate) fn remove_alone(&mut self, id: SeqId) -> Result<()> {
        self.unfinished.retain(|begun| begun.id != id);
        self.cache.remove(id)
    }
}

/// All tokens of each sequence.
pub(super) fn whole(batch: &[(SeqId, &[u32])]) -> Vec<TokenRun> {
    let parts = batch.iter().enumerate();
    parts.map(|(sequence, (_, tokens))| TokenRun { sequence, tokens: 0..tokens.len(), last: true }).collect()
}
