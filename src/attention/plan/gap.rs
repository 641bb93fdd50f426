//! The pages between a sequence's first tokens, kept beside a window, and the window: a plan's page tables leave them
//! out. Pure.
//!
//! So kernels meet a shorter sequence without a gap, one run of tokens that is cut like any other: the first tokens
//! cost neither an item nor a merge of their own. They count tokens and positions without those left out, which a mask
//! cannot tell: every row that shares a table begins its window past them. Pages partly seen stay, and their hidden
//! tokens are masked.

use std::ops::Range;

use super::shape::PlanShape;
use super::tree::MAX_TREE;
use super::work::Tile;
use crate::error::{ErrorKind, Result};
use crate::kv::view::SeqView;

/// The batch of a step as the planner takes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlanStep<'a> {
    pub sequences: &'a [SeqView],
    /// One per query token, checked and cut to what is shown, or none where attention is causal.
    pub masks: &'a [u64],
    /// Tokens per page, a power of two.
    pub page_size: u32,
    /// Entries of the batch's page table.
    pub page_entries: usize,
    /// Of each sequence the tokens that there are keys and values of; no ranges for all of them. What lies
    /// before is the sequence's gap, what lies behind has no page, or is another rank's. Not beside first tokens of a window.
    pub held: &'a [Range<u32>],
}

/// Tables that follow the batch's own in a plan.
#[derive(Debug)]
pub(crate) struct Tables {
    page_size: u64,
    /// Entries of the batch's page table and of `copied`.
    entries: usize,
    /// What they consist of: stretches of the batch's page table (entries).
    pub(crate) copied: Vec<Range<u32>>,
}

impl Tables {
    /// Errors: [`ErrorKind::Argument`] for a page size that is no power of two.
    pub(crate) fn new(step: &PlanStep<'_>) -> Result<Self> {
        if !step.page_size.is_power_of_two() {
            return Err(ErrorKind::argument("page_size", format!("{} is not a power of two", step.page_size)));
        }
        Ok(Tables { page_size: step.page_size.into(), entries: step.page_entries, copied: Vec::new() })
    }

    /// Gives the tiles of sequence `index`, in the order of their rows, tables that leave out what they do not see
    /// between first tokens and window.
    ///
    /// Errors: [`ErrorKind::Argument`] where one sees what the sequence no longer holds.
    pub(crate) fn shorten(&mut self, index: usize, tiles: &mut [Tile], shape: &PlanShape) -> Result<()> {
        if shape.keep_first == 0 {
            return tiles.iter_mut().try_for_each(|tile| self.pass_gap(index, tile));
        }
        let Some(sequence) = tiles.first().map(|tile| tile.sequence) else { return Ok(()) };
        let page_size = self.page_size;
        let first = u64::from(shape.keep_first).next_multiple_of(page_size);
        // Tree masks count from the first of the step's tokens, so those stay. Where there could be masks, but are
        // none, it is the same: then a chain has causal attention's bits.
        let SeqView { q_len, kv_len, .. } = sequence;
        let most = if q_len <= MAX_TREE { kv_len - q_len } else { kv_len };
        let gap_last = |tile: &Tile| {
            let window = u64::from(tile.first.min(most));
            (window - window % page_size).max(first)
        };
        // Tiles whose windows begin near each other share a table, so that tables grow with the step's tokens alone,
        // and what a tile reads in vain is at most an eighth of what it sees, or a page.
        let near = page_size.max((u64::from(shape.keep_first) + u64::from(shape.window)) / 8);
        let mut rest = tiles;
        while let Some(tile) = rest.first() {
            let gap = first..gap_last(tile);
            let of_one = |tile: &&Tile| (gap.end..gap.end + near).contains(&gap_last(tile));
            let count = rest.iter().take_while(of_one).count();
            let (tiles, others) = std::mem::take(&mut rest).split_at_mut(count);
            let last = tiles.iter().map(|tile| tile.last).max().unwrap_or(0);
            let view = self.view(index, &sequence, gap.clone(), last)?;
            for tile in tiles {
                tile.sequence = view;
                tile.first = 0;
                tile.last -= (gap.end - gap.start) as u32; // no truncation: not past a token of the tile
            }
            rest = others;
        }
        Ok(())
    }

    /// A tile that sees one run of tokens: its table's entries are those past the gap, if there is one.
    fn pass_gap(&self, index: usize, tile: &mut Tile) -> Result<()> {
        let sequence = &mut tile.sequence;
        if sequence.gap_first >= sequence.gap_last {
            return Ok(());
        }
        if tile.first < sequence.gap_last && tile.first < tile.last {
            return Err(exceeds(index, sequence, format!("reads from {}", tile.first)));
        }
        // Wraps where fewer entries come before than pages are gone: the kernels' index wraps back.
        let pages = u64::from(sequence.gap_last - sequence.gap_first) / self.page_size;
        sequence.page_table_first = sequence.page_table_first.wrapping_sub(pages as u32);
        Ok(())
    }

    /// The sequence without the pages of `gap`, as far as `last`.
    fn view(&mut self, index: usize, sequence: &SeqView, gap: Range<u64>, last: u32) -> Result<SeqView> {
        let held = u64::from(sequence.gap_first)..u64::from(sequence.gap_last);
        if !held.is_empty() && (held.start < gap.start || held.end > gap.end) {
            return Err(exceeds(index, sequence, format!("reads all but {}..{}", gap.start, gap.end)));
        }
        let mut page_table_first = sequence.page_table_first;
        if !gap.is_empty() && gap != held {
            let entry = |token: u64| {
                let gone = if token >= held.end { held.end.saturating_sub(held.start) } else { 0 };
                u64::from(page_table_first) + (token - gone).div_ceil(self.page_size)
            };
            let stretches = [entry(0)..entry(gap.start), entry(gap.end)..entry(u64::from(last))];
            page_table_first = entry_u32(self.entries as u64)?;
            for stretch in stretches {
                self.entries += (stretch.end - stretch.start) as usize;
                self.copied.push(entry_u32(stretch.start)?..entry_u32(stretch.end)?);
            }
        }
        let kv_len = sequence.kv_len - (gap.end - gap.start) as u32; // a gap is before tokens that are seen
        Ok(SeqView { page_table_first, kv_len, gap_first: 0, gap_last: 0, ..*sequence })
    }
}

fn exceeds(index: usize, sequence: &SeqView, reads: String) -> crate::error::Error {
    let SeqView { gap_first, gap_last, .. } = *sequence;
    let why = format!(
        "sequence {index} no longer holds its tokens {gap_first}..{gap_last}, this step {reads}: window or keep_first \
         of Decode exceed the sequence's"
    );
    ErrorKind::argument("window", why)
}

fn entry_u32(entry: u64) -> Result<u32> {
    u32::try_from(entry)
        .map_err(|_| ErrorKind::argument("sequences", format!("page table entry {entry} is past 32 bits")))
}

#[cfg(test)]
#[path = "gap_tests.rs"]
mod tests;
