//! Sequences that a sliding window looks at: what they hold, and what is gone. Pure.

use super::sequence::Sequence;
use super::{SeqId, SeqTable};
use crate::cache::SavedSequence;
use crate::error::{ErrorKind, Result};
use std::ops::Range;

/// What a sequence is made for, beside plain attention: of [`PagedKvCache::insert_with`](crate::PagedKvCache::insert_with).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
pub struct SequenceOptions {
    /// Attention through a sliding window ([`AttentionOptions::window`](crate::AttentionOptions::window)): pages wholly before
    /// the tokens that the next token sees, its own included, are given back when tokens are committed, and leave the plan. At
    /// least 1.
    pub window: Option<usize>,
    /// And the pages of this many first tokens stay
    /// ([`AttentionOptions::keep_first`](crate::AttentionOptions::keep_first)): the sequence holds
    /// `keep_first / page size + window / page size + 3` pages at most between its steps, however long it grows. More than 0
    /// only with a window.
    pub keep_first: usize,
}

impl SequenceOptions {
    fn check(&self) -> Result<()> {
        match self.window {
            Some(0) => Err(ErrorKind::argument("window", "a token sees itself, so at least 1")),
            None if self.keep_first > 0 => {
                Err(ErrorKind::argument("keep_first", format!("{} without a window", self.keep_first)))
            }
            _ => Ok(()),
        }
    }
}

impl SeqTable {
    /// Adds an empty sequence that gives back the pages that its window no longer sees. It shares by forks, no prefix.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for a window of 0, or first tokens without a window.
    pub fn insert_with(&mut self, options: SequenceOptions) -> Result<SeqId> {
        options.check()?;
        Ok(self.insert_seeing(options))
    }

    /// The same of options that are known to be good.
    pub(crate) fn insert_seeing(&mut self, options: SequenceOptions) -> SeqId {
        let sequence = self.seeing(options);
        self.insert_as(sequence)
    }

    /// An empty sequence of these options.
    fn seeing(&self, SequenceOptions { window, keep_first }: SequenceOptions) -> Sequence {
        Sequence { window: window.unwrap_or(0), kept: self.kept_pages(keep_first), ..Sequence::default() }
    }

    /// What is saved of a sequence, without its tokens.
    pub(crate) fn to_save(&self, id: SeqId) -> Result<SavedSequence> {
        let sequence = self.sequence(id)?;
        let &Sequence { len, window, kept, .. } = sequence;
        let keep_first = if window > 0 { kept * self.page_size } else { 0 };
        Ok(SavedSequence { len, window, keep_first, gap: sequence.gap(self.page_size), tokens: Vec::new() })
    }

    /// Adds an empty sequence that is what was saved once its tokens, those of the gap among them, are reserved and
    /// committed. The gap is whole pages here.
    pub(crate) fn insert_saved(&mut self, saved: &SavedSequence) -> SeqId {
        let freed = saved.gap.len() / self.page_size;
        let kept = self.kept_pages(saved.keep_first);
        self.insert_as(Sequence { window: saved.window, kept, freed, ..Sequence::default() })
    }

    /// Lets a sequence that has lost no page give pages back from now on, as one of [`SeqTable::insert_with`] does. One
    /// that has a window keeps that.
    pub(crate) fn see(&mut self, id: SeqId, seen: SequenceOptions) -> Result<()> {
        let (window, kept) = (seen.window.unwrap_or(0), self.kept_pages(seen.keep_first));
        let sequence = self.sequence_mut(id)?;
        if sequence.window > 0 {
            return Ok(());
        }
        (sequence.window, sequence.kept, sequence.known) = (window, kept, None);
        self.changed();
        Ok(())
    }

    /// Pages that a sequence made with these options holds, that has `len` tokens, while it gets as many as to have `tokens`.
    pub(crate) fn pages_held(&self, seen: SequenceOptions, len: usize, tokens: usize) -> usize {
        let mut sequence = self.seeing(seen);
        sequence.freed = sequence.unseen(len, self.page_size);
        sequence.pages_of(tokens, self.page_size)
    }

    /// Whether a sequence gives pages back to its window where `n` more of its tokens are committed.
    pub(crate) fn frees_with(&self, id: SeqId, n: usize) -> Result<bool> {
        let sequence = self.sequence(id)?;
        Ok(sequence.unseen(sequence.len.saturating_add(n), self.page_size) > sequence.freed)
    }

    /// Pages of the first tokens. No sequence has more tokens than 32 bits count.
    fn kept_pages(&self, keep_first: usize) -> usize {
        keep_first.div_ceil(self.page_size).min(u32::MAX as usize / self.page_size)
    }

    /// Tokens that a sequence no longer holds, whole pages of them, since its window has moved on: empty where it holds
    /// all.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::UnknownSequence`](crate::ErrorKind::UnknownSequence).
    pub fn gap(&self, id: SeqId) -> Result<Range<usize>> {
        Ok(self.sequence(id)?.gap(self.page_size))
    }
}
