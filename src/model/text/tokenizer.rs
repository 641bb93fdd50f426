//! Text to tokens, and tokens to text as they come.

use super::ends::ends;
#[cfg(feature = "tokenizers")]
use super::json::Json;
use super::Utf8Stream;
use crate::error::{Error, ErrorKind, Result};
use crate::io::gguf::Gguf;
use serde_json::Value;
use std::fmt;
use std::path::Path;

/// The words of one model: what text its tokens are.
///
/// Bytes for this crate's own models; for published ones what the folder's `tokenizer.json` or the GGUF file's metadata say, read
/// by the `tokenizers` crate, for which this crate's feature `tokenizers` must be on.
pub struct Tokenizer {
    kind: Kind,
    end: Vec<u32>,
}

/// What a text is, and which tokens are to be around it.
#[cfg_attr(not(feature = "tokenizers"), allow(dead_code))]
enum Encode<'a> {
    Whole,
    Plain,
    After(&'a [u32]),
}

enum Kind {
    Bytes,
    #[cfg(feature = "tokenizers")]
    Json(Box<Json>),
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.kind {
            Kind::Bytes => "bytes",
            #[cfg(feature = "tokenizers")]
            Kind::Json(_) => "tokenizers",
        };
        f.debug_struct("Tokenizer").field("kind", &kind).field("end_tokens", &self.end).finish()
    }
}

impl Tokenizer {
    /// Tokens 0 to 255 are the bytes of the text, and nothing ends it.
    pub fn bytes() -> Self {
        Tokenizer { kind: Kind::Bytes, end: Vec::new() }
    }

    /// That of a GGUF file, or of a folder with one and no safetensors file: byte-level BPE (`gpt2`, with the rules of words of the
    /// models that are read) or SentencePiece's (`llama`). Its ends are `eos_token_id`, `eot_token_id`, `eom_token_id` (each one
    /// or a list), and control tokens that are known to end a turn, as `<|im_end|>`.
    ///
    /// That of a model's folder: its `tokenizer.json`, or without one the `"tokenizer": "bytes"` of its `config.json`.
    ///
    /// Tokens that end a text are `eos_token_id` of `generation_config.json`, or, where that has no such key, of
    /// `config.json`; and with a `tokenizer.json` those that `eos_token` names in `tokenizer_config.json` and
    /// `special_tokens_map.json` (a string, or an object with `content`), in which the end of a chat's turn often stands
    /// alone. A name that the tokenizer does not know is left out with a warning in the log.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`]; [`ErrorKind::Weights`] for what is no GGUF file; [`ErrorKind::Config`] for a folder with neither, for a `tokenizer.json` that cannot be
    /// read, or at all without the feature `tokenizers`, for a tokenizer in a GGUF file of another kind, for an `eos_token_id` that is no token, and for an `eos_token`
    /// that is no name.
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        if let Some(file) = Gguf::of_model(folder)? {
            let (kind, end) = read_gguf(&file)?;
            return Ok(Tokenizer { kind, end });
        }
        let own = folder.join("config.json");
        let config = object(&own)?;
        let file = folder.join("tokenizer.json");
        let kind = if file.exists() {
            read(&file)?
        } else if config.get("tokenizer").and_then(Value::as_str) == Some("bytes") {
            Kind::Bytes
        } else {
            return Err(bad(&own, format!("tokenizer: not \"bytes\", and there is no {}", file.display())));
        };
        let end = ends(folder, &config, |name| kind.token(name))?;
        Ok(Tokenizer { kind, end })
    }

    /// The tokens of a text, with those that the model wants around it (a first token, say). Those that the text spells
    /// itself, as one that a chat template made does, are not there twice.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for what is no UTF-8, unless tokens are bytes, or what the tokenizer refuses.
    pub fn encode(&self, text: impl AsRef<[u8]>) -> Result<Vec<u32>> {
        self.encoded(text.as_ref(), Encode::Whole)
    }

    /// The tokens of a text, without those that the model wants around one. A space that the tokenizer has before the
    /// first word of every text is there.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::encode`].
    pub fn encode_plain(&self, text: impl AsRef<[u8]>) -> Result<Vec<u32>> {
        self.encoded(text.as_ref(), Encode::Plain)
    }

    /// The tokens of a text that goes on after `before`, all tokens of a sequence so far (their end is enough, but for one
    /// that has special tokens alone). Without any it is [`Tokenizer::encode`]. Else there are no tokens around it, and no
    /// space before its first word that is not the text's own; but for a tokenizer that has one after every special
    /// token, where `before` ends with such.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::encode`].
    pub fn encode_after(&self, before: &[u32], text: impl AsRef<[u8]>) -> Result<Vec<u32>> {
        let how = if before.is_empty() { Encode::Whole } else { Encode::After(before) };
        self.encoded(text.as_ref(), how)
    }

    fn encoded(&self, text: &[u8], _how: Encode<'_>) -> Result<Vec<u32>> {
        match &self.kind {
            Kind::Bytes => Ok(text.iter().copied().map(u32::from).collect()),
            #[cfg(feature = "tokenizers")]
            Kind::Json(json) => {
                let text =
                    std::str::from_utf8(text).map_err(|e| ErrorKind::argument("text", format!("no UTF-8: {e}")))?;
                match _how {
                    Encode::Whole => json.encode(text),
                    Encode::Plain => json.encode_plain(text),
                    Encode::After(before) => json.encode_after(before, text),
                }
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
        TextStream { tokenizer: self, held: self.held() }
    }

    /// For a text that goes on after these tokens, whose text is not given again: what the space before a word is, and
    /// whether bytes end a character that they began.
    pub fn stream_after(&self, before: &[u32]) -> TextStream<'_> {
        let mut stream = self.stream();
        before.iter().for_each(|token| drop(stream.push(*token)));
        stream
    }

    /// The text of tokens, as [`TextStream`] gives it.
    pub fn decode(&self, tokens: &[u32]) -> String {
        self.decode_after(&[], tokens)
    }

    /// The text of tokens that come after `before`, as [`Tokenizer::stream_after`] gives it.
    pub fn decode_after(&self, before: &[u32], tokens: &[u32]) -> String {
        let mut stream = self.stream_after(before);
        let text: String = tokens.iter().map(|token| stream.push(*token)).collect();
        text + &stream.finish()
    }

    /// The bytes of one token in the middle of a text, which need not be whole characters: those that a byte token stands
    /// for, a space where the tokenizer writes one in its own way, U+FFFD for a token that is not known, and none for a
    /// special one. What only other tokens can tell is not in them: that a text's first space is left out, or that a
    /// token is the same again or the last. [`TextStream`] knows that.
    pub fn token_bytes(&self, token: u32) -> Vec<u8> {
        match &self.kind {
            Kind::Bytes => u8::try_from(token).map_or_else(|_| "\u{fffd}".into(), |byte| vec![byte]),
            #[cfg(feature = "tokenizers")]
            Kind::Json(json) => json.bytes(token),
        }
    }

    /// Whether a token is one of its own.
    #[cfg(feature = "constrained")]
    pub(crate) fn knows(&self, token: u32) -> bool {
        match &self.kind {
            Kind::Bytes => token < 256,
            #[cfg(feature = "tokenizers")]
            Kind::Json(json) => json.knows(token),
        }
    }

    pub(crate) fn held(&self) -> Held {
        match &self.kind {
            Kind::Bytes => Held::Bytes(Utf8Stream::default()),
            #[cfg(feature = "tokenizers")]
            Kind::Json(json) => Held::Pieces(json.chain()),
        }
    }
}

impl Kind {
    /// The token that is called so; bytes have no names.
    fn token(&self, _name: &str) -> Option<u32> {
        match self {
            Kind::Bytes => None,
            #[cfg(feature = "tokenizers")]
            Kind::Json(json) => json.token(_name),
        }
    }
}

/// Text from tokens as they come, never less than whole characters: bytes that are no UTF-8 come out as U+FFFD, and so do
/// tokens that the tokenizer does not know, each in its place. Special tokens (ends, beginnings) are no text.
///
/// All that it gives, with [`TextStream::finish`], is what the library gives for the whole list without special tokens,
/// with U+FFFD as the word of a token that is not known; but where one byte token of a run is broken, which costs the
/// library the whole run, the other characters of it are there. What was given never changes. It holds back what later
/// tokens may change: the beginning of a character; spaces, or the end of a word, that the decoder leaves out at the end
/// of a text; a beginning of what it replaces. A decoder that wants the joined text for a pattern gets it in parts of
/// 64 KiB, and nothing comes before.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    held: Held,
}

/// What a stream holds back, and knows of the tokens before.
#[derive(Clone)]
pub(crate) enum Held {
    Bytes(Utf8Stream),
    #[cfg(feature = "tokenizers")]
    Pieces(super::decoding::Chain),
}

impl fmt::Debug for TextStream<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TextStream").field("tokenizer", self.tokenizer).finish_non_exhaustive()
    }
}

impl TextStream<'_> {
    /// Takes a token and returns the text that is now complete, maybe none.
    pub fn push(&mut self, token: u32) -> String {
        self.held.push(self.tokenizer, token)
    }

    /// What is left, as of an unfinished character, which is U+FFFD. The next token begins another text.
    pub fn finish(&mut self) -> String {
        self.held.finish(self.tokenizer)
    }
}

impl Held {
    /// As [`TextStream::push`]; the tokenizer is always the same.
    pub(crate) fn push(&mut self, _tokenizer: &Tokenizer, token: u32) -> String {
        match self {
            Held::Bytes(bytes) => bytes.push(token),
            #[cfg(feature = "tokenizers")]
            Held::Pieces(chain) => match &_tokenizer.kind {
                Kind::Json(json) => json.push(chain, token),
                Kind::Bytes => String::new(),
            },
        }
    }

    /// As [`TextStream::finish`].
    pub(crate) fn finish(&mut self, tokenizer: &Tokenizer) -> String {
        let rest = match self {
            Held::Bytes(bytes) => bytes.finish(),
            #[cfg(feature = "tokenizers")]
            Held::Pieces(chain) => chain.finish(),
        };
        *self = tokenizer.held();
        rest
    }
}

#[cfg(feature = "tokenizers")]
fn read(file: &Path) -> Result<Kind> {
    Json::read(file).map(|json| Kind::Json(Box::new(json)))
}

#[cfg(feature = "tokenizers")]
fn read_gguf(file: &Path) -> Result<(Kind, Vec<u32>)> {
    let (gguf, ..) = Gguf::open(file)?;
    super::gguf::read(&gguf).map(|(json, end)| (Kind::Json(Box::new(json)), end))
}

#[cfg(not(feature = "tokenizers"))]
fn read_gguf(file: &Path) -> Result<(Kind, Vec<u32>)> {
    read(file).map(|kind| (kind, Vec::new()))
}

#[cfg(not(feature = "tokenizers"))]
fn read(file: &Path) -> Result<Kind> {
    Err(bad(file, "needs latten's feature \"tokenizers\" (cargo's --features tokenizers), which is off".into()))
}

pub(crate) fn object(path: &Path) -> Result<Value> {
    let text = std::fs::read(path).map_err(|e| ErrorKind::io(path, e))?;
    serde_json::from_slice(&text).map_err(|e| bad(path, format!("not JSON: {e}")))
}

pub(crate) fn bad(path: &Path, message: String) -> Error {
    ErrorKind::Config { path: path.display().to_string(), message }.into()
}
