//! Grammars of texts, for constrained output, by the crate `llguidance`: JSON schemas, regular expressions, and Lark.

use super::sampler::{Constraint, TokenMask};
use super::text::Tokenizer;
use crate::error::{Error, ErrorKind, Result};
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use std::fmt;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;

/// Compiles grammars for the tokens of one model, whose bytes it has in a tree. Made once for a model: for a vocabulary of
/// 128,000 tokens that takes some tenths of a second and some ten MiB.
pub struct GrammarCompiler {
    factory: ParserFactory,
    /// Tokens that end a text.
    ends: Arc<[u32]>,
    vocab: usize,
}

impl GrammarCompiler {
    /// For the tokens of a tokenizer, in a model with a vocabulary of `vocab` rows ([`Config::vocab_size`](super::Config)): tokens
    /// past the tokenizer's, and special ones but for those that end a text, are never allowed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for a vocabulary of 0 or of more than 2^24 tokens; [`ErrorKind::Grammar`] where no tree can be made of
    /// them.
    pub fn new(tokenizer: &Tokenizer, vocab: usize) -> Result<Self> {
        if vocab == 0 || vocab > 1 << 24 {
            return Err(ErrorKind::argument("vocab", format!("{vocab} is not in 1..=2^24")));
        }
        let ends: Arc<[u32]> = tokenizer.end_tokens().iter().copied().filter(|end| (*end as usize) < vocab).collect();
        // The tree marks its special tokens by this byte, which no text has.
        let is_text = |bytes: &Vec<u8>| bytes.first() != Some(&TokTrie::SPECIAL_TOKEN_MARKER);
        let bytes = |token: u32| match tokenizer.knows(token) && !ends.contains(&token) {
            true => Some(tokenizer.token_bytes(token)).filter(is_text).unwrap_or_default(),
            false => Vec::new(),
        };
        // One more, which no model draws, is the end where the tokenizer has none.
        let words: Vec<Vec<u8>> = (0..vocab as u32).map(bytes).chain([Vec::new()]).collect();
        let factory = guarded(|| {
            let info = TokRxInfo::new(words.len() as u32, ends.first().copied().unwrap_or(vocab as u32));
            let tree: TokEnv = Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words)));
            let mut factory = ParserFactory::new_simple(&tree).map_err(|e| e.to_string())?;
            factory.quiet().limits_mut().verbose_errors = false;
            Ok(factory)
        })?;
        Ok(GrammarCompiler { factory, ends, vocab })
    }

    /// JSON by a schema, as text: draft 2020-12 and before, as far as `llguidance` knows it. References are those within the schema
    /// (`#/$defs/..`); nothing is fetched.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Grammar`] for what is no JSON, or a schema that it cannot compile.
    pub fn json_schema(&self, schema: &str) -> Result<Grammar> {
        let schema = serde_json::from_str(schema).map_err(|e| refused(&format!("the schema is no JSON: {e}")))?;
        self.compile(TopLevelGrammar::from_json_schema(schema))
    }

    /// Text that a regular expression matches as a whole, of the syntax of the crate `regex`, without look-around.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Grammar`] for one that it cannot compile.
    pub fn regex(&self, expression: &str) -> Result<Grammar> {
        self.compile(TopLevelGrammar::from_regex(expression))
    }

    /// Text of a grammar in `llguidance`'s variant of Lark, which begins at `start`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Grammar`] for one that it cannot compile.
    pub fn lark(&self, grammar: &str) -> Result<Grammar> {
        self.compile(TopLevelGrammar::from_lark(grammar.into()))
    }

    fn compile(&self, grammar: TopLevelGrammar) -> Result<Grammar> {
        let parser = guarded(|| self.factory.create_parser(grammar).map_err(|e| e.to_string()))?;
        let matcher = Matcher::new(Ok(parser));
        match matcher.get_error() {
            Some(why) => Err(refused(&why)),
            None => Ok(Grammar { matcher, ends: self.ends.clone(), vocab: self.vocab, ended: false }),
        }
    }
}

impl fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarCompiler").field("vocab", &self.vocab).field("ends", &self.ends).finish_non_exhaustive()
    }
}

/// What a text may be, and where it is: a [`Constraint`] for one sequence. A clone goes on from where this one is, so that of one
/// that was just compiled is for a sequence of its own.
///
/// Where the text may end, the tokens that end one are allowed beside those that go on. Where it cannot go on, it is complete
/// without one.
pub struct Grammar {
    matcher: Matcher,
    ends: Arc<[u32]>,
    vocab: usize,
    ended: bool,
}

impl Clone for Grammar {
    fn clone(&self) -> Self {
        // Nothing in common, so that sequences do not wait for one another.
        Grammar { matcher: self.matcher.deep_clone(), ends: self.ends.clone(), ..*self }
    }
}

impl Constraint for Grammar {
    fn allow(&mut self, mask: &mut TokenMask) -> Result<()> {
        if mask.vocab() != self.vocab {
            return Err(refused(&format!("compiled for {} tokens, the model has {}", self.vocab, mask.vocab())));
        }
        let allowed = self.matcher.compute_mask().map_err(|e| refused(&e.to_string()))?;
        mask.allow_words(allowed.as_slice());
        if self.ends.first().is_some_and(|end| allowed.is_allowed(*end)) {
            self.ends.iter().for_each(|end| mask.allow(*end));
        }
        Ok(())
    }

    fn take(&mut self, token: u32) -> Result<()> {
        self.ended = self.ended || self.ends.contains(&token);
        match self.ended {
            true => Ok(()),
            false => self.matcher.consume_token(token).map_err(|e| refused(&e.to_string())),
        }
    }

    fn is_complete(&self) -> bool {
        self.ended || (self.matcher.is_stopped() && !self.matcher.is_error())
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").field("complete", &self.is_complete()).finish_non_exhaustive()
    }
}

fn refused(why: &str) -> Error {
    ErrorKind::Grammar { why: why.trim().into() }.into()
}

/// A call of the crate, whose panics become errors.
fn guarded<T>(call: impl FnOnce() -> Result<T, String>) -> Result<T> {
    let panicked = |_| Err("the crate llguidance panicked".into());
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(panicked).map_err(|why: String| refused(&why))
}
