//! Plans on the device: buffers that serve one plan after the other, and keep page tables from step to step.

use super::work::WorkList;
use crate::attention::kernels::select::MAX_CLASSES;
use crate::error::{ErrorKind, Result};
use crate::gpu::{Buffer, Gpu};
use crate::kv::tables::PageTables;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// u32s before the first work item; layout in `shaders/attention/plan.wgsl`.
const PLAN_HEADER: usize = 32;
const _: () = assert!(4 + 4 * MAX_CLASSES <= PLAN_HEADER);
/// A plan buffer's least size in bytes, so that growing sequences seldom need a larger one.
const PLAN_BYTES: usize = 64 << 10;
/// Words that are left at least for all but the page tables, where those stay.
const HEAD_WORDS: usize = 4096;
/// Buffers that are kept for plans to come.
const KEPT: usize = 4;

/// The page tables of a plan.
pub(crate) struct PageEntries<'a> {
    pub(crate) words: &'a [u32],
    /// Where these words are, if they stay from step to step.
    pub(crate) resident: Option<&'a PageTables>,
}

/// Buffers that no plan has, the last one given back at the end.
pub(crate) type Home = Arc<Mutex<Vec<PlanBuffer>>>;

/// A buffer, and what it holds of page tables that stay.
#[derive(Debug)]
pub(crate) struct PlanBuffer {
    pub(crate) buffer: Buffer,
    /// Words before the page tables.
    pub(crate) pages_first: usize,
    /// Their array and its version.
    tables: Option<(u64, u64)>,
}

/// A plan's words, in two parts: up to the page tables, and what follows them.
struct PlanWords {
    head: Vec<u32>,
    tail: Vec<u32>,
}

/// Puts a plan into a buffer of `home`, or a new one.
///
/// Errors: [`ErrorKind::Argument`] for a plan past 32 bits, [`ErrorKind::TooLarge`], [`ErrorKind::OutOfMemory`].
pub(crate) fn upload(
    gpu: &Gpu,
    home: &Home,
    list: &WorkList,
    masks: &[u64],
    entries: &PageEntries<'_>,
) -> Result<PlanBuffer> {
    let mut words = PlanWords::new(list, masks, entries.words)?;
    let after = entries.words.len() + words.tail.len();
    let mut buffer = take(gpu, home, words.head.len(), after, entries.resident)?;
    words.head[0] = word(buffer.pages_first)?;
    let parts = match (entries.resident, buffer.tables) {
        (Some(tables), Some((id, version))) if id == tables.id() => tables.missing(version),
        _ => std::iter::once(0..entries.words.len()).collect(),
    };
    let at = |word: usize| 4 * (buffer.pages_first + word) as u64;
    let mut writes: Vec<(u64, &[u8])> = vec![(0, bytemuck::cast_slice(&words.head))];
    writes.extend(parts.into_iter().map(|part| (at(part.start), bytemuck::cast_slice(&entries.words[part]))));
    writes.push((at(entries.words.len()), bytemuck::cast_slice(&words.tail)));
    gpu.write_parts(&buffer.buffer, &writes)?;
    buffer.tables = entries.resident.map(|tables| (tables.id(), tables.version()));
    Ok(buffer)
}

/// A buffer with room for `head` words, and for `after` from the page tables on: one that has most of the tables already,
/// if there is one.
fn take(gpu: &Gpu, home: &Home, head: usize, after: usize, resident: Option<&PageTables>) -> Result<PlanBuffer> {
    let fits = |b: &PlanBuffer, first: usize| b.buffer.size_bytes() >= 4 * (first + after) as u64;
    // Room to grow, since moving the tables means uploading them all.
    let first = if resident.is_some() { (2 * head).next_power_of_two().max(HEAD_WORDS) } else { head };
    let mut free = home.lock().unwrap_or_else(PoisonError::into_inner);
    let id = resident.map(PageTables::id);
    let same = |b: &PlanBuffer| b.tables.map(|(id, _)| id) == id;
    // A pass of an app's that reads it may not be submitted yet, and what is written now would come before it.
    let lent = |b: &PlanBuffer| gpu.is_lent(&b.buffer);
    let has_tables = |b: &PlanBuffer| id.is_some() && same(b) && b.pages_first >= head && fits(b, b.pages_first);
    if let Some(i) = free.iter().rposition(|b| has_tables(b) && !lent(b)) {
        return Ok(free.remove(i));
    }
    // One of other tables only where there are several: two caches may take turns.
    let most = free.len() >= KEPT;
    let other = |b: &PlanBuffer| (most || b.tables.is_none() || same(b)) && fits(b, first);
    if let Some(i) = free.iter().position(|b| other(b) && !lent(b)) {
        return Ok(PlanBuffer { pages_first: first, tables: None, ..free.remove(i) });
    }
    free.retain(|b| !same(b) || lent(b)); // too small
    if free.len() >= KEPT {
        free.remove(0);
    }
    let bytes = (4 * (first + after)).next_power_of_two().max(PLAN_BYTES) as u64;
    let most = gpu.capabilities().max_binding_bytes.max(4 * (first + after) as u64);
    Ok(PlanBuffer { buffer: gpu.create_buffer("plan", bytes.min(most))?, pages_first: first, tables: None })
}

impl PlanWords {
    fn new(list: &WorkList, masks: &[u64], entries: &[u32]) -> Result<Self> {
        let items: &[u32] = bytemuck::cast_slice(&list.items);
        let merges: &[u32] = bytemuck::cast_slice(&list.merges);
        let merges_first = PLAN_HEADER + items.len();
        let masks_first = merges_first + merges.len();
        // The place of the page tables comes later.
        let mut head = vec![0, word(merges_first)?, word(list.partial_rows)?, word(masks_first)?];
        for (items, merges) in list.classes.iter().zip(&list.merge_classes) {
            head.extend([word(items.start)?, word(items.len())?, word(merges.start)?, word(merges.len())?]);
        }
        head.resize(PLAN_HEADER, 0);
        head.extend(items);
        head.extend(merges);
        head.extend(masks.iter().flat_map(|mask| [*mask as u32, (mask >> 32) as u32]));
        let mut tail = Vec::new();
        for stretch in &list.copied_entries {
            // A cache manager of an app's may have promised more than it gave.
            let Range { start, end } = *stretch;
            tail.extend(entries.get(start as usize..end as usize).ok_or_else(|| {
                ErrorKind::argument("page_table", format!("has {} entries, not {start}..{end}", entries.len()))
            })?);
        }
        word(head.len().saturating_add(entries.len()).saturating_add(tail.len()))?;
        Ok(Self { head, tail })
    }
}

fn word(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| ErrorKind::argument("plan", format!("{n} words")))
}
