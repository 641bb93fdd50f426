//! One sequence: its pages, its lengths, and what is known of its tokens. Pure.

use super::prefix::Parent;
use super::store::Store;
use std::ops::{Bound, Deref, Range, RangeBounds};

/// Holds exactly the pages of `len + reserved` tokens, but for `freed` of them after the first `kept`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sequence {
    pub(crate) pages: PageList,
    /// Pages given back since no later token sees them.
    pub(crate) freed: usize,
    /// Pages before those that stay whatever the window, as far as there are any.
    pub(crate) kept: usize,
    /// Tokens that a token sees, its own included; 0 for all. A sequence with a window is never known: whoever holds a
    /// page of the index holds those before it.
    pub(crate) window: usize,
    /// Committed tokens, then those of the step under way.
    pub(crate) len: usize,
    pub(crate) reserved: usize,
    /// The table's generation when it last got tokens.
    pub(crate) committed_at: u64,
    /// While every committed token is known; then every full page of them is in the index.
    pub(crate) known: Option<Known>,
}

/// Whose prefixes a sequence shares, and its tokens as far as they are not in the index.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) salt: u64,
    /// Tokens of the last page, if that is not full.
    pub(crate) tail: Vec<u32>,
}

/// Page ids of a sequence, and how many of the first are as its [`Region`](crate::kv::tables::Region) has them.
#[derive(Debug, Clone, Default)]
pub(crate) struct PageList {
    pages: Vec<u32>,
    same: usize,
}

impl PageList {
    /// Pages that no region has.
    pub(crate) fn new(pages: Vec<u32>) -> Self {
        PageList { pages, same: 0 }
    }

    pub(crate) fn set(&mut self, index: usize, page: u32) {
        if self.pages[index] != page {
            self.pages[index] = page;
            self.same = self.same.min(index);
        }
    }

    pub(crate) fn extend(&mut self, pages: impl Iterator<Item = u32>) {
        self.pages.extend(pages);
    }

    /// Takes some out.
    pub(crate) fn cut(&mut self, range: impl RangeBounds<usize>) -> std::vec::Drain<'_, u32> {
        let first = match range.start_bound() {
            Bound::Included(first) => *first,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => 0,
        };
        self.same = self.same.min(first);
        self.pages.drain(range)
    }

    /// How many of the first are in the region, which is about to get the others.
    pub(crate) fn written(&mut self) -> usize {
        std::mem::replace(&mut self.same, self.pages.len())
    }
}

impl Deref for PageList {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        &self.pages
    }
}

impl Sequence {
    /// Committed and reserved tokens.
    pub(crate) fn tokens(&self) -> usize {
        self.len + self.reserved
    }

    /// Pages of so many tokens, as far as they are held.
    pub(crate) fn pages_of(&self, tokens: usize, page_size: usize) -> usize {
        let all = tokens.div_ceil(page_size);
        all.saturating_sub(self.freed).max(all.min(self.kept))
    }

    /// Pages past the kept ones that no token from `len` on sees, over all of the sequence.
    pub(crate) fn unseen(&self, len: usize, page_size: usize) -> usize {
        if self.window == 0 {
            return 0;
        }
        ((len + 1).saturating_sub(self.window) / page_size).saturating_sub(self.kept)
    }

    /// Whether the sequence can be cut to `len` tokens: the next one sees none that are gone.
    pub(crate) fn can_end_at(&self, len: usize, page_size: usize) -> bool {
        len <= self.kept * page_size || self.unseen(len, page_size) >= self.freed
    }

    /// The tokens that are gone, whole pages of them.
    pub(crate) fn gap(&self, page_size: usize) -> Range<usize> {
        let first = if self.freed > 0 { self.kept * page_size } else { 0 };
        first..first + self.freed * page_size
    }

    /// The page of committed tokens that the next token goes to, by its place among the pages: none where a new page
    /// begins.
    pub(crate) fn tail(&self, page_size: usize) -> Option<usize> {
        (!self.len.is_multiple_of(page_size)).then(|| self.len / page_size - self.freed)
    }

    /// Commits exactly the first `len` of the sequence's tokens, and gives back the pages of the others.
    pub(crate) fn keep(&mut self, len: usize, page_size: usize, store: &mut Store) {
        self.len = len;
        self.reserved = 0;
        for page in self.pages.cut(self.pages_of(len, page_size)..) {
            store.release(page);
        }
        if len <= self.kept * page_size {
            self.freed = 0; // what was past the gap is gone, too
        }
    }

    /// Commits the first `n` reserved tokens, and says what they are if that is known.
    pub(crate) fn commit(&mut self, n: usize, tokens: Option<&[u32]>, page_size: usize, store: &mut Store) {
        self.keep(self.len + n, page_size, store);
        if n == 0 {
            return;
        }
        // Not all pages: that of the last token is seen by the next.
        let unseen = self.unseen(self.len, page_size);
        let first = self.kept.min(self.pages.len());
        for page in self.pages.cut(first..first + unseen.saturating_sub(self.freed)) {
            store.release(page);
        }
        self.freed = self.freed.max(unseen);
        let (Some(known), Some(mut tokens)) = (&mut self.known, tokens) else {
            self.known = None;
            return;
        };
        while !tokens.is_empty() {
            let (now, later) = tokens.split_at(tokens.len().min(page_size - known.tail.len()));
            known.tail.extend_from_slice(now);
            tokens = later;
            if known.tail.len() < page_size {
                break;
            }
            let full = (self.len - tokens.len()) / page_size - 1;
            let parent = match full.checked_sub(1) {
                Some(before) => Parent::Page(self.pages[before]),
                None => Parent::Salt(known.salt),
            };
            self.pages.set(full, store.publish(parent, &known.tail, self.pages[full]));
            known.tail.clear();
        }
    }

    /// Cuts the sequence to its first `len` tokens, at most those committed.
    pub(crate) fn truncate(&mut self, len: usize, page_size: usize, store: &mut Store) {
        if let Some(known) = &mut self.known {
            match (len + known.tail.len()).checked_sub(self.len) {
                Some(left) => known.tail.truncate(left),
                None => {
                    let tail = self.pages.get(len / page_size).and_then(|page| store.index().tokens(*page));
                    match tail {
                        Some(tokens) => known.tail = tokens[..len % page_size].to_vec(),
                        None => self.known = None,
                    }
                }
            }
        }
        self.keep(len, page_size, store);
    }
}
