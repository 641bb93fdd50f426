//! A published model's `tokenizer.json`, by the `tokenizers` crate.

use super::decoding::Chain;
use super::dummy::Dummy;
use super::tokenizer::bad;
use crate::error::{ErrorKind, Result};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::Path;

pub(crate) struct Json {
    inner: tokenizers::Tokenizer,
    /// What it puts before the first word of a text, if anything.
    dummy: Option<Dummy>,
    /// Its decoder, before any token.
    chain: Chain,
}

impl Json {
    pub(crate) fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read(file).map_err(|e| ErrorKind::io(file, e))?;
        Self::of(file, &text)
    }

    /// Of the text of a `tokenizer.json`; `file` is for messages.
    pub(crate) fn of(file: &Path, text: &[u8]) -> Result<Self> {
        let refused = |e: String| bad(file, format!("not a tokenizer: {e}"));
        // The crate counts on this in its decoders' part.
        serde_json::from_slice::<serde::de::IgnoredAny>(text).map_err(|e| refused(e.to_string()))?;
        let inner = guarded(|| {
            let mut inner = tokenizers::Tokenizer::from_bytes(text)?;
            // A file may say that all texts are cut or filled up to one length, as for a batch of training.
            inner.with_padding(None);
            inner.with_truncation(None)?;
            Ok(inner)
        });
        let inner = inner.map_err(refused)?;
        // What is put around every text is put around an empty one.
        guarded(|| inner.encode("", true))
            .map_err(|e| bad(file, format!("post_processor: not for this tokenizer: {e}")))?;
        let (dummy, chain) = guarded(|| Ok((Dummy::of(&inner), Chain::new(inner.get_decoder())))).map_err(refused)?;
        Ok(Json { inner, dummy, chain })
    }

    /// With what the model wants around a text, but for that which the text has itself.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = guarded(|| self.inner.encode(text, true)).map_err(no_text)?;
        let (ids, around) = (encoding.get_ids(), encoding.get_special_tokens_mask());
        let before = around.iter().take_while(|special| **special == 1).count();
        let after = around[before..].iter().rev().take_while(|special| **special == 1).count();
        let (before, rest) = ids.split_at(before);
        let (own, after) = rest.split_at(rest.len() - after);
        let before = if own.starts_with(before) { &[] } else { before };
        let after = if own.ends_with(after) { &[] } else { after };
        Ok([before, own, after].concat())
    }

    pub(crate) fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        guarded(|| self.inner.encode(text, false)).map(|encoding| encoding.get_ids().to_vec()).map_err(no_text)
    }

    /// As a part of a text that these tokens begin.
    pub(crate) fn encode_after(&self, before: &[u32], text: &str) -> Result<Vec<u32>> {
        let Some(dummy) = self.dummy.as_ref().filter(|dummy| dummy.is_left_out(&self.inner, before)) else {
            return self.encode_plain(text);
        };
        guarded(|| dummy.encode_without(&self.inner, text)).map_err(no_text)
    }

    /// The token that is called so.
    pub(crate) fn token(&self, name: &str) -> Option<u32> {
        guarded(|| Ok(self.inner.token_to_id(name))).unwrap_or_default()
    }

    /// A decoder for a new text.
    pub(crate) fn chain(&self) -> Chain {
        self.chain.clone()
    }

    /// The text that is certain with one more token.
    pub(crate) fn push(&self, chain: &mut Chain, token: u32) -> String {
        self.piece(token).map_or_else(String::new, |(piece, added)| chain.push(piece, added))
    }

    /// The bytes of a token in the middle of a text.
    pub(crate) fn bytes(&self, token: u32) -> Vec<u8> {
        self.piece(token).map_or_else(Vec::new, |(piece, added)| self.chain.bytes(piece, added))
    }

    /// Whether a token is one of its own.
    #[cfg(feature = "constrained")]
    pub(crate) fn knows(&self, token: u32) -> bool {
        matches!(guarded(|| Ok(self.inner.id_to_token(token))), Ok(Some(_)))
    }

    /// What the decoder is given for a token, and whether it was added to the model's vocabulary; nothing for a special
    /// token, and U+FFFD for one that is not known.
    fn piece(&self, token: u32) -> Option<(String, bool)> {
        let words = self.inner.get_added_vocabulary();
        match guarded(|| Ok(self.inner.id_to_token(token))) {
            Ok(Some(piece)) if words.is_special_token(&piece) => None,
            Ok(Some(piece)) => Some((piece, words.get_added_tokens_decoder().contains_key(&token))),
            Ok(None) | Err(_) => Some(("\u{fffd}".into(), false)),
        }
    }
}

fn no_text(why: String) -> crate::Error {
    ErrorKind::argument("text", why)
}

/// A call of the crate `tokenizers`, whose panics become errors: it panics on some files that a sound one would refuse.
///
/// What it shares between calls are caches, which it reads and writes only where their lock is free and not poisoned, so
/// that a later call is as good as the first. The panic's message is printed all the same: the hook that prints it is the
/// process's, and to change it for a moment would take it from other threads. In a program built with `panic = "abort"`
/// a panic still ends the process.
pub(crate) fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(payload) => {
            let said = payload.downcast_ref::<&str>().copied();
            let said = said.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
            Err(format!("the crate tokenizers panicked: {}", said.unwrap_or("it does not say why")))
        }
    }
}
