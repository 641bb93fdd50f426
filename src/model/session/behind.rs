//! A step behind another: with the device before the tokens of the first are read.

use super::feed::{Call, Draw, TokensAndLogits, Undrawn, Want};
use super::rollback::Unfinished;
use super::schedule::TokenRun;
use super::step::{Ids, Submitted};
use super::Session;
use crate::cache::SeqId;
use crate::error::Result;

impl Session {
    /// The first half of [`Session::feed`] for a call that is one step and draws a token for each sequence. What fails has
    /// changed nothing.
    pub(crate) fn submit_call(&mut self, batch: &[(SeqId, &[u32])], draws: &[Draw]) -> Result<Submitted> {
        self.roll_back();
        let want = Want::Tokens(draws);
        let samplers = self.check(batch, &want)?;
        let begun = self.begin(batch);
        // Whether a token that could not be drawn matters is for whoever reads it.
        let call = Call { batch, want, undrawn: Undrawn::IsTold(&[]), samplers };
        let submitted = begun.and_then(|()| self.submit_step(&call, whole(batch)));
        if submitted.is_err() {
            self.roll_back();
        }
        submitted
    }

    /// Records what [`Session::submit_call`] would submit, and rolls it back: for whoever names kernels (`Gpu::compile_for`).
    pub(super) fn record_call(&mut self, batch: &[(SeqId, &[u32])], draws: &[Draw]) -> Result<()> {
        self.roll_back();
        let want = Want::Tokens(draws);
        let samplers = self.check(batch, &want)?;
        let begun = self.begin(batch);
        let call = Call { batch, want, undrawn: Undrawn::IsTold(&[]), samplers };
        let recorded = begun.and_then(|()| self.record_step(&call, &whole(batch), &call.samplers, Ids::Host));
        self.roll_back();
        recorded.map(drop)
    }

    /// Commits `fed`, the tokens that `first` feeds, and submits a step of one call behind it, of tokens from where `ids` says,
    /// if that can be done before the tokens of `first` are read. What fails here is tried again, and heard of, when they are
    /// known. `first` is with the device and begun ([`Session::begin`]); if it fails, both are rolled back.
    pub(crate) fn submit_behind(
        &mut self,
        (first, fed): (&mut Submitted, &[(SeqId, &[u32])]),
        (batch, draws): (&[(SeqId, &[u32])], &[Draw]),
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
        let samplers = draws.iter().map(|draw| draw.sampling.row(draw.u)).collect::<Result<Vec<_>>>().ok()?;
        self.cache.commit_tokens(fed).ok()?;
        first.committed = true;
        let lengths = batch.iter().map(|(id, _)| Ok((*id, self.len(*id)?))).collect::<Result<Vec<_>>>().ok()?;
        for &(id, len) in &lengths {
            if !self.unfinished.iter().any(|begun| begun.id == id) {
                self.unfinished.push(Unfinished { id, len, fork: None });
            }
        }
        let call = Call { batch, want: Want::Tokens(draws), undrawn: Undrawn::IsTold(&[]), samplers };
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

    /// Waits for the tokens of a step of [`Session::submit_call`] or [`Session::submit_behind`], whatever they are, and commits
    /// nothing.
    pub(crate) async fn read_call(&self, batch: &[(SeqId, &[u32])], step: Submitted) -> Result<Vec<u32>> {
        let call = Call { batch, want: Want::Tokens(&[]), undrawn: Undrawn::IsTold(&[]), samplers: Vec::new() };
        let mut read = TokensAndLogits { tokens: vec![0; batch.len()], ..Default::default() };
        self.read_results(&call, step, &mut read).await?;
        Ok(read.tokens)
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
fn whole(batch: &[(SeqId, &[u32])]) -> Vec<TokenRun> {
    let parts = batch.iter().enumerate();
    parts.map(|(sequence, (_, tokens))| TokenRun { sequence, tokens: 0..tokens.len(), last: true }).collect()
}
