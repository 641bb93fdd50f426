//! Which pages have a place in the pools of layers with a window, of fewer pages than there are: those that a window sees, and others as
//! long as nobody needs their place. Pure.
//!
//! Sequences, forks, prefixes and cuts know pages by their numbers in the table alone. Here each number may have a place; what has lost
//! its place has lost its rows in those layers, and who would see it is refused.

use super::table::sequence::Sequence;
use super::{PageCopy, SeqId, SeqTable};
use crate::error::{ErrorKind, Result};
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

/// Tokens before the window that keep their places as long as sequences are no more than there is room for: as many may be cut off again.
pub(crate) const CUT_BACK: usize = 64;

/// The places of pages.
#[derive(Debug, Clone)]
pub(crate) struct WindowPages {
    /// Tokens that a token sees, its own included, in the layers with the longest window.
    window: usize,
    /// Of a page its place, and when it was last asked for.
    places: HashMap<u32, (u32, u64)>,
    free: Vec<u32>,
    clock: u64,
}

/// What a reservation needs of the places.
pub(super) struct PlacesWanted<'a> {
    /// Sequences, and how many tokens they have beyond those that are committed.
    pub(super) sequences: &'a [(SeqId, usize)],
    /// Pages that the table wants copied.
    pub(super) copies: &'a [PageCopy],
    /// Whether the tokens are known at once, so that those before the last window need no place.
    pub(super) at_once: bool,
}

impl WindowPages {
    pub(super) fn new(window: usize, places: usize) -> Self {
        let free = (0..places as u32).rev().collect(); // no truncation: not more than the table has pages
        WindowPages { window, places: HashMap::new(), free, clock: 0 }
    }

    /// The place of a page.
    pub(super) fn place(&self, page: u32) -> Option<u32> {
        self.places.get(&page).map(|(place, _)| *place)
    }

    /// Places that have a page.
    pub(super) fn used(&self) -> usize {
        self.places.len()
    }

    /// The first page that the next token after `len` others sees, and those before it that may be cut back to, if `more`.
    fn first(&self, len: usize, page_size: usize, more: bool) -> usize {
        let more = if more { CUT_BACK } else { 0 };
        (len + 1).saturating_sub(self.window + more) / page_size
    }

    /// Gives the pages of these sequences places: those that the windows of their next tokens see have them, new ones get them. Returns
    /// places to be copied.
    ///
    /// Errors: [`ErrorKind::CacheFull`] where there are too few, [`ErrorKind::Argument`] where a page has lost its; then nothing is done.
    pub(super) fn reserve(&mut self, table: &SeqTable, wanted: PlacesWanted<'_>) -> Result<Vec<PageCopy>> {
        let page_size = table.page_size;
        let mut new: Vec<(u32, Option<u32>)> = Vec::new();
        for &(id, tokens) in wanted.sequences {
            let Sequence { len, pages, .. } = table.sequence(id)?;
            let seen_from = if wanted.at_once { len + tokens } else { *len };
            for at in self.first(seen_from, page_size, wanted.at_once)..pages.len() {
                let page = pages[at];
                let copied = wanted.copies.iter().find(|copy| copy.target == page).map(|copy| copy.source);
                let there = self.place(page).is_some();
                match copied {
                    Some(source) if self.place(source).is_none() => return Err(self.lost(id, at * page_size)),
                    Some(source) => new.push((page, Some(source))),
                    None if there => {}
                    None if at * page_size < *len => return Err(self.lost(id, at * page_size)),
                    None => new.push((page, None)),
                }
            }
        }
        let missing = new.iter().filter(|(page, _)| self.place(*page).is_none()).count();
        if missing > self.free.len() {
            self.make_room(table, &wanted, missing)?;
        }
        self.clock += 1;
        let mut copies = Vec::new();
        for (page, source) in new {
            let place = match self.places.get(&page) {
                Some((place, _)) => Some(*place),
                None => self.free.pop(),
            };
            let Some(place) = place else { continue }; // counted above
            self.places.insert(page, (place, self.clock));
            let source = source.and_then(|source| self.place(source));
            copies.extend(source.map(|source| PageCopy { source, target: place }));
        }
        for &(id, tokens) in wanted.sequences {
            let Sequence { len, pages, .. } = table.sequence(id)?;
            if wanted.at_once {
                // New pages that get no rows here: a place that such a page had has rows of what it was before.
                let seen = self.first(len + tokens, page_size, true);
                for page in pages.get(len.div_ceil(page_size)..seen).unwrap_or_default() {
                    self.free.extend(self.places.remove(page).map(|(place, _)| place));
                }
            }
            for page in &pages[self.first(*len, page_size, false).min(pages.len())..] {
                self.places.get_mut(page).into_iter().for_each(|(_, asked)| *asked = self.clock);
            }
        }
        Ok(copies)
    }

    /// Takes places from pages, until so many are free: first from those of no sequence, then from those that may be cut back to; in both
    /// cases those that were asked for longest ago.
    ///
    /// Errors: [`ErrorKind::CacheFull`], and nothing is done.
    fn make_room(&mut self, table: &SeqTable, wanted: &PlacesWanted<'_>, needed: usize) -> Result<()> {
        let [seen, wished] = [false, true].map(|more| self.held(table, wanted, more));
        let spare = self.places.iter().filter(|(page, _)| !seen.contains(page));
        // Pages that hold nothing any more go before all others.
        let is_out = |page: u32| table.store.pages.holders(page) > 0 || table.store.index().contains(page);
        let age = |page: u32, asked: u64| (wished.contains(&page), is_out(page), asked);
        let mut spare: Vec<_> = spare.map(|(page, (_, asked))| (age(*page, *asked), *page)).collect();
        let (free, more) = (self.free.len(), needed - self.free.len());
        if spare.len() < more {
            return Err(ErrorKind::CacheFull { needed, free: free + spare.len() }.into());
        }
        spare.sort_unstable();
        for (_, page) in spare.into_iter().take(more) {
            self.free.extend(self.places.remove(&page).map(|(place, _)| place));
        }
        Ok(())
    }

    /// Of all sequences the pages that the next tokens see and those of reserved tokens, of pins the last ones, and with `more` those that
    /// may be cut back to.
    fn held(&self, table: &SeqTable, wanted: &PlacesWanted<'_>, more: bool) -> BTreeSet<u32> {
        let mut held = BTreeSet::new();
        held.extend(wanted.copies.iter().map(|copy| copy.source));
        for id in table.ids() {
            let Ok(Sequence { len, pages, .. }) = table.sequence(id) else { continue };
            let at_once = wanted.sequences.iter().filter(|(other, _)| wanted.at_once && *other == id);
            let len = len + at_once.map(|(_, tokens)| tokens).sum::<usize>();
            held.extend(&pages[self.first(len, table.page_size, more).min(pages.len())..]);
        }
        for pages in table.pins.values() {
            let first = self.first(pages.len() * table.page_size, table.page_size, false);
            held.extend(&pages[first.min(pages.len())..]);
        }
        held
    }

    /// Whether the next token of a sequence of `len` tokens in these pages sees what is there.
    fn sees_all(&self, pages: &[u32], len: usize, page_size: usize) -> bool {
        let seen = self.first(len, page_size, false)..len.div_ceil(page_size);
        pages.get(seen).is_some_and(|pages| pages.iter().all(|page| self.place(*page).is_some()))
    }

    /// Errors: [`ErrorKind::Argument`] where a sequence cannot end at `len`, since its next token would see what is gone.
    pub(super) fn check_cut(&self, table: &SeqTable, id: SeqId, len: usize) -> Result<()> {
        let sequence = table.sequence(id)?;
        if len > sequence.len || self.sees_all(&sequence.pages, len, table.page_size) {
            return Ok(()); // a length past the sequence's is refused by the table
        }
        let why = format!(
            "{len} of {} tokens: layers with a window of {} tokens have given up what the next one would see",
            sequence.len, self.window
        );
        Err(ErrorKind::argument("len", why))
    }

    /// How many tokens of these pages, all of them full, a new sequence can go on from.
    pub(super) fn usable(&self, pages: &[u32], page_size: usize) -> usize {
        let usable = |count: &usize| self.sees_all(pages, count * page_size, page_size);
        (0..=pages.len()).rev().find(usable).unwrap_or(0) * page_size
    }

    /// A page of a sequence was found to hold the same as another, which takes its place in the table: if that one has lost its own here,
    /// it gets that of the first.
    pub(super) fn joined(&mut self, table: &SeqTable, from: u32, to: u32) {
        if self.place(to).is_none() && table.store.pages.holders(from) == 0 {
            if let Some(place) = self.places.remove(&from) {
                self.places.insert(to, place);
            }
        }
    }

    /// Pages of a sequence that its tokens from `len` on see, and the tokens before them.
    ///
    /// Errors: [`ErrorKind::Argument`] where one has lost its place.
    pub(super) fn seen(&self, table: &SeqTable, id: SeqId) -> Result<(usize, Vec<u32>)> {
        let (Sequence { len, pages, .. }, page_size) = (table.sequence(id)?, table.page_size);
        let first = self.first(*len, page_size, false).min(pages.len());
        let places = pages[first..].iter().enumerate();
        let places = places.map(|(at, page)| self.place(*page).ok_or_else(|| self.lost(id, (first + at) * page_size)));
        Ok((first * page_size, places.collect::<Result<_>>()?))
    }

    fn lost(&self, id: SeqId, token: usize) -> crate::error::Error {
        let window = self.window;
        let why = format!("layers with a window of {window} tokens no longer hold token {token} of sequence {id}");
        ErrorKind::argument("sequences", why)
    }

    /// The places of all pages of a sequence; `absent` for those that have none.
    pub(super) fn all(&self, pages: &[u32], absent: u32) -> Vec<u32> {
        pages.iter().map(|page| self.place(*page).unwrap_or(absent)).collect()
    }

    /// Places for so many sequences that get tokens in steps of `chunk`: of each those of its window, and of the window that it had before a
    /// call of several steps, to which it goes back if that fails; or those that it may be cut back to.
    pub(crate) fn needed(window: usize, sequences: usize, chunk: usize, page_size: usize) -> usize {
        // Two windows are cut at both ends, and a page that is shared is copied.
        let one = window.saturating_mul(2).max(window.saturating_add(CUT_BACK)).div_ceil(page_size) + 4;
        one.saturating_mul(sequences).saturating_add(chunk.div_ceil(page_size))
    }

    /// The pages of these numbers in a sequence.
    pub(super) fn between(pages: &[u32], tokens: Range<usize>, page_size: usize) -> Vec<u32> {
        let range = tokens.start / page_size..tokens.end.div_ceil(page_size).min(pages.len());
        pages.get(range).unwrap_or_default().to_vec()
    }
}

#[cfg(test)]
#[path = "window_pages_tests.rs"]
mod tests;
