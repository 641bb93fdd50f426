//! The text of one request, by a tokenizer that its scheduler has.

use super::tokenizer::{Held, Tokenizer};
use std::sync::Arc;

/// A [`TextStream`](crate::model::TextStream) that owns its tokenizer with others.
pub(crate) struct Words {
    tokenizer: Arc<Tokenizer>,
    held: Held,
}

impl Words {
    /// For the text that comes after a prompt.
    pub(crate) fn after(tokenizer: &Arc<Tokenizer>, prompt: &[u32]) -> Self {
        let mut words = Words { tokenizer: tokenizer.clone(), held: tokenizer.held() };
        prompt.iter().for_each(|token| drop(words.push(*token)));
        words
    }

    /// Takes a token and returns the text that is now complete.
    pub(crate) fn push(&mut self, token: u32) -> String {
        self.held.push(&self.tokenizer, token)
    }

    /// What is left.
    pub(crate) fn finish(&mut self) -> String {
        self.held.finish(&self.tokenizer)
    }
}
