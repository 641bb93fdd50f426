//! Pages and what is known of their content: a page is free, held, or kept for its content until it is evicted. Pure.

use super::pages::PageAllocator;
use super::prefix::{Parent, PrefixIndex};

#[derive(Debug, Clone)]
pub(crate) struct Store {
    pub(crate) pages: PageAllocator,
    index: PrefixIndex,
    /// Pages evicted so far.
    evictions: u64,
}

impl Store {
    pub(crate) fn new(total: u32, slab_pages: usize) -> Self {
        Self { pages: PageAllocator::new(total, slab_pages), index: PrefixIndex::default(), evictions: 0 }
    }

    /// The same without content and holders; in slabs of so many pages, if they are others.
    pub(crate) fn emptied(&self, slab_pages: Option<usize>) -> Self {
        Self { pages: self.pages.emptied(slab_pages), index: PrefixIndex::default(), evictions: self.evictions }
    }

    pub(crate) fn index(&self) -> &PrefixIndex {
        &self.index
    }

    pub(crate) fn evictions(&self) -> u64 {
        self.evictions
    }

    /// Pages that can be had: free ones, and those that would be evicted.
    pub(crate) fn available(&self) -> usize {
        self.pages.free() + self.index.unheld()
    }

    /// `count` pages, each with one holder, evicted ones if no others are free; or none, and no page held.
    #[must_use]
    pub(crate) fn take(&mut self, count: usize) -> Option<Vec<u32>> {
        // What is known to fail evicts nothing.
        if count > self.available() {
            return None;
        }
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            if self.pages.free() == 0 {
                self.evict();
            }
            match self.pages.take() {
                Some(page) => taken.push(page),
                None => {
                    taken.into_iter().rev().for_each(|page| self.release(page));
                    return None;
                }
            }
        }
        Some(taken)
    }

    /// Frees the page that is evicted next, if there is one.
    fn evict(&mut self) -> bool {
        let Some(page) = self.index.pop_oldest() else { return false };
        self.pages.give_back(page);
        self.evictions += 1;
        true
    }

    /// Lets at most `limit` pages be out, evicting what is too much. False, and nothing done, if more are held.
    #[must_use]
    pub(crate) fn set_limit(&mut self, limit: usize) -> bool {
        if self.pages.held() > limit {
            return false;
        }
        self.pages.set_limit(limit);
        while self.pages.out() > limit && self.evict() {}
        true
    }

    /// Adds a holder to a page that is held or kept.
    pub(crate) fn retain(&mut self, page: u32) {
        if self.pages.retain(page) == 0 {
            self.index.hold(page);
        }
    }

    /// Takes a holder from a page; from its last it becomes free, or kept if its content is known.
    pub(crate) fn release(&mut self, page: u32) {
        let left = self.pages.release(page);
        debug_assert!(left.is_some(), "page {page} of a sequence was not held");
        if left == Some(0) {
            match self.index.contains(page) {
                true => self.index.unhold(page),
                false => self.pages.give_back(page),
            }
        }
    }

    /// Makes a page's content known; it is held. Returns the page to be held instead, if one is known to hold the same:
    /// the caller's hold is moved to it.
    pub(crate) fn publish(&mut self, parent: Parent, tokens: &[u32], page: u32) -> u32 {
        match self.index.find(parent, tokens) {
            Some(same) => {
                self.retain(same);
                self.release(page);
                same
            }
            None => {
                self.index.insert(parent, tokens, page);
                page
            }
        }
    }

    /// Forgets the content of a page that its only holder is going to write to, and what followed it, which no one holds.
    pub(crate) fn forget(&mut self, page: u32) {
        if self.index.contains(page) {
            for page in self.index.remove(page) {
                debug_assert!(self.pages.holders(page) == 0, "page {page} is held without the one before it");
                self.pages.give_back(page);
            }
        }
    }

    /// Frees those of a sequence's last pages, in its order, that are kept for their content and held by no one.
    pub(crate) fn unpublish(&mut self, pages: &[u32]) {
        for &page in pages.iter().rev() {
            if self.pages.holders(page) == 0 && self.index.contains(page) {
                // What others had behind it is held by no one either.
                for page in self.index.remove(page).into_iter().chain([page]) {
                    self.pages.give_back(page);
                }
            }
        }
    }

    /// Evicts what is kept in slabs that hold nothing else, behind the last that does. Returns the slabs that are left.
    pub(crate) fn vacate_slabs(&mut self) -> usize {
        let left = self.pages.slabs_used(true);
        for page in self.pages.known_from(left) {
            if self.index.contains(page) {
                // What follows it is held by no one either, wherever it lies.
                for page in self.index.remove(page).into_iter().chain([page]) {
                    self.pages.give_back(page);
                    self.evictions += 1;
                }
            }
        }
        left
    }

    /// Frees all that is kept.
    pub(crate) fn drop_kept(&mut self) {
        while let Some(page) = self.index.pop_oldest() {
            self.pages.give_back(page);
        }
    }
}
