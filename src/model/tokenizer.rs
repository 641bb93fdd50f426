//! Text to tokens, and tokens to text as they come.

use super::generate::Utf8Stream;
use super::store::io;
#[cfg(feature = "tokenizers")]
use super::tokenizer_json::Json;
use crate::error::{Error, ErrorKind, Result};
use serde_json::Value;
use std::path::Path;

/// The words of one model: what text its tokens are.
///
/// Bytes for this crate's own models; for published ones what the folder's `tokenizer.json` says, read by the `tokenizers`
/// crate, for which this crate's feature `tokenizers` must be on.
pub struct Tokenizer {
    kind: Kind,
    end: Vec<u32>,
}

enum Kind {
    Bytes,
    #[cfg(feature = "tokenizers")]
    Json(Box<Json>),
}

impl Tokenizer {
    /// Tokens 0 to 255 are the bytes of the text, and nothing ends it.
    pub fn bytes() -> Self {
        Tokenizer { kind: Kind::Bytes, end: Vec::new() }
    }

    /// That of a model's folder: its `tokenizer.json`, or without one the `"tokenizer": "bytes"` of its `config.json`.
    /// Tokens that end a text are `eos_token_id` of `generation_config.json`, or else of `config.json`.
    ///
    /// Errors: [`ErrorKind::Io`]; [`ErrorKind::Config`] for a folder with neither, for a `tokenizer.json` that cannot be
    /// read, or at all without the feature `tokenizers`, and for an `eos_token_id` that is no token.
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let (own, generation) = (folder.join("config.json"), folder.join("generation_config.json"));
        let config = object(&own)?;
        let said = match generation.exists() {
            true => object(&generation)?.get("eos_token_id").cloned(),
            false => None,
        };
        let (path, key) = match said {
            Some(key) => (&generation, key),
            None => (&own, config.get("eos_token_id").cloned().unwrap_or(Value::Null)),
        };
        let end = end_tokens(&key).ok_or_else(|| bad(path, "eos_token_id: no token, nor a list of tokens".into()))?;
        let file = folder.join("tokenizer.json");
        if file.exists() {
            return Ok(Tokenizer { kind: read(&file)?, end });
        }
        if config.get("tokenizer").and_then(Value::as_str) == Some("bytes") {
            return Ok(Tokenizer { kind: Kind::Bytes, end });
        }
        Err(bad(&own, format!("tokenizer: not \"bytes\", and there is no {}", file.display())))
    }

    /// The tokens of a text, with those that the model wants around it (a first token, say).
    ///
    /// Errors: [`ErrorKind::Argument`] for what is no UTF-8, unless tokens are bytes, or what the tokenizer refuses.
    pub fn encode(&self, text: impl AsRef<[u8]>) -> Result<Vec<u32>> {
        let text = text.as_ref();
        match &self.kind {
            Kind::Bytes => Ok(text.iter().copied().map(u32::from).collect()),
            #[cfg(feature = "tokenizers")]
            Kind::Json(json) => {
                let text =
                    std::str::from_utf8(text).map_err(|e| ErrorKind::argument("text", format!("no UTF-8: {e}")))?;
                json.encode(text)
            }
        }
    }

    /// Whether a token is a byte.
    pub fn is_bytes(&self) -> bool {
        matches!(self.kind, Kind::Bytes)
    }

    /// Tokens after which there is no more text; none where it may go on for ever.
    pub fn end_tokens(&self) -> &[u32] {
        &self.end
    }

    /// For a text whose tokens come one by one.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream {
            tokenizer: self,
            bytes: Utf8Stream::default(),
            #[cfg(feature = "tokenizers")]
            pieces: Default::default(),
        }
    }

    /// The text of tokens, as [`TextStream`] gives it.
    pub fn decode(&self, tokens: &[u32]) -> String {
        let mut stream = self.stream();
        let text: String = tokens.iter().map(|token| stream.push(*token)).collect();
        text + &stream.finish()
    }
}

/// Text from tokens as they come, never less than whole characters: bytes that are no UTF-8 come out as U+FFFD, and so do
/// tokens that the tokenizer does not know. Special tokens (ends, beginnings) are no text.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    bytes: Utf8Stream,
    #[cfg(feature = "tokenizers")]
    pieces: super::tokenizer_json::Pieces,
}

impl TextStream<'_> {
    /// Takes a token and returns the text that is now complete, maybe none.
    pub fn push(&mut self, token: u32) -> String {
        match &self.tokenizer.kind {
            Kind::Bytes => self.bytes.push(token),
            #[cfg(feature = "tokenizers")]
            Kind::Json(json) => match json.bytes(token) {
                Some(bytes) => bytes.into_iter().map(|byte| self.bytes.push(u32::from(byte))).collect(),
                None => self.pieces.push(json, token),
            },
        }
    }

    /// What is left of an unfinished character, as U+FFFD.
    pub fn finish(&mut self) -> String {
        let rest = self.bytes.finish();
        match &self.tokenizer.kind {
            Kind::Bytes => rest,
            #[cfg(feature = "tokenizers")]
            Kind::Json(json) => rest + &self.pieces.finish(json),
        }
    }
}

#[cfg(feature = "tokenizers")]
fn read(file: &Path) -> Result<Kind> {
    Json::read(file).map(|json| Kind::Json(Box::new(json)))
}

#[cfg(not(feature = "tokenizers"))]
fn read(file: &Path) -> Result<Kind> {
    Err(bad(file, "needs latten's feature \"tokenizers\" (cargo's --features tokenizers), which is off".into()))
}

/// The tokens of an `eos_token_id`; none for what is neither a token nor a list of them nor null.
fn end_tokens(value: &Value) -> Option<Vec<u32>> {
    let token = |value: &Value| value.as_u64().and_then(|token| u32::try_from(token).ok());
    match value {
        Value::Null => Some(Vec::new()),
        Value::Array(all) => all.iter().map(token).collect(),
        one => token(one).map(|token| vec![token]),
    }
}

fn object(path: &Path) -> Result<Value> {
    let text = std::fs::read(path).map_err(|e| io(path, &e))?;
    serde_json::from_slice(&text).map_err(|e| bad(path, format!("not JSON: {e}")))
}

pub(super) fn bad(path: &Path, message: String) -> Error {
    ErrorKind::Config { path: path.display().to_string(), message }.into()
}
