//! Pages that sequences are going to need, with and without a window.

use super::Session;
use crate::cache::SequenceOptions;

impl Session {
    /// How this session makes its sequences.
    pub(super) fn seen(&self) -> SequenceOptions {
        SequenceOptions { window: self.window().map(|(window, _)| window), keep_first: self.options.keep_first }
    }

    /// Whether a sequence of so many tokens has given pages back to its window. One that never does may share its prefix
    /// with others at no cost.
    pub(crate) fn frees(&self, tokens: usize) -> bool {
        self.pages_between(tokens, tokens) < tokens.div_ceil(self.cache().pages().size)
    }

    /// Pages of a sequence that has `len` tokens, while it gets those up to `tokens`.
    fn pages_between(&self, len: usize, tokens: usize) -> usize {
        self.cache().pages_held(self.seen(), len, tokens)
    }

    /// Most pages that one sequence holds at a time: a prompt goes in steps that are as large as they can be, then come
    /// single tokens, until it has `fed` of them.
    pub(crate) fn most_pages(&self, prompt: usize, fed: usize) -> usize {
        let (chunk, size) = (self.capacity(), self.cache().pages().size);
        // A page's tokens later a step of as many tokens needs as much or more, and so the last ones need most.
        let chunks = prompt.div_ceil(chunk);
        let steps = (chunks.saturating_sub(size + 1)..chunks).map(|i| (i * chunk, prompt.min((i + 1) * chunk)));
        let singles = (prompt.max(fed.saturating_sub(size))..fed).map(|len| (len, len + 1));
        steps.chain(singles).map(|(len, tokens)| self.pages_between(len, tokens)).max().unwrap_or(0)
    }

    /// Pages that a sequence of `len` tokens needs beside those it holds, until it has `tokens` and one more: at most, as
    /// the steps of its prompt may begin anywhere. `frees` says whether it gives pages back.
    pub(crate) fn pages_to_go(&self, len: usize, tokens: usize, frees: bool) -> usize {
        let size = self.cache().pages().size;
        let all = tokens.saturating_add(1).div_ceil(size);
        let Some((window, keep_first)) = self.window().filter(|_| frees) else {
            return all.saturating_sub(len.div_ceil(size));
        };
        let most = match tokens.saturating_sub(len) {
            0 | 1 => self.pages_between(len, tokens).max(self.pages_between(tokens, tokens.saturating_add(1))),
            left => {
                // What the first token of a step sees, and the step, wherever in a page that begins.
                let span = window.saturating_add(left.min(self.capacity()));
                let seen = span.saturating_sub(2).div_ceil(size).saturating_add(1);
                all.min(seen.saturating_add(keep_first.div_ceil(size)))
            }
        };
        most.saturating_sub(self.pages_between(len, len))
    }
}

#[cfg(test)]
#[path = "room_tests.rs"]
mod tests;
