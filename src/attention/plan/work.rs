//! Split-KV planner: from the lengths of a batch to a flat list of work items, one per workgroup. Pure.
//!
//! Rows of a sequence are (token m, head h of a group), head fastest: `row = m * heads_per_group + h`. They are cut
//! into tiles of one kernel's height, and the tokens that a tile sees into chunks. A tile of one chunk writes its
//! final output; the chunks of a split tile write partials, which a merge item then joins in ascending token order.

use super::cut::{auto, cut, Auto, Cut};
pub(crate) use super::gap::PlanStep;
use super::gap::Tables;
use super::shape::KernelForm;
pub(crate) use super::shape::PlanShape;
use crate::error::{ErrorKind, Result};
use crate::kv::view::SeqView;
use std::cmp::Reverse;
use std::ops::Range;

/// How the cached tokens of a sequence are divided among workgroups.
///
/// Every policy gives the same result up to rounding; a given plan gives the same bits every time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum SplitPolicy {
    /// Parts that keep the device's workgroups evenly busy to the end: none where the batch does that by itself, the
    /// last round alone where it almost does, many of one long sequence among short ones. Merging them costs under a
    /// tenth of reading the cache, or under a half where there is too little work for the device anyway.
    /// A sequence's parts, and so the last bits of its result, depend on what else is in the batch.
    #[default]
    Auto,
    /// Parts of this many tokens (rounded up to the kernel's token tile), counted from the first it sees, without pages
    /// that it passes over ([`keep_first`](crate::attention::AttentionOptions::keep_first)): a sequence's result does not depend
    /// on the batch it is in, bit for bit.
    FixedTokens(usize),
    /// This many near-equal parts per sequence, fewer where a sequence has not that many token tiles.
    Count(usize),
    /// No splitting: one workgroup walks all tokens of a sequence.
    Off,
}

/// [`WorkItem::partial`] of an item that writes the final output.
pub(crate) const NO_PARTIAL: u32 = u32::MAX;

/// One workgroup's work for one group; all groups of an item are the x dimension of the dispatch.
/// Items of `token_first == token_last` see no token: they write output 0 and lse -inf.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct WorkItem {
    /// First entry of the sequence in the page table (entries). Tokens below are counted without pages that the table
    /// leaves out (`gap.rs`).
    pub page_table_first: u32,
    /// First query token of the sequence among the step's (tokens).
    pub q_token_first: u32,
    /// Query tokens of the sequence in this step (tokens).
    pub q_len: u32,
    /// Cached tokens of the sequence, this step's included (tokens).
    pub kv_len: u32,
    /// First row of the tile within the sequence (rows).
    pub row_first: u32,
    /// First cached token of the chunk (tokens).
    pub token_first: u32,
    /// One past the last cached token of the chunk that some row of the tile sees (tokens).
    pub token_last: u32,
    /// First row of the partial slot to write (partial rows), or [`NO_PARTIAL`].
    pub partial: u32,
}

/// One split tile to be joined from its partials; all groups of an item are the x dimension of the dispatch.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct MergeItem {
    /// First query token of the sequence among the step's (tokens).
    pub q_token_first: u32,
    /// First row of the tile within the sequence (rows).
    pub row_first: u32,
    /// Rows of the tile that the sequence has (rows); the class's tile height or less.
    pub rows: u32,
    /// First row of the first partial slot (partial rows); the next slot starts one tile height later.
    pub partial_first: u32,
    /// Partials to join, ascending in tokens (slots).
    pub partial_count: u32,
    /// Zero; fills the struct to 32 bytes.
    pub reserved: [u32; 3],
}

/// The plan of one step, used by every layer. A class is one entry of [`PlanShape::row_tiles`], one kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct WorkList {
    /// The items, class after class, within a class the longest first.
    pub items: Vec<WorkItem>,
    /// For each class its range of `items`.
    pub classes: Vec<Range<usize>>,
    /// For each class which of its kernels takes its items.
    pub forms: Vec<KernelForm>,
    /// The split tiles, class after class.
    pub merges: Vec<MergeItem>,
    /// For each class its range of `merges`.
    pub merge_classes: Vec<Range<usize>>,
    /// For each class its partial slots (slots); each holds one tile height of rows, for every group.
    pub partial_slots: Vec<usize>,
    /// Rows of all partial slots of all classes (partial rows): what the scratch must hold, for every group.
    pub partial_rows: usize,
    /// Stretches of the batch's page table that follow it in the plan, one after the other (entries).
    pub copied_entries: Vec<Range<u32>>,
}

/// Work and merge lists are bound whole, and 128 MiB is the largest storage binding that every device has.
const MAX_ITEMS: u64 = (128 << 20) / size_of::<WorkItem>() as u64;

/// From this many items on they are sorted by digits of this many bits.
const RADIX_ITEMS: usize = 4096;
const RADIX_BITS: u32 = 11;

/// Rows of a sequence that share one item, before its tokens are cut.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tile {
    pub(crate) sequence: SeqView,
    /// First row within the sequence, and how many (rows).
    row_first: u32,
    pub(super) rows: u32,
    /// First token that some row sees; before [`Tables::shorten`], that its window has.
    pub(crate) first: u32,
    /// One past the last token that some row sees.
    pub(crate) last: u32,
}

impl Tile {
    /// Tokens from the first that some row sees to the last.
    pub(super) fn tokens(&self) -> u64 {
        u64::from(self.last - self.first)
    }
}

/// Plans the work of a step of causal attention with pages of 64. The result depends on nothing but the arguments.
#[cfg(test)]
pub(crate) fn plan(sequences: &[SeqView], shape: &PlanShape, policy: SplitPolicy) -> Result<WorkList> {
    let page_entries = sequences.iter().map(|sequence| sequence.kv_len.div_ceil(64) as usize).sum();
    plan_step(&PlanStep { sequences, masks: &[], page_size: 64, page_entries, held: &[] }, shape, policy)
}

/// Plans the work of a step. The result depends on nothing but the arguments.
pub(crate) fn plan_step(step: &PlanStep<'_>, shape: &PlanShape, policy: SplitPolicy) -> Result<WorkList> {
    shape.check(policy)?;
    let mut tables = Tables::new(step)?;
    let classes = tiles(step, shape, &mut tables)?;
    // One class is one dispatch, and they run one after the other: each is to fill the device by itself.
    let autos: Vec<Auto> = classes.iter().enumerate().map(|(class, tiles)| auto(tiles, class, shape, policy)).collect();

    // Counted before anything is allocated: a page size of 1 and large counts could ask for billions.
    let parts = |((tiles, auto), most): ((&Vec<Tile>, &Auto), &u64)| {
        let mut cutter = auto.cutter.clone();
        tiles.iter().map(|tile| cut(tile, (shape, *most), policy, &mut cutter).parts).sum::<u64>()
    };
    let items: u64 = classes.iter().zip(&autos).zip(&shape.most_tokens).map(parts).sum();
    check_items(items)?;

    let mut list = WorkList { items: Vec::with_capacity(items as usize), ..WorkList::default() };
    let mut partial_rows = 0u64;
    let kernels = shape.row_tiles.iter().zip(&shape.most_tokens);
    for (class, ((tiles, auto), (&row_tile, &most))) in classes.iter().zip(autos).zip(kernels).enumerate() {
        let mut cutter = auto.cutter.clone();
        let (first_item, first_merge, mut slots) = (list.items.len(), list.merges.len(), 0);
        for tile in tiles {
            let cut = cut(tile, (shape, most), policy, &mut cutter);
            let partial_first = (cut.parts > 1).then_some(partial_rows);
            push_items(&mut list.items, tile, cut, partial_first.map(|first| (first, row_tile as u64)))?;
            let Some(partial_first) = partial_first else { continue };
            list.merges.push(MergeItem {
                q_token_first: tile.sequence.q_token_first,
                row_first: tile.row_first,
                rows: tile.rows,
                partial_first: partial_row(partial_first)?,
                partial_count: cut.parts as u32,
                reserved: [0; 3],
            });
            slots += cut.parts as usize;
            partial_rows += cut.parts * row_tile as u64;
        }
        longest_first(&mut list.items[first_item..]);
        let items = &list.items[first_item..];
        let longest = items.first().map_or(0, |item| u64::from(item.token_last - item.token_first));
        list.forms.push(auto.form((items.len(), longest), shape, class));
        list.classes.push(first_item..list.items.len());
        list.merge_classes.push(first_merge..list.merges.len());
        list.partial_slots.push(slots);
    }
    list.partial_rows = partial_row(partial_rows)? as usize;
    list.copied_entries = tables.copied;
    Ok(list)
}

/// The items of one tile; `partial` is the row of its first slot and the slots' height.
fn push_items(items: &mut Vec<WorkItem>, tile: &Tile, cut: Cut, partial: Option<(u64, u64)>) -> Result<()> {
    let SeqView { page_table_first, q_token_first, q_len, kv_len, .. } = tile.sequence;
    let mut token_last = tile.first;
    for part in 0..cut.parts {
        let token_first = token_last;
        token_last = if part + 1 < cut.parts { cut.boundary(part + 1) } else { tile.last };
        items.push(WorkItem {
            page_table_first,
            q_token_first,
            q_len,
            kv_len,
            row_first: tile.row_first,
            token_first,
            token_last,
            partial: match partial {
                Some((first, row_tile)) => partial_row(first + part * row_tile)?,
                None => NO_PARTIAL,
            },
        });
    }
    Ok(())
}

/// The tiles of every class. A sequence's class is decided by its own rows, never by its batch mates.
fn tiles(step: &PlanStep<'_>, shape: &PlanShape, tables: &mut Tables) -> Result<Vec<Vec<Tile>>> {
    let mut classes = vec![Vec::new(); shape.row_tiles.len()];
    let mut count = 0u64;
    for (index, &sequence) in step.sequences.iter().enumerate() {
        let rows = rows(index, &sequence, shape)?;
        if rows == 0 {
            continue;
        }
        let class = shape.row_tiles.iter().position(|&tile| tile as u64 >= rows).unwrap_or(shape.row_tiles.len() - 1);
        let (row_tile, begin) = (shape.row_tiles[class] as u64, classes[class].len());
        if begin == 0 {
            classes[class].reserve(step.sequences.len() - index); // the others are mostly like it
        }
        count = count.saturating_add(rows.div_ceil(row_tile));
        check_items(count)?;
        for first in (0..rows).step_by(row_tile as usize) {
            let last = (first + row_tile).min(rows) - 1;
            let token = |row: u64| (row / shape.heads_per_group as u64) as u32;
            let (token_first, token_last) = seen(&sequence, step.masks, token(first)..token(last) + 1, shape.window);
            let (token_first, token_last) = held(step.held.get(index), (token_first, token_last));
            classes[class].push(Tile {
                sequence,
                row_first: first as u32, // no truncation here and below: less than rows, which fits
                rows: (last - first + 1) as u32,
                first: token_first,
                last: token_last,
            });
        }
        tables.shorten(index, &mut classes[class][begin..], shape)?;
    }
    Ok(classes)
}

/// First cached token that one of these query tokens of a sequence sees in its window, and one past the last.
fn seen(sequence: &SeqView, masks: &[u64], tokens: Range<u32>, window: u32) -> (u32, u32) {
    let before = sequence.kv_len - sequence.q_len;
    let from = |count: u32| if window == 0 { 0 } else { (before + count).saturating_sub(window) };
    if masks.is_empty() {
        return (from(tokens.start + 1), before + tokens.end);
    }
    let masks = &masks[sequence.q_token_first as usize..][..sequence.q_len as usize];
    let masks = &masks[tokens.start as usize..tokens.end as usize];
    let first = |mask: &u64| match mask.count_ones() {
        // The window begins among the new tokens: here, or later where first tokens are among them, too.
        count if window > 0 && count >= window => before + mask.trailing_zeros(),
        count => from(count),
    };
    let first = masks.iter().map(first).min();
    let last = masks.iter().map(|mask| before + u64::BITS - mask.leading_zeros()).max();
    (first.unwrap_or(0), last.unwrap_or(before))
}

/// Of tokens that are seen, from the first to one past the last, those that are held.
fn held(held: Option<&Range<u32>>, (first, last): (u32, u32)) -> (u32, u32) {
    let Some(held) = held else { return (first, last) };
    let (first, last) = (first.max(held.start), last.min(held.end));
    // No token, at a place that has a page.
    (if first < last { first } else { held.end }, if first < last { last } else { held.end })
}

/// Rows of a sequence per group, its numbers checked.
fn rows(index: usize, sequence: &SeqView, shape: &PlanShape) -> Result<u64> {
    let SeqView { q_token_first, q_len, kv_len, .. } = *sequence;
    if kv_len < q_len {
        return Err(ErrorKind::argument("kv_len", format!("sequence {index} has {kv_len}, less than q_len {q_len}")));
    }
    if q_token_first.checked_add(q_len).is_none() {
        let why = format!("sequence {index} has {q_token_first}, with q_len {q_len} past 32 bits");
        return Err(ErrorKind::argument("q_token_first", why));
    }
    let rows = u64::from(q_len).saturating_mul(shape.heads_per_group as u64);
    if rows > u64::from(u32::MAX) {
        let why = format!("sequence {index} has {q_len} of {} rows each, past 32 bits", shape.heads_per_group);
        return Err(ErrorKind::argument("q_len", why));
    }
    Ok(rows)
}

/// Sorts items, the longest first, so that what is left at the end is short. Stable: equal plans for equal batches.
/// Linear where there are many: a few digits of each length are counted, nothing is compared.
fn longest_first(items: &mut [WorkItem]) {
    let length = |item: &WorkItem| item.token_last - item.token_first;
    if items.len() < RADIX_ITEMS {
        items.sort_by_key(|item| Reverse(length(item)));
        return;
    }
    let longest = items.iter().map(length).max().unwrap_or(0);
    for shift in (0..u32::BITS - longest.leading_zeros()).step_by(RADIX_BITS as usize) {
        let digit = |item: &WorkItem| (!length(item) >> shift) as usize % (1 << RADIX_BITS);
        let mut places = vec![0usize; 1 << RADIX_BITS];
        items.iter().for_each(|item| places[digit(item)] += 1);
        let mut next = 0;
        for place in &mut places {
            next += std::mem::replace(place, next);
        }
        let from = items.to_vec();
        for item in from {
            let place = &mut places[digit(&item)];
            items[*place] = item;
            *place += 1;
        }
    }
}

fn check_items(items: u64) -> Result<()> {
    if items <= MAX_ITEMS {
        return Ok(());
    }
    let bytes = |items: u64| items.saturating_mul(size_of::<WorkItem>() as u64);
    Err(ErrorKind::TooLarge {
        what: format!("a plan of {items} work items"),
        needed_bytes: bytes(items),
        limit_bytes: bytes(MAX_ITEMS),
    }
    .into())
}

/// A row of the partial scratch as the kernels hold it.
fn partial_row(row: u64) -> Result<u32> {
    match u32::try_from(row) {
        Ok(row) if row != NO_PARTIAL => Ok(row),
        _ => Err(ErrorKind::argument("split", format!("{row} partial rows are past 32 bits; use fewer parts"))),
    }
}

#[cfg(test)]
#[path = "work_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "held_tests.rs"]
mod held_tests;
