//! Plans of decode: from a cache's sequences to a work list on the device.

use super::balance::most_slots;
use super::buffer as plan_buffer;
use super::buffer::{Home, PageEntries, PlanBuffer};
use super::shape::KernelForm;
use super::work as plan;
use super::work::{PlanShape, PlanStep, SplitPolicy, WorkList};
use crate::attention::decode::Decode;
#[cfg(doc)]
use crate::attention::options::AttentionOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::kv::tables::PageTables;
use crate::kv::turns::TokenShare;
use crate::kv::view::{KvSource, Resident, SeqView};
use std::ops::Range;
use std::sync::PoisonError;

/// The work of one step: which workgroup reads which tokens of which sequence. Made once, used by every layer.
///
/// Dropped, its buffer serves the next plan; after [`Decode::encode`] only when
/// [`Gpu::passes_submitted`](crate::Gpu::passes_submitted) was called.
#[derive(Debug)]
pub struct Plan {
    pub(crate) buffer: Option<PlanBuffer>,
    pub(crate) home: Home,
    pub(crate) generation: u64,
    pub(crate) tokens: usize,
    /// Per class: work items and merge items.
    pub(crate) counts: Vec<(usize, usize)>,
    /// Per class: which of its kernels.
    pub(crate) forms: Vec<KernelForm>,
    /// Per class: tokens of the longest item.
    pub(crate) longest: Vec<u32>,
    /// Per class: most parts of a merge.
    pub(crate) most_parts: Vec<u32>,
    pub(crate) workgroups: usize,
    pub(crate) partial_rows: usize,
    pub(crate) max_page: u32,
    pub(crate) page_size: usize,
}

/// A step as its planner is told of it; see [`PlanStep`].
pub(crate) struct PlanViews<'a> {
    pub(crate) sequences: &'a [SeqView],
    pub(crate) held: &'a [Range<u32>],
    pub(crate) masks: &'a [u64],
    /// Query tokens of the step, those of sequences that do not attend too.
    pub(crate) tokens: usize,
    pub(crate) page_size: usize,
    pub(crate) generation: u64,
    pub(crate) entries: PageEntries<'a>,
    /// No page has a higher number; none: as the entries say.
    pub(crate) most_page: Option<u32>,
}

impl Decode {
    /// Plans a step: each sequence attends from its reserved tokens over everything it holds, those included.
    ///
    /// Valid until any sequence of the cache changes, whichever it is. The plan is uploaded, and what is recorded is
    /// submitted before: so plan before recording the step.
    ///
    /// # Errors
    ///
    /// Unknown or repeated sequences, as the cache says; [`ErrorKind::Argument`] where no token is reserved, or where
    /// the numbers of a [`KvBatch`](crate::kv::KvBatch) do not fit each other; [`ErrorKind::TooLarge`],
    /// [`ErrorKind::OutOfMemory`].
    pub fn plan<S: KvSource>(&self, cache: &S, sequences: &[S::Id]) -> Result<Plan> {
        self.plan_masked(cache, sequences, None)
    }

    /// [`Decode::plan`] with a tree mask per query token, for a `Decode` made with [`AttentionOptions::tree`]: bit i of
    /// `masks[t]` says whether query token t sees the i-th of its own sequence's reserved tokens. What was cached before,
    /// every token sees. (With a window, a token sees the last of all these, in a tree its nearest ancestors, and of
    /// the farthest [`AttentionOptions::keep_first`].)
    ///
    /// Masks say who sees whom, not where: rotate queries and keys by the tokens' depths, through [`Append::encode`]
    /// (the cache's own append counts positions along the sequence).
    ///
    /// # Errors
    ///
    /// As [`Decode::plan`]; [`ErrorKind::Shape`] for another number of masks than query tokens,
    /// [`ErrorKind::Argument`] for more than 64 tokens of one sequence, bits past them, a token that does not see itself, a
    /// `Decode` made without tree masks.
    ///
    /// [`Append::encode`]: crate::kv::Append::encode
    pub fn plan_tree<S: KvSource>(&self, cache: &S, sequences: &[S::Id], masks: &[u64]) -> Result<Plan> {
        self.plan_masked(cache, sequences, Some(masks))
    }

    fn plan_masked<S: KvSource>(&self, cache: &S, sequences: &[S::Id], masks: Option<&[u64]>) -> Result<Plan> {
        self.plan_from(cache, sequences, masks, |_| true)
    }

    /// [`Decode::plan`] of a step in which only some of the sequences attend, by their index: the rows of the others are
    /// left as they are.
    ///
    /// Errors: as [`Decode::plan`].
    pub(crate) fn plan_some<S: KvSource>(
        &self,
        cache: &S,
        sequences: &[S::Id],
        attends: impl Fn(usize) -> bool,
    ) -> Result<Plan> {
        self.plan_from(cache, sequences, None, attends)
    }

    /// [`Decode::plan`] over the tokens of each sequence that a rank has, where ranks divide them by context. `tables` are of the pages
    /// of all ranks; a layer's view is of this rank's part of them.
    ///
    /// Errors: as [`Decode::plan`].
    pub(crate) fn plan_share<S: KvSource>(&self, tables: &S, sequences: &[S::Id], share: TokenShare) -> Result<Plan> {
        let (batch, resident, most_page) = match tables.resident(sequences)? {
            Some(Resident { batch, tables, most_page }) => (batch, Some(tables), Some(most_page)),
            None => (tables.batch(sequences)?, None, None),
        };
        if batch.tokens() == 0 {
            return Err(no_token());
        }
        let words = resident.map_or(&batch.page_table[..], PageTables::words);
        batch.check(tables.page_size(), words.len())?;
        let parts = batch.sequences.iter().flat_map(|sequence| share.parts(sequence));
        let (parts, held): (Vec<SeqView>, Vec<Range<u32>>) = parts.unzip();
        self.plan_views(PlanViews {
            sequences: &parts,
            held: &held,
            masks: &[],
            tokens: batch.tokens(),
            page_size: share.run(),
            generation: batch.generation,
            entries: PageEntries { words, resident },
            most_page,
        })
    }

    fn plan_from<S: KvSource>(
        &self,
        cache: &S,
        sequences: &[S::Id],
        masks: Option<&[u64]>,
        attends: impl Fn(usize) -> bool,
    ) -> Result<Plan> {
        let resident = cache.resident(sequences)?;
        let (mut batch, tables, most_page) = match resident {
            Some(Resident { batch, tables, most_page }) => (batch, Some(tables), Some(most_page)),
            None => (cache.batch(sequences)?, None, None),
        };
        let tokens = batch.tokens();
        if tokens == 0 {
            return Err(no_token());
        }
        let entries = tables.map_or(&batch.page_table[..], PageTables::words).len();
        batch.check(cache.page_size(), entries)?;
        let masks = self.options.masks(&batch.sequences, masks)?;
        for (_, sequence) in batch.sequences.iter_mut().enumerate().filter(|(index, _)| !attends(*index)) {
            sequence.q_len = 0;
        }
        let entries = tables.map_or(&batch.page_table[..], PageTables::words);
        self.plan_views(PlanViews {
            sequences: &batch.sequences,
            held: &[],
            masks: &masks,
            tokens,
            page_size: cache.page_size(),
            generation: batch.generation,
            entries: PageEntries { words: entries, resident: tables },
            most_page,
        })
    }

    /// The plan of a step that is told in full.
    ///
    /// Errors: as [`Decode::plan`].
    pub(crate) fn plan_views(&self, views: PlanViews<'_>) -> Result<Plan> {
        let PlanViews { sequences, held, masks, tokens, page_size, generation, entries, most_page } = views;
        let step = PlanStep {
            sequences,
            masks,
            page_size: u32::try_from(page_size).unwrap_or(0), // which is refused
            page_entries: entries.words.len(),
            held,
        };
        let list = plan::plan_step(&step, &self.shape, self.policy)?;
        self.reserve_partials(&list)?;
        let buffer = plan_buffer::upload(&self.gpu, &self.plans, &list, masks, &entries)?;
        Ok(Plan {
            buffer: Some(buffer),
            home: self.plans.clone(),
            generation,
            tokens,
            counts: list.classes.iter().zip(&list.merge_classes).map(|(c, m)| (c.len(), m.len())).collect(),
            // The first of a class is its longest.
            longest: list
                .classes
                .iter()
                .map(|class| list.items[class.clone()].first().map_or(0, |item| item.token_last - item.token_first))
                .collect(),
            most_parts: list
                .merge_classes
                .iter()
                .map(|class| list.merges[class.clone()].iter().map(|merge| merge.partial_count).max().unwrap_or(0))
                .collect(),
            workgroups: (0..)
                .zip(list.classes.iter().zip(&list.forms))
                .map(|(class, (items, form))| items.len() * self.shape.workgroups_of(class, *form))
                .sum(),
            forms: list.forms,
            partial_rows: list.partial_rows,
            max_page: most_page.or(entries.words.iter().copied().max()).unwrap_or(0),
            page_size,
        })
    }

    /// Grows the scratch for partial results: to what the plan needs, and at once to what Auto may need when the same
    /// sequences have grown, so that a decode loop allocates nothing after its first step.
    fn reserve_partials(&self, list: &WorkList) -> Result<()> {
        let row_bytes = 4 * (self.heads.v_dim() + 1) * self.heads.groups();
        let mut partials = self.partials.lock().unwrap_or_else(PoisonError::into_inner);
        let auto = self.policy == SplitPolicy::Auto;
        let later = if auto { most_partial_rows(list, &self.shape) } else { 0 };
        let limit = self.gpu.capabilities().max_binding_bytes / row_bytes as u64;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let bytes = (list.partial_rows.max(later.min(limit)) * row_bytes) as u64;
        if bytes > partials.size_bytes() {
            *partials = self.gpu.create_scratch("partials", bytes)?;
        }
        Ok(())
    }
}

impl Plan {
    /// Query tokens of the step, over all sequences.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Work items in all: parts of sequences, each for every group.
    pub fn items(&self) -> usize {
        self.counts.iter().map(|c| c.0).sum()
    }

    /// Workgroups that decode takes in all; a workgroup takes one or more groups of an item.
    pub fn workgroups(&self) -> usize {
        self.workgroups
    }

    /// Whether some sequence is split, so that a merge follows.
    pub fn is_split(&self) -> bool {
        self.partial_rows > 0
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.home.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
        }
    }
}

fn no_token() -> Error {
    ErrorKind::argument("sequences", "no token is reserved, so there is nothing to attend from")
}

/// Partial rows that Auto may need for batches like this one: each of its classes may use so many slots.
fn most_partial_rows(list: &WorkList, shape: &PlanShape) -> usize {
    let used = list.classes.iter().zip(&shape.row_tiles).enumerate().filter(|(_, (items, _))| !items.is_empty());
    used.map(|(class, (_, rows))| most_slots(shape.slots(class), shape.workgroups(class)).saturating_mul(*rows))
        .fold(0, usize::saturating_add)
}

#[cfg(test)]
#[path = "planner_tests.rs"]
mod tests;
