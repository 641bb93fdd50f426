//! Everything that a session's first steps would compile, ahead of them.

use super::session::{Draw, Session, Want};
use crate::cache::SeqId;
use crate::error::Result;

/// One of each class of rows that kernels tell apart. The largest first: scratch memory that grew would make the bind
/// groups of what ran before it anew.
const ROWS: [usize; 8] = [33, 17, 16, 9, 5, 3, 2, 1];

impl Session {
    /// Runs steps of every size that has kernels of its own, on sequences that are gone afterwards, and draws from their
    /// logits: so that the first real token compiles nothing and makes no bind group. Left out is what does not fit the
    /// chunk, the batch, the free part of the cache or the model's positions, and the merge of sequences long enough to
    /// be split. Takes as long as compiling does; a pipeline cache
    /// ([`GpuOptions::pipeline_cache`](crate::GpuOptions)) shortens it from the second time on, and is written here.
    ///
    /// Errors: those of the device. The session is as it was.
    pub async fn warm_up(&mut self) -> Result<()> {
        let most = self.capacity().min(self.decoder().config().max_positions);
        let (page_size, free) = (self.cache().pages().size, self.stats().free);
        for rows in [most].into_iter().chain(ROWS).filter(|n| *n <= most && n.div_ceil(page_size) <= free) {
            self.rehearse(1, rows).await?;
        }
        // Single tokens of several sequences: other rows for the products, the same for the attention.
        let batches = self.max_batch().min(free);
        for sequences in [batches].into_iter().chain(ROWS).filter(|n| (2..=batches).contains(n)) {
            self.rehearse(sequences, 1).await?;
        }
        self.decoder().gpu().save_pipeline_cache();
        Ok(())
    }

    /// Feeds `tokens` tokens to each of new sequences, and removes them.
    async fn rehearse(&mut self, sequences: usize, tokens: usize) -> Result<()> {
        let ids: Vec<SeqId> = (0..sequences).map(|_| self.insert()).collect();
        let tokens = vec![0; tokens];
        let batch: Vec<(SeqId, &[u32])> = ids.iter().map(|id| (*id, tokens.as_slice())).collect();
        let fed = self.feed(&batch, Want::Token(&vec![Draw::default(); sequences])).await;
        ids.into_iter().try_for_each(|id| self.remove(id))?;
        fed.map(drop)
    }
}
