//! The prefix index: full pages by the tokens that they and all pages before them hold. Pure.
//!
//! A node is a page; its children are the pages that followed it in some sequence, by their tokens. Tokens are compared,
//! never hashes alone. A salt has a tree of its own. Whoever holds a page holds those before it, so the pages that no one
//! holds are whole ends of the trees: they are given up from their leaves, the one least recently used first.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// What a page follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parent {
    /// Nothing: it begins a sequence of this salt.
    Salt(u64),
    /// Another page.
    Page(u32),
}

type Children = HashMap<Arc<[u32]>, u32>;

#[derive(Debug, Clone)]
struct Node {
    parent: Parent,
    tokens: Arc<[u32]>,
    children: Children,
    /// When it was last given up by its last holder; none while it is held.
    unheld_since: Option<u64>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct PrefixIndex {
    nodes: HashMap<u32, Node>,
    roots: HashMap<u64, Children>,
    /// Pages that no one holds and that have no child, by age.
    leaves: BTreeSet<(u64, u32)>,
    /// Pages that no one holds.
    unheld: usize,
    clock: u64,
}

impl PrefixIndex {
    /// Pages that no one holds: all of them can be given up.
    pub(crate) fn unheld(&self) -> usize {
        self.unheld
    }

    pub(crate) fn contains(&self, page: u32) -> bool {
        self.nodes.contains_key(&page)
    }

    /// Tokens of a page.
    pub(crate) fn tokens(&self, page: u32) -> Option<&[u32]> {
        self.nodes.get(&page).map(|node| &*node.tokens)
    }

    /// The page of these tokens after `parent`.
    pub(crate) fn find(&self, parent: Parent, tokens: &[u32]) -> Option<u32> {
        let children = match parent {
            Parent::Salt(salt) => self.roots.get(&salt)?,
            Parent::Page(page) => &self.nodes.get(&page)?.children,
        };
        children.get(tokens).copied()
    }

    /// Adds a page that is held and not yet here. There is no other of these tokens after `parent`, and `parent` is held.
    pub(crate) fn insert(&mut self, parent: Parent, tokens: &[u32], page: u32) {
        debug_assert!(!self.contains(page) && self.find(parent, tokens).is_none(), "page {page} is here");
        let tokens: Arc<[u32]> = tokens.into();
        let siblings = match parent {
            Parent::Salt(salt) => self.roots.entry(salt).or_default(),
            Parent::Page(parent) => match self.nodes.get_mut(&parent) {
                Some(node) => &mut node.children,
                None => return,
            },
        };
        siblings.insert(tokens.clone(), page);
        self.nodes.insert(page, Node { parent, tokens, children: Children::new(), unheld_since: None });
    }

    /// A page of the index got its first holder.
    pub(crate) fn hold(&mut self, page: u32) {
        let Some(node) = self.nodes.get_mut(&page) else { return };
        if let Some(since) = node.unheld_since.take() {
            self.unheld -= 1;
            self.leaves.remove(&(since, page));
        }
    }

    /// A page of the index lost its last holder.
    pub(crate) fn unhold(&mut self, page: u32) {
        let Some(node) = self.nodes.get_mut(&page) else { return };
        self.clock += 1;
        node.unheld_since = Some(self.clock);
        self.unheld += 1;
        if node.children.is_empty() {
            self.leaves.insert((self.clock, page));
        }
    }

    /// Takes out the leaf that no one holds for the longest time.
    pub(crate) fn pop_oldest(&mut self) -> Option<u32> {
        let (_, page) = self.leaves.pop_first()?;
        self.detach(page);
        Some(page)
    }

    /// Takes out a page and all that follow it. Returns those that follow; none of them is held if no one but the caller
    /// holds the page.
    pub(crate) fn remove(&mut self, page: u32) -> Vec<u32> {
        let mut found = vec![page];
        let mut next = 0;
        while let Some(page) = found.get(next) {
            found.extend(self.nodes.get(page).into_iter().flat_map(|node| node.children.values()));
            next += 1;
        }
        // From the leaves up, so that each is a leaf when its turn comes.
        for &page in found.iter().rev() {
            self.detach(page);
        }
        found.split_off(1)
    }

    /// Takes out a page without children.
    fn detach(&mut self, page: u32) {
        let Some(node) = self.nodes.remove(&page) else { return };
        if let Some(since) = node.unheld_since {
            self.unheld -= 1;
            self.leaves.remove(&(since, page));
        }
        match node.parent {
            Parent::Salt(salt) => {
                let Some(roots) = self.roots.get_mut(&salt) else { return };
                roots.remove(&node.tokens);
                if roots.is_empty() {
                    self.roots.remove(&salt);
                }
            }
            Parent::Page(parent) => {
                let Some(above) = self.nodes.get_mut(&parent) else { return };
                above.children.remove(&node.tokens);
                if let Some(since) = above.unheld_since.filter(|_| above.children.is_empty()) {
                    self.leaves.insert((since, parent));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 0 - 1 - 2, and 3 after 0; all held.
    fn index() -> PrefixIndex {
        let mut index = PrefixIndex::default();
        index.insert(Parent::Salt(7), &[1, 1], 0);
        index.insert(Parent::Page(0), &[2, 2], 1);
        index.insert(Parent::Page(1), &[3, 3], 2);
        index.insert(Parent::Page(0), &[4, 4], 3);
        index
    }

    #[test]
    fn a_page_is_found_by_salt_parent_and_tokens() {
        let index = index();
        assert_eq!(index.find(Parent::Salt(7), &[1, 1]), Some(0));
        assert_eq!(index.find(Parent::Salt(8), &[1, 1]), None);
        assert_eq!(index.find(Parent::Page(0), &[4, 4]), Some(3));
        assert_eq!(index.find(Parent::Page(1), &[4, 4]), None);
        assert_eq!(index.find(Parent::Page(0), &[4, 5]), None);
        assert_eq!(
            (index.find(Parent::Page(9), &[1, 1]), index.tokens(2), index.tokens(9)),
            (None, Some(&[3, 3][..]), None)
        );
    }

    #[test]
    fn leaves_go_first_and_the_oldest_of_them() {
        let mut index = index();
        for page in [0, 3, 1, 2] {
            index.unhold(page);
        }
        assert_eq!(index.unheld(), 4);
        let order: Vec<u32> = std::iter::from_fn(|| index.pop_oldest()).collect();
        // 0 is the oldest, but has children; 1 is older than 2, but 2 follows it.
        assert_eq!(order, [3, 2, 1, 0]);
        assert!(index.unheld() == 0 && index.nodes.is_empty() && index.roots.is_empty());
    }

    #[test]
    fn what_is_held_again_stays_and_is_young_afterwards() {
        let mut index = index();
        for page in [0, 1, 2, 3] {
            index.unhold(page);
        }
        [0, 1, 2].iter().for_each(|page| index.hold(*page));
        assert_eq!((index.unheld(), index.pop_oldest(), index.pop_oldest()), (1, Some(3), None));
        [0, 1, 2].iter().for_each(|page| index.unhold(*page));
        assert_eq!((index.pop_oldest(), index.find(Parent::Page(0), &[2, 2])), (Some(2), Some(1)));
    }

    #[test]
    fn a_page_goes_with_what_follows_it() {
        let mut index = index();
        [1, 2].iter().for_each(|page| index.unhold(*page));
        assert_eq!((index.remove(1), index.unheld(), index.pop_oldest()), (vec![2], 0, None));
        assert!(index.contains(0) && index.contains(3) && !index.contains(1) && !index.contains(2));
        assert_eq!(index.find(Parent::Page(0), &[2, 2]), None);
        let mut rest = index.remove(0);
        rest.sort_unstable();
        assert_eq!((rest, index.roots.len(), index.nodes.len()), (vec![3], 0, 0));
    }
}
