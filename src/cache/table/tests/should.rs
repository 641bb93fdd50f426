//! What the trivial model of `machine_tests.rs` knows of a sequence.

/// What a sequence should hold.
#[derive(Debug, Clone, Default)]
pub(in crate::cache::machine_tests) struct Should {
    pub(super) salt: u64,
    /// Whether the table knows all committed tokens.
    pub(super) known: bool,
    /// Tokens that a token sees, or 0 for all.
    pub(super) window: usize,
    /// Tokens that it sees beside those, the first ones.
    pub(super) keep_first: usize,
    /// One past the last page that its window has moved on from; of those before it, pages of first tokens are kept.
    pub(super) passed: usize,
    pub(super) tokens: Vec<u32>,
    pub(super) drafts: Vec<u32>,
}

impl Should {
    /// First token that the token at a position sees.
    pub(super) fn first_seen(&self, position: usize) -> usize {
        if self.window == 0 {
            0
        } else {
            (position + 1).saturating_sub(self.window)
        }
    }

    /// Whether a page is held, as long as some token of the sequence is in it.
    pub(super) fn holds(&self, page: usize, page_size: usize) -> bool {
        page >= self.passed || page * page_size < self.keep_first
    }

    /// The first tokens of pages that are not held, and one past the last.
    pub(super) fn gap(&self, page_size: usize) -> std::ops::Range<usize> {
        let gone: Vec<usize> = (0..self.passed).filter(|page| !self.holds(*page, page_size)).collect();
        let bounds = gone.first().zip(gone.last());
        bounds.map_or(0..0, |(first, last)| first * page_size..(last + 1) * page_size)
    }

    /// Pages held of so many tokens, by their place in the sequence.
    pub(super) fn pages(&self, tokens: usize, page_size: usize) -> Vec<usize> {
        (0..tokens.div_ceil(page_size)).filter(|page| self.holds(*page, page_size)).collect()
    }

    /// What is in memory for each token.
    pub(super) fn content(&self) -> Vec<u64> {
        chain(self.salt, self.tokens.iter().chain(&self.drafts))
    }
}

/// A number per token that depends on the salt and all tokens before it, as a token's state does.
pub(super) fn chain<'a>(salt: u64, tokens: impl Iterator<Item = &'a u32>) -> Vec<u64> {
    let mix = |state: &mut u64, token: &u32| {
        let x = (*state ^ u64::from(*token)).wrapping_add(0x9e37_79b9_7f4a_7c15);
        *state = (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        Some(*state)
    };
    tokens.scan(salt.wrapping_mul(0x94d0_49bb_1331_11eb), mix).collect()
}
