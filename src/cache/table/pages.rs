//! Which pages of a cache are held, and by how many. Pure; a page costs O(1) to take, to share and to give back.

/// Hands out page ids `0..total`. A page that is out is held while its reference count is above 0; what becomes of it then
/// (free, or kept for its content) is for the owner of this to say.
#[derive(Debug, Clone)]
pub(crate) struct PageAllocator {
    /// Pages that may be out at once: all, or what a budget allows.
    limit: usize,
    total: usize,
    /// Holders of each page that was ever handed out; pages past the end are free and untouched, so that a large
    /// cache costs nothing until it is used.
    references: Vec<usize>,
    /// By slab, the lowest first, so that the others may empty.
    slabs: Vec<Slab>,
    slab_pages: usize,
    /// Pages with a holder, and those with more than one.
    held: usize,
    shared: usize,
    /// How many more pages can be taken before one is refused, whatever is free.
    #[cfg(test)]
    pub(crate) fail_after: Option<usize>,
}

/// Pages that lie in one buffer.
#[derive(Debug, Clone, Default)]
struct Slab {
    /// Pages handed out before and free now; the last given back goes out first, while it may still be in a GPU cache.
    released: Vec<u32>,
    /// Pages that are out, and those of them that have a holder.
    out: usize,
    held: usize,
}

impl PageAllocator {
    /// `total` free pages, `slab_pages` to a slab.
    pub(crate) fn new(total: u32, slab_pages: usize) -> Self {
        let slab_pages = slab_pages.clamp(1, total.max(1) as usize);
        Self {
            limit: total as usize,
            total: total as usize,
            references: Vec::new(),
            slabs: vec![Slab::default(); (total as usize).div_ceil(slab_pages).max(1)],
            slab_pages,
            held: 0,
            shared: 0,
            #[cfg(test)]
            fail_after: None,
        }
    }

    /// The same with all pages free, in slabs of so many, if they are others.
    pub(crate) fn emptied(&self, slab_pages: Option<usize>) -> Self {
        let fresh = Self::new(self.total as u32, slab_pages.unwrap_or(self.slab_pages)); // no truncation: from a u32
        Self { limit: self.limit, ..fresh }
    }

    /// Pages that may be out at once.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Changes the limit, at most to all there are. Whoever lowers it below what is out has to give pages back.
    pub(crate) fn set_limit(&mut self, limit: usize) {
        self.limit = limit.min(self.total);
    }

    /// Pages that are out.
    pub(crate) fn out(&self) -> usize {
        self.slabs.iter().map(|slab| slab.out).sum()
    }

    /// Pages that can be taken.
    pub(crate) fn free(&self) -> usize {
        self.limit.saturating_sub(self.out())
    }

    /// Slabs from the first to the last that has a page out; with `held`, a page with a holder.
    pub(crate) fn slabs_used(&self, held: bool) -> usize {
        let used = |slab: &Slab| if held { slab.held > 0 } else { slab.out > 0 };
        self.slabs.iter().rposition(used).map_or(0, |last| last + 1)
    }

    /// Pages that are out or were, in the slabs from `slab` on.
    pub(crate) fn known_from(&self, slab: usize) -> std::ops::Range<u32> {
        let known = self.references.len();
        (slab * self.slab_pages).min(known) as u32..known as u32 // no truncation: ids are u32
    }

    /// No page that is out has a higher number.
    pub(crate) fn most_page(&self) -> u32 {
        let pages = (self.slabs_used(false) * self.slab_pages).min(self.references.len());
        pages.saturating_sub(1) as u32 // no truncation: ids are u32
    }

    fn slab(&mut self, page: u32) -> &mut Slab {
        &mut self.slabs[page as usize / self.slab_pages]
    }

    /// Pages with a holder.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Pages with more than one holder.
    pub(crate) fn shared(&self) -> usize {
        self.shared
    }

    /// Holders of a page.
    pub(crate) fn holders(&self, page: u32) -> usize {
        self.references.get(page as usize).copied().unwrap_or(0)
    }

    /// A page that was free, with one holder; none if none is free.
    pub(crate) fn take(&mut self) -> Option<u32> {
        if self.free() == 0 {
            return None;
        }
        #[cfg(test)]
        if let Some(left) = &mut self.fail_after {
            *left = left.checked_sub(1)?;
        }
        let page = self.slabs.iter_mut().find_map(|slab| slab.released.pop()).unwrap_or_else(|| {
            self.references.push(0);
            (self.references.len() - 1) as u32 // no truncation: below total, which came from a u32
        });
        self.references[page as usize] = 1;
        self.held += 1;
        let slab = self.slab(page);
        (slab.out, slab.held) = (slab.out + 1, slab.held + 1);
        Some(page)
    }

    /// Adds a holder to a page that is out. Returns how many it had.
    pub(crate) fn retain(&mut self, page: u32) -> usize {
        let Some(references) = self.references.get_mut(page as usize) else { return 0 };
        *references += 1;
        let before = *references - 1;
        match before {
            0 => {
                self.held += 1;
                self.slab(page).held += 1;
            }
            1 => self.shared += 1,
            _ => {}
        }
        before
    }

    /// Takes a holder from a page. Returns how many are left, or none, and nothing done, if no one held it.
    #[must_use]
    pub(crate) fn release(&mut self, page: u32) -> Option<usize> {
        let references = self.references.get_mut(page as usize).filter(|references| **references > 0)?;
        *references -= 1;
        let left = *references;
        match left {
            0 => {
                self.held -= 1;
                self.slab(page).held -= 1;
            }
            1 => self.shared -= 1,
            _ => {}
        }
        Some(left)
    }

    /// Makes a page free that is out and has no holder.
    pub(crate) fn give_back(&mut self, page: u32) {
        debug_assert!(self.holders(page) == 0 && (page as usize) < self.references.len(), "page {page} is held");
        let slab = self.slab(page);
        slab.released.push(page);
        slab.out -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_go_out_once() {
        let mut pages = PageAllocator::new(3, 3);
        let mut out: Vec<u32> = (0..3).map(|_| pages.take().unwrap()).collect();
        assert_eq!((pages.take(), pages.free(), pages.out(), pages.held()), (None, 0, 3, 3));
        out.sort_unstable();
        assert_eq!(out, [0, 1, 2]);
    }

    #[test]
    fn the_last_holder_is_told() {
        let mut pages = PageAllocator::new(2, 2);
        assert_eq!(pages.release(0), None, "never handed out");
        let page = pages.take().unwrap();
        assert_eq!((pages.retain(page), pages.retain(page), pages.shared(), pages.holders(page)), (1, 2, 1, 3));
        assert_eq!((pages.release(page), pages.shared()), (Some(2), 1));
        assert_eq!((pages.release(page), pages.shared()), (Some(1), 0));
        assert_eq!((pages.release(page), pages.held(), pages.free()), (Some(0), 0, 1));
        assert_eq!(pages.release(page), None);
        assert_eq!((pages.retain(page), pages.held(), pages.free()), (0, 1, 1), "held again before it was free");
        assert_eq!(pages.release(page), Some(0));
        pages.give_back(page);
        assert_eq!((pages.free(), pages.take()), (2, Some(page)));
    }

    #[test]
    fn a_limit_holds_pages_back() {
        let mut pages = PageAllocator::new(4, 4);
        pages.set_limit(2);
        assert!(pages.take().is_some() && pages.take().is_some() && pages.take().is_none());
        pages.set_limit(usize::MAX);
        assert_eq!((pages.limit(), pages.free()), (4, 2));
        pages.set_limit(1);
        assert_eq!((pages.free(), pages.take()), (0, None));
    }

    #[test]
    fn low_slabs_fill_first_and_high_ones_empty() {
        let mut pages = PageAllocator::new(5, 2);
        let all: Vec<u32> = (0..5).map(|_| pages.take().unwrap()).collect();
        assert_eq!((all.as_slice(), pages.slabs_used(true)), (&[0, 1, 2, 3, 4][..], 3));
        for page in [1, 4, 0, 3] {
            assert_eq!(pages.release(page), Some(0));
        }
        assert_eq!((pages.slabs_used(true), pages.slabs_used(false), pages.known_from(1)), (2, 3, 2..5));
        [1, 4, 0, 3].into_iter().for_each(|page| pages.give_back(page));
        assert_eq!((pages.slabs_used(false), pages.out()), (2, 1));
        // Of the first slab the one given back last.
        assert_eq!(
            [pages.take(), pages.take(), pages.take(), pages.take(), pages.take()],
            [Some(0), Some(1), Some(3), Some(4), None]
        );
        assert_eq!(pages.retain(2), 1);
        assert_eq!((pages.release(2), pages.release(2), pages.slabs_used(true)), (Some(1), Some(0), 3));
    }

    #[test]
    fn the_largest_cache_costs_nothing_until_used() {
        let mut pages = PageAllocator::new(u32::MAX, usize::MAX);
        assert!(pages.take().is_some() && pages.take().is_some());
        assert_eq!((pages.free(), pages.references.len()), (u32::MAX as usize - 2, 2));
    }
}
