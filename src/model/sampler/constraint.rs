//! What a text may be: the tokens that are allowed next.

use crate::error::{Error, ErrorKind, Result};
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// Which tokens of a vocabulary are allowed: a bit for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenMask {
    words: Vec<u32>,
    vocab: usize,
}

impl TokenMask {
    /// None of `vocab` tokens.
    pub fn none(vocab: usize) -> Self {
        TokenMask { words: vec![0; vocab.div_ceil(32)], vocab }
    }

    /// Allows one more; a token past the vocabulary changes nothing.
    pub fn allow(&mut self, token: u32) {
        if (token as usize) < self.vocab {
            self.words[token as usize / 32] |= 1 << (token % 32);
        }
    }

    /// Allows those of other words too, laid out as [`TokenMask::words`]; what is past the vocabulary is left out.
    pub fn allow_words(&mut self, words: &[u32]) {
        self.words.iter_mut().zip(words).for_each(|(own, other)| *own |= other);
        if let Some(last) = self.words.last_mut().filter(|_| !self.vocab.is_multiple_of(32)) {
            *last &= u32::MAX >> (32 - self.vocab % 32);
        }
    }

    /// Whether a token is allowed.
    pub fn allows(&self, token: u32) -> bool {
        self.words.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }

    /// Tokens in the vocabulary.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Tokens that are allowed.
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The bits, from the lowest one of the first word on: (vocab / 32, rounded up).
    pub fn words(&self) -> &[u32] {
        &self.words
    }
}

/// What a text may be, token by token.
pub trait Constraint: Send + fmt::Debug {
    /// Allows the tokens that may come next, in a mask that allows none. It is asked once before each token, on another thread while
    /// the device computes (in browsers on the same).
    ///
    /// # Errors
    ///
    /// Any: the sequence then gets no token, and is as it was.
    fn allow(&mut self, mask: &mut TokenMask) -> Result<()>;

    /// A token was drawn, one of those that were allowed.
    ///
    /// # Errors
    ///
    /// Any: no token will be drawn after it.
    fn take(&mut self, token: u32) -> Result<()>;

    /// Whether the text is complete and nothing may follow.
    fn is_complete(&self) -> bool;
}

/// A constraint that a step asks while others look at it.
pub(crate) struct ConstraintCell(Mutex<Constrained>);

struct Constrained {
    constraint: Box<dyn Constraint>,
    /// What is allowed next, once that was asked.
    mask: Option<TokenMask>,
    /// Why nothing more will be drawn.
    fault: Option<ErrorKind>,
    taken: usize,
}

impl ConstraintCell {
    pub(super) fn new(constraint: Box<dyn Constraint>) -> Self {
        ConstraintCell(Mutex::new(Constrained { constraint, mask: None, fault: None, taken: 0 }))
    }

    fn locked<T>(&self, with: impl FnOnce(&mut Constrained) -> T) -> T {
        // Whoever panicked half way has left a fault behind (`mask`).
        with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What is allowed next of so many tokens: one at least.
    pub(crate) fn mask(&self, vocab: usize) -> Result<TokenMask> {
        self.locked(|own| own.mask(vocab))
    }

    pub(super) fn take(&self, token: u32) {
        self.locked(|own| {
            own.mask = None;
            own.taken += 1;
            if own.fault.is_none() {
                own.fault = own.constraint.take(token).err().map(|error| error.kind().clone());
            }
        });
    }

    pub(super) fn is_complete(&self) -> bool {
        self.locked(|own| own.constraint.is_complete())
    }
}

impl Constrained {
    fn mask(&mut self, vocab: usize) -> Result<TokenMask> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone().into());
        }
        if let Some(mask) = self.mask.as_ref().filter(|mask| mask.vocab == vocab) {
            return Ok(mask.clone());
        }
        let taken = self.taken;
        if self.constraint.is_complete() {
            return Err(grammar(format!("the text is complete after {taken} tokens: nothing may follow")));
        }
        let mut mask = TokenMask::none(vocab);
        // Stands where this panics.
        self.fault = Some(ErrorKind::Grammar { why: format!("the constraint panicked after {taken} tokens") });
        let allowed = self.constraint.allow(&mut mask);
        self.fault = None;
        allowed?;
        if mask.count() == 0 {
            return Err(grammar(format!("none of {vocab} tokens may follow after {taken}")));
        }
        self.mask = Some(mask.clone());
        Ok(mask)
    }
}

pub(super) fn grammar(why: String) -> Error {
    ErrorKind::Grammar { why }.into()
}

impl fmt::Debug for ConstraintCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.try_lock() {
            Ok(own) => own.constraint.fmt(f),
            Err(_) => f.write_str("a constraint that is being asked"),
        }
    }
}
