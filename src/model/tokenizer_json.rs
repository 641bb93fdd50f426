//! A published model's `tokenizer.json`, by the `tokenizers` crate.

use super::tokenizer::bad;
use crate::error::{ErrorKind, Result};
use std::collections::HashMap;
use std::path::Path;
use tokenizers::DecoderWrapper;

/// Tokens of which one character may be made at most, each at least a byte of it.
const MOST_PIECES: usize = 4;

pub(super) struct Json {
    inner: tokenizers::Tokenizer,
    /// Where tokens are bytes written as characters: which.
    bytes: Option<HashMap<char, u8>>,
}

impl Json {
    pub(super) fn read(file: &Path) -> Result<Self> {
        let mut inner =
            tokenizers::Tokenizer::from_file(file).map_err(|e| bad(file, format!("not a tokenizer: {e}")))?;
        // A file may say that all texts are cut or filled up to one length, as for a batch of training.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| bad(file, e.to_string()))?;
        let bytes = matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_))).then(byte_characters);
        Ok(Json { inner, bytes })
    }

    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode(text, true).map_err(|e| ErrorKind::argument("text", e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The bytes that a token stands for, where tokens are bytes; a special one has none.
    pub(super) fn bytes(&self, token: u32) -> Option<Vec<u8>> {
        let known = self.bytes.as_ref()?;
        let Some(written) = self.inner.id_to_token(token) else { return Some("\u{fffd}".into()) };
        match self.inner.get_added_tokens_decoder().get(&token) {
            Some(added) if added.special => Some(Vec::new()),
            Some(_) => Some(written.into()),
            None => {
                Some(written.chars().map(|c| known.get(&c).copied()).collect::<Option<_>>().unwrap_or(written.into()))
            }
        }
    }

    fn decode(&self, tokens: &[u32]) -> String {
        if tokens.iter().any(|token| self.inner.id_to_token(*token).is_none()) {
            return "\u{fffd}".into();
        }
        self.inner.decode(tokens, true).unwrap_or_else(|_| "\u{fffd}".into())
    }
}

/// Text of tokens that only the tokenizer can put together (spaces before words, bytes that it falls back to): what a few more
/// tokens add to the text of those before them.
#[derive(Default)]
pub(super) struct Pieces {
    /// Of the text that was given last, and since.
    shown: Vec<u32>,
    held: Vec<u32>,
}

impl Pieces {
    pub(super) fn push(&mut self, json: &Json, token: u32) -> String {
        self.held.push(token);
        let text = self.added(json);
        // The beginning of a character, unless it is too long for one.
        if text.ends_with('\u{fffd}') && self.held.len() < MOST_PIECES {
            return String::new();
        }
        self.shown = std::mem::take(&mut self.held);
        text
    }

    pub(super) fn finish(&mut self, json: &Json) -> String {
        let text = self.added(json);
        *self = Pieces::default();
        text
    }

    fn added(&self, json: &Json) -> String {
        let (before, all) = (json.decode(&self.shown), json.decode(&[&self.shown[..], &self.held].concat()));
        all.strip_prefix(&before).map_or_else(|| json.decode(&self.held), str::to_string)
    }
}

/// GPT-2's way to write bytes in a vocabulary of words: printable ones as themselves, the others in order from U+0100 on
/// (Radford et al. 2019).
fn byte_characters() -> HashMap<char, u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..=255u8).filter(|byte| !printable(*byte)).zip('\u{100}'..);
    let own = (0..=255u8).filter(|byte| printable(*byte)).map(|byte| (char::from(byte), byte));
    own.chain(others.map(|(byte, c)| (c, byte))).collect()
}
