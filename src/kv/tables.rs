//! The page tables of many sequences in one array that a device keeps a copy of, so that a step uploads what has changed
//! and no more. Pure.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Page tables as a device has them: each sequence's in a region of its own, which holds still while the table grows within
/// it. What was written is remembered for a while, by number, for whoever has an older copy.
pub struct PageTables {
    words: Vec<u32>,
    /// By log2 of the size: first words of regions that no one has.
    free: [Vec<u32>; 32],
    log: VecDeque<Range<u32>>,
    /// Writes that the log no longer has.
    forgotten: u64,
    id: u64,
}

/// Where a sequence's table lies.
#[derive(Debug, Clone, Copy, Default)]
pub struct Region {
    first: u32,
    /// Entries that fit, 0 for no region.
    size: u32,
}

impl Region {
    /// Where the table begins in [`PageTables::words`]: what [`SeqView::page_table_first`](super::view::SeqView) is.
    pub fn first(&self) -> u32 {
        self.first
    }
}

/// Writes that are remembered.
const LOG: usize = 1024;
/// Entries of the smallest region.
const LEAST: u32 = 16;
/// Stretches that are closer than this are one: an upload costs as much as so many entries.
const APART: u32 = 512;

static ARRAYS: AtomicU64 = AtomicU64::new(1);

impl Default for PageTables {
    fn default() -> Self {
        let id = ARRAYS.fetch_add(1, Ordering::Relaxed);
        Self { words: Vec::new(), free: Default::default(), log: VecDeque::new(), forgotten: 0, id }
    }
}

/// What is written, without which array it is and who has seen it.
impl fmt::Debug for PageTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageTables").field("words", &self.words).field("free", &self.free).finish_non_exhaustive()
    }
}

/// A clone is an array of its own: what is written to one is not in the other.
impl Clone for PageTables {
    fn clone(&self) -> Self {
        Self { words: self.words.clone(), free: self.free.clone(), forgotten: 1, ..Self::default() }
    }
}

impl PageTables {
    /// Which array of the process this is.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// All entries, those of no sequence too.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// How often something was written.
    pub(crate) fn version(&self) -> u64 {
        self.forgotten + self.log.len() as u64
    }

    /// What a copy of that version lacks, in order and apart from each other: what was written since, or all of it where that
    /// is forgotten.
    pub(crate) fn missing(&self, version: u64) -> Vec<Range<usize>> {
        let Some(skip) = version.checked_sub(self.forgotten) else { return self.all() };
        let mut parts: Vec<Range<u32>> = self.log.iter().skip(skip as usize).cloned().collect();
        parts.sort_unstable_by_key(|part| part.start);
        let mut joined: Vec<Range<usize>> = Vec::new();
        for part in parts {
            let part = part.start as usize..part.end as usize;
            match joined.last_mut().filter(|last| part.start <= last.end + APART as usize) {
                Some(last) => last.end = last.end.max(part.end),
                None => joined.push(part),
            }
        }
        joined
    }

    /// What a new copy lacks.
    pub(crate) fn all(&self) -> Vec<Range<usize>> {
        std::iter::once(0..self.words.len()).collect()
    }

    /// Makes a region hold `table`, of which the first `same` entries are in it already. It moves where it is too small.
    ///
    /// None where the array would pass 2^31 entries, with nothing done, or for a region of another array.
    #[must_use]
    pub fn write(&mut self, region: &mut Region, table: &[u32], same: usize) -> Option<()> {
        let mut same = same.min(table.len());
        if table.len() > region.size as usize {
            let moved = self.take(table.len())?;
            self.give_back(std::mem::replace(region, moved));
            same = 0;
        }
        if same < table.len() {
            let first = region.first as usize;
            let words = self.words.get_mut(first + same..first + table.len())?;
            words.copy_from_slice(&table[same..]);
            // no truncation: the array has fewer than 2^31 entries
            self.note((first + same) as u32..(first + table.len()) as u32);
        }
        Some(())
    }

    /// Whether a region holds this table.
    pub(crate) fn holds(&self, region: Region, table: &[u32]) -> bool {
        table.is_empty() || self.words.get(region.first as usize..).is_some_and(|words| words.starts_with(table))
    }

    /// Gives up a region.
    pub fn give_back(&mut self, region: Region) {
        if region.size > 0 {
            self.free[region.size.ilog2() as usize].push(region.first);
        }
    }

    /// A region for so many entries and some more.
    fn take(&mut self, entries: usize) -> Option<Region> {
        let size = u32::try_from(entries).ok().filter(|n| *n < 1 << 30)?.max(LEAST).next_power_of_two();
        let first = match self.free[size.ilog2() as usize].pop() {
            Some(first) => first,
            None => {
                let first = u32::try_from(self.words.len()).ok().filter(|first| first + size <= 1 << 31)?;
                self.words.resize(self.words.len() + size as usize, 0);
                first
            }
        };
        Some(Region { first, size })
    }

    fn note(&mut self, part: Range<u32>) {
        if self.log.len() == LOG {
            self.log.pop_front();
            self.forgotten += 1;
        }
        self.log.push_back(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device's copy, kept up to date as `Decode` does.
    #[derive(Default)]
    struct Copy {
        words: Vec<u32>,
        version: u64,
        uploaded: usize,
    }

    impl Copy {
        fn update(&mut self, tables: &PageTables) {
            self.words.resize(tables.words().len(), u32::MAX);
            for part in tables.missing(self.version) {
                self.uploaded += part.len();
                self.words[part.clone()].copy_from_slice(&tables.words()[part]);
            }
            self.version = tables.version();
        }
    }

    /// Random growth, cuts, rewritten entries, removals; two copies that are updated now and then: each sequence's table is in
    /// its region, in the array and in both copies.
    #[test]
    fn copies_follow() {
        let mut state = 1u64;
        let mut draw = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        let mut tables = PageTables::default();
        let mut sequences: Vec<(Region, Vec<u32>)> = vec![(Region::default(), Vec::new()); 40];
        let (mut near, mut far) = (Copy::default(), Copy::default());
        for step in 0..20_000u32 {
            let (region, table) = &mut sequences[draw(40) as usize];
            let same = match draw(10) {
                0 => {
                    tables.give_back(std::mem::take(region));
                    table.clear();
                    0
                }
                1 => {
                    table.truncate(draw(table.len() as u64 + 1) as usize);
                    table.len()
                }
                2 if !table.is_empty() => {
                    let at = draw(table.len() as u64) as usize;
                    table[at] = step;
                    at
                }
                _ => {
                    let same = table.len();
                    table.extend((0..draw(30) as u32).map(|i| step + i));
                    same
                }
            };
            tables.write(region, table, same).unwrap();
            if draw(5) == 0 {
                near.update(&tables);
                for (region, table) in &sequences {
                    let place = region.first as usize..region.first as usize + table.len();
                    assert_eq!((&tables.words()[place.clone()], &near.words[place]), (&table[..], &table[..]));
                }
            }
            if draw(1500) == 0 {
                far.update(&tables);
                let place = |region: &Region, table: &[u32]| region.first as usize..region.first as usize + table.len();
                assert!(sequences.iter().all(|(region, table)| far.words[place(region, table)] == table[..]));
            }
        }
        assert!(tables.forgotten > 0 && near.uploaded > 0);
        // Regions that were given back serve again: 40 tables of at most some thousand entries.
        assert!(tables.words().len() < 1 << 20, "{} entries", tables.words().len());
    }

    #[test]
    fn a_step_uploads_what_it_added() {
        let mut tables = PageTables::default();
        let mut regions = [Region::default(); 3];
        let mut table: Vec<u32> = (0..5000).collect();
        for region in &mut regions {
            tables.write(region, &table, 0).unwrap();
        }
        let version = tables.version();
        assert!(tables.missing(version).is_empty());
        table.push(7);
        for region in &mut regions {
            tables.write(region, &table, 5000).unwrap();
        }
        let starts = regions.map(|region| region.first as usize);
        assert_eq!(tables.missing(version), starts.map(|first| first + 5000..first + 5001));
        // Near ones are one stretch.
        let version = tables.version();
        tables.write(&mut regions[1], &table, 4990).unwrap();
        tables.write(&mut regions[1], &table, 4700).unwrap();
        let first = regions[1].first as usize;
        let near = tables.missing(version);
        assert_eq!((near.len(), &near[0]), (1, &(first + 4700..first + 5001)));
        // What the log no longer has is all.
        for _ in 0..LOG {
            tables.write(&mut regions[0], &table, 5000).unwrap();
        }
        assert_eq!((tables.missing(version), tables.missing(0)), (tables.all(), tables.all()));
        assert!(tables.missing(tables.version() - 1) != tables.all());
        let clone = tables.clone();
        assert!(clone.id() != tables.id() && clone.missing(0) == clone.all() && clone.words() == tables.words());
    }

    #[test]
    fn too_many_entries_are_refused() {
        let mut tables = PageTables::default();
        assert!(tables.take(1 << 30).is_none() && tables.take(usize::MAX).is_none() && tables.words().is_empty());
    }
}
