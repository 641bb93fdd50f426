//! Steps of a decoder after the one that joins the pieces: they take a text in parts, and give its parts.

use super::decoding::{decoded, MOST_HELD};
use std::sync::Arc;
use tokenizers::decoders::strip::Strip;
use tokenizers::DecoderWrapper;

/// A step, and what it holds of the text.
#[derive(Clone)]
pub(crate) enum Joined {
    /// Looks at each character alone.
    Each(Arc<DecoderWrapper>),
    /// Takes up to so many of one character from both ends of the text. `held` of them may be its end.
    Strip { strip: Strip, left: usize, held: usize },
    /// Another string in the place of one.
    Literal { from: String, to: String, held: String },
    /// Wants the whole text.
    Whole { by: Arc<DecoderWrapper>, held: String },
    /// Changes the text only where all of it is `<0x` and two digits and `>`.
    Short { by: Arc<DecoderWrapper>, held: Option<String> },
}

/// Of `<0xC3>`.
const BYTE_LENGTH: usize = 6;

impl Joined {
    /// None where a decoder does nothing to a joined text.
    pub(crate) fn new(decoder: &DecoderWrapper) -> Option<Self> {
        let by = Arc::new(decoder.clone());
        Some(match decoder {
            DecoderWrapper::Fuse(_) => return None,
            DecoderWrapper::WordPiece(words) if !words.cleanup => return None,
            DecoderWrapper::Metaspace(_) => Joined::Each(by),
            DecoderWrapper::Strip(strip) => Joined::Strip { strip: strip.clone(), left: strip.start, held: 0 },
            DecoderWrapper::ByteFallback(_) => Joined::Short { by, held: Some(String::new()) },
            DecoderWrapper::Replace(replace) => match literal(decoder) {
                Some(from) => Joined::Literal { from, to: replace.content.clone(), held: String::new() },
                None => Joined::Whole { by, held: String::new() },
            },
            _ => Joined::Whole { by, held: String::new() },
        })
    }

    /// Takes more of the text. Returns what is now certain.
    pub(crate) fn push(&mut self, text: String) -> String {
        match self {
            Joined::Each(by) => decoded(by, vec![text]).concat(),
            Joined::Strip { strip, left, held } => strip_part(strip, left, held, &text),
            Joined::Literal { from, to, held } => {
                held.push_str(&text);
                let mut out = String::new();
                while let Some(at) = held.find(&*from) {
                    out.push_str(&held[..at]);
                    out.push_str(to);
                    held.drain(..at + from.len());
                }
                let begun = begun(held, from);
                out.extend(held.drain(..held.len() - begun));
                out
            }
            Joined::Whole { by, held } => {
                held.push_str(&text);
                match held.len() > MOST_HELD {
                    true => decoded(by, vec![std::mem::take(held)]).concat(),
                    false => String::new(),
                }
            }
            Joined::Short { held, .. } => {
                let Some(before) = held else { return text };
                before.push_str(&text);
                match before.len() > BYTE_LENGTH {
                    true => held.take().unwrap_or_default(),
                    false => String::new(),
                }
            }
        }
    }

    /// What is held, where no more text is to come.
    pub(crate) fn finish(&mut self) -> String {
        match self {
            Joined::Each(_) | Joined::Strip { .. } => String::new(),
            Joined::Literal { held, .. } => std::mem::take(held),
            Joined::Whole { by, held } => decoded(by, vec![std::mem::take(held)]).concat(),
            Joined::Short { by, held } => held.take().map_or_else(String::new, |text| decoded(by, vec![text]).concat()),
        }
    }

    /// What becomes of a part in the middle of a text, by itself.
    pub(crate) fn alone(&self, text: String) -> String {
        match self {
            Joined::Each(by) => decoded(by, vec![text]).concat(),
            Joined::Literal { from, to, .. } => text.replace(from, to),
            Joined::Strip { .. } | Joined::Whole { .. } | Joined::Short { .. } => text,
        }
    }
}

/// The string that a decoder looks for, if it is one.
fn literal(decoder: &DecoderWrapper) -> Option<String> {
    let said = serde_json::to_value(decoder).ok()?;
    let from = said.get("pattern")?.get("String")?.as_str()?;
    (!from.is_empty()).then(|| from.to_string())
}

/// Bytes at the end of a text that may be the beginning of a string; all of it is not there.
fn begun(text: &str, string: &str) -> usize {
    let lengths = string.char_indices().map(|(at, _)| at).rev();
    lengths.into_iter().find(|length| text.ends_with(&string[..*length])).unwrap_or(0)
}

fn strip_part(strip: &Strip, left: &mut usize, held: &mut usize, text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if c != strip.content {
            *left = 0;
            out.extend(std::iter::repeat_n(strip.content, std::mem::take(held)));
            out.push(c);
        } else if *left > 0 {
            *left -= 1;
        } else if *held < strip.stop {
            *held += 1;
        } else {
            out.push(c);
        }
    }
    out
}
