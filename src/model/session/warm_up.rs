//! Everything that a session's first steps would compile, ahead of them and together.

use super::feed::{Undrawn, Want};
use super::owned::Owned;
use super::schedule::{schedule, TokenRun};
use super::Session;
use crate::cache::SeqId;
use crate::error::Result;
use crate::gpu::Tier;
use crate::model::sampler::DrawRow;

/// One of each class of rows that kernels tell apart. The largest first: scratch memory that grew would make the bind
/// groups of what ran before it anew.
const ROWS: [usize; 8] = [33, 17, 16, 9, 5, 3, 2, 1];
/// What products by cooperative matrices tell apart besides.
const MATRIX_ROWS: [usize; 3] = [257, 129, 65];

impl Session {
    /// Compiles the kernels of steps of every size that has kernels of its own, on several threads where there are any, and runs
    /// such steps on sequences that are gone afterwards, drawing from their
    /// logits: so that the first real token compiles nothing and makes no bind group, nor the first sequence that is long
    /// enough to be split and merged. Logits of all tokens of a step, as guesses are judged by, compile nothing either. Left
    /// out is what does not fit the chunk, the batch, the free part of the cache or the model's positions. Takes as long as
    /// compiling does; a pipeline cache ([`GpuOptions::pipeline_cache`](crate::GpuOptions)) shortens it from the second
    /// time on, and is written here.
    ///
    /// # Errors
    ///
    /// Those of the device. The session is as it was.
    pub async fn warm_up(&mut self) -> Result<()> {
        let most = self.capacity().min(self.max_positions());
        let matrices = self.decoder().gpu().capabilities().tier == Tier::Matrix;
        let larger = MATRIX_ROWS.into_iter().filter(|_| matrices);
        let sizes: Vec<usize> = [most].into_iter().chain(larger).chain(ROWS).filter(|n| *n <= most).collect();
        let steps = self.steps_to_rehearse(most, &sizes);
        let gpu = self.decoder().gpu().clone();
        gpu.compile_for(|| {
            steps.iter().try_for_each(|tokens| self.record_rehearsal(tokens))?;
            // Logits of several tokens of a sequence: compiled only, since their memory is made where they are first asked for.
            sizes.iter().try_for_each(|rows| self.decoder().inner.head.prepare(*rows))?;
            self.cache().prepare_copies()
        })?;
        for tokens in &steps {
            self.rehearse(tokens).await?;
        }
        gpu.save_pipeline_cache();
        Ok(())
    }

    /// Compiles what the ends of a stream's input need together with what the steps of single tokens behind it do, when a session
    /// first streams, or a scheduler takes its first step: else its first token waited for the one and then for the other, since the step behind is recorded before it is
    /// read. What does not fit the free part of the cache is compiled when its turn comes.
    ///
    /// Errors: those of the device.
    pub(crate) fn compile_stream(&mut self, lengths: &[usize]) -> Result<()> {
        if std::mem::replace(&mut self.streamed, true) {
            return Ok(());
        }
        let steps = schedule(lengths, self.capacity());
        let tokens = |parts: &Vec<TokenRun>| parts.iter().map(|part| part.tokens.len()).collect();
        let ends = steps.first().into_iter().chain(steps.last()).map(tokens);
        let steps: Vec<Vec<usize>> = ends.chain([vec![1; lengths.len()]]).filter(|step| self.is_free(step)).collect();
        let gpu = self.decoder().gpu().clone();
        gpu.compile_for(|| steps.iter().try_for_each(|tokens| self.record_rehearsal(tokens)))
    }

    /// Whether new sequences of so many tokens fit the free part of the cache.
    fn is_free(&self, tokens: &[usize]) -> bool {
        let page_size = self.cache().pages().size;
        tokens.iter().map(|n| n.div_ceil(page_size)).sum::<usize>() <= self.stats().free
    }

    /// Tokens of each sequence of each step.
    fn steps_to_rehearse(&self, most: usize, sizes: &[usize]) -> Vec<Vec<usize>> {
        // Short sequences beside a long one: several kernels in one step need the most scratch memory for what is merged.
        let (mut mixed, mut left) = (Vec::new(), most);
        for rows in ROWS.into_iter().rev().take(self.max_batch() - 1) {
            if 2 * rows < left {
                mixed.push(rows);
                left -= rows;
            }
        }
        mixed.push(left);
        let alone = sizes.iter().map(|rows| vec![*rows]);
        // Single tokens of several sequences: other rows for the products, the same for the attention.
        let batches = self.max_batch().min(self.stats().free);
        let together = [batches].into_iter().chain(ROWS).filter(|n| (2..=batches).contains(n)).map(|n| vec![1; n]);
        [mixed].into_iter().chain(alone).chain(together).filter(|step| self.is_free(step)).collect()
    }

    /// Feeds so many tokens to each of new sequences, and removes them. Their merge kernels are bound too, with nothing
    /// to merge (`Decode::encode`).
    async fn rehearse(&mut self, tokens: &[usize]) -> Result<()> {
        let mut own = Owned::new(self);
        let zeros = vec![0; tokens.iter().copied().max().unwrap_or(0)];
        let batch = own.rehearsed(tokens, &zeros);
        // Whatever the logits are.
        let rows = vec![DrawRow::default(); tokens.len()];
        own.session.feed(&batch, Want::Tokens(&rows), Undrawn::IsTold(&[])).await.map(drop)
    }

    /// Records the same, and rolls it back.
    fn record_rehearsal(&mut self, tokens: &[usize]) -> Result<()> {
        let mut own = Owned::new(self);
        let zeros = vec![0; tokens.iter().copied().max().unwrap_or(0)];
        let batch = own.rehearsed(tokens, &zeros);
        let draws = vec![DrawRow::default(); tokens.len()];
        own.session.record_call(&batch, &draws)
    }
}

impl Owned<'_> {
    /// New sequences with so many of the tokens each.
    fn rehearsed<'t>(&mut self, tokens: &[usize], all: &'t [u32]) -> Vec<(SeqId, &'t [u32])> {
        tokens.iter().map(|n| (self.insert(), &all[..*n])).collect()
    }
}
