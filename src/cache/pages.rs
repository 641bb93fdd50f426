//! Which pages of a cache are held, and how often. Pure; a page costs O(1) to take and to give back.

/// Hands out page ids `0..total`. A page is held while its reference count is above 0.
#[derive(Debug, Clone)]
pub(super) struct Pages {
    total: usize,
    /// Holders of each page that was ever handed out; pages past the end are free and untouched, so that a large
    /// cache costs nothing until it is used.
    references: Vec<u32>,
    /// Pages handed out before and free now; the last given back goes out first, while it may still be in a GPU cache.
    released: Vec<u32>,
}

impl Pages {
    /// `total` free pages.
    pub(super) fn new(total: u32) -> Self {
        Self { total: total as usize, references: Vec::new(), released: Vec::new() }
    }

    pub(super) fn total(&self) -> usize {
        self.total
    }

    pub(super) fn free(&self) -> usize {
        self.total - self.references.len() + self.released.len()
    }

    /// Appends `count` pages to `pages`, each with one holder; or, if fewer are free, does nothing and says false.
    #[must_use]
    pub(super) fn alloc(&mut self, count: usize, pages: &mut Vec<u32>) -> bool {
        if count > self.free() {
            return false;
        }
        for _ in 0..count {
            let page = self.released.pop().unwrap_or_else(|| {
                self.references.push(0);
                (self.references.len() - 1) as u32 // no truncation: below total, which came from a u32
            });
            self.references[page as usize] = 1;
            pages.push(page);
        }
        true
    }

    /// Takes one holder from a page; the last makes it free. False, and nothing done, if no one holds it.
    #[must_use]
    pub(super) fn release(&mut self, page: u32) -> bool {
        let Some(references) = self.references.get_mut(page as usize).filter(|references| **references > 0) else {
            return false;
        };
        *references -= 1;
        if *references == 0 {
            self.released.push(page);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alloc_is_all_or_nothing() {
        let mut pages = Pages::new(5);
        let mut held = Vec::new();
        assert!(pages.alloc(3, &mut held));
        assert!(!pages.alloc(3, &mut held));
        assert_eq!((held.len(), pages.free(), pages.total()), (3, 2, 5));
        assert!(pages.alloc(2, &mut held));
        held.sort_unstable();
        assert_eq!(held, [0, 1, 2, 3, 4]);
        assert!(pages.alloc(0, &mut held));
        assert!(!pages.alloc(1, &mut held));
    }

    #[test]
    fn a_page_is_freed_once() {
        let mut pages = Pages::new(2);
        assert!(!pages.release(0), "never handed out");
        let mut held = Vec::new();
        assert!(pages.alloc(2, &mut held));
        assert!(pages.release(1));
        assert!(!pages.release(1));
        assert!(!pages.release(7));
        assert_eq!(pages.free(), 1);
        assert!(pages.alloc(1, &mut held));
        assert_eq!((held.last(), pages.free()), (Some(&1), 0));
    }

    #[test]
    fn the_largest_cache_costs_nothing_until_used() {
        let mut pages = Pages::new(u32::MAX);
        let mut held = Vec::new();
        assert!(!pages.alloc(usize::MAX, &mut held));
        assert!(pages.alloc(2, &mut held));
        assert_eq!(pages.free(), u32::MAX as usize - 2);
    }
}
