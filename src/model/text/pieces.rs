//! Steps of a decoder that take pieces, a token's each, and give pieces.

use super::decoding::{decoded, MOST_HELD};
use super::utf8::complete_utf8;
use std::sync::Arc;
use tokenizers::decoders::strip::Strip;
use tokenizers::DecoderWrapper;

/// A step, and what it holds of the pieces that came.
#[derive(Clone)]
pub(crate) enum ChainStep {
    /// Looks at one piece alone.
    Each(Arc<DecoderWrapper>),
    /// Takes up to so many of one character from both ends of each piece.
    Strip(Strip),
    /// Treats the first piece in another way than those after it.
    Placed { by: Arc<DecoderWrapper>, first: bool },
    /// The library's way without a decoder: a space between pieces.
    Spaced { first: bool },
    /// Bytes that are written as `<0xC3>`.
    Fallback { held: Vec<u8>, parts: bool },
    /// Leaves out a piece that is the one before it again.
    Unrepeated { by: Arc<DecoderWrapper>, before: Option<String> },
    /// A suffix ends words: a space in its place, and none after the last piece.
    Suffixed { suffix: String, held: Option<String>, parts: bool },
}

impl ChainStep {
    /// That of a decoder that is neither a sequence nor joins pieces. With `parts` it may give parts of pieces.
    pub(crate) fn new(decoder: &DecoderWrapper, parts: bool) -> Self {
        let by = || Arc::new(decoder.clone());
        match decoder {
            DecoderWrapper::Strip(strip) => ChainStep::Strip(strip.clone()),
            DecoderWrapper::Metaspace(_) | DecoderWrapper::WordPiece(_) => ChainStep::Placed { by: by(), first: true },
            DecoderWrapper::ByteFallback(_) => ChainStep::Fallback { held: Vec::new(), parts },
            DecoderWrapper::CTC(_) => ChainStep::Unrepeated { by: by(), before: None },
            DecoderWrapper::BPE(bpe) => ChainStep::Suffixed { suffix: bpe.suffix.clone(), held: None, parts },
            _ => ChainStep::Each(by()),
        }
    }

    pub(crate) fn spaced() -> Self {
        ChainStep::Spaced { first: true }
    }

    /// Takes a piece, and appends those that are now certain.
    pub(crate) fn push(&mut self, piece: String, out: &mut Vec<String>) {
        match self {
            ChainStep::Each(by) => out.extend(decoded(by, vec![piece])),
            ChainStep::Strip(strip) => out.push(stripped(strip, &piece)),
            ChainStep::Placed { by, first } => match std::mem::take(first) {
                true => out.extend(decoded(by, vec![piece])),
                false => out.extend(later(by, piece)),
            },
            ChainStep::Spaced { first } => out.push(if std::mem::take(first) { piece } else { format!(" {piece}") }),
            ChainStep::Fallback { held, parts } => match fallback_byte(&piece) {
                Some(byte) => {
                    held.push(byte);
                    if *parts {
                        let mut text = String::new();
                        complete_utf8(held, &mut text, |bytes| bytes);
                        out.push(text);
                    } else if held.len() >= MOST_HELD {
                        out.extend(run(held));
                    }
                }
                None => {
                    out.extend(run(held));
                    out.push(piece);
                }
            },
            ChainStep::Unrepeated { by, before } => {
                if before.as_ref() != Some(&piece) {
                    out.extend(decoded(by, vec![piece.clone()]));
                    *before = Some(piece);
                }
            }
            ChainStep::Suffixed { suffix, held, parts } => {
                out.extend(held.take().map(|before| before.replace(&*suffix, " ")));
                // What comes before the suffix is the same in any case.
                let certain = if *parts { piece.find(&*suffix).unwrap_or(piece.len()) } else { 0 };
                out.extend((certain > 0).then(|| piece[..certain].to_string()));
                *held = (!*parts || certain < piece.len()).then(|| piece[certain..].to_string());
            }
        }
    }

    /// Appends what is held, where no piece is to come.
    pub(crate) fn finish(&mut self, out: &mut Vec<String>) {
        match self {
            ChainStep::Fallback { held, .. } => out.extend(run(held)),
            ChainStep::Suffixed { suffix, held, .. } => out.extend(held.take().map(|last| last.replace(&*suffix, ""))),
            _ => {}
        }
    }

    /// What becomes of a piece in the middle of a text, or the byte that it is.
    pub(crate) fn alone(&self, piece: String) -> Result<String, u8> {
        Ok(match self {
            ChainStep::Each(by) | ChainStep::Unrepeated { by, .. } => decoded(by, vec![piece]).concat(),
            ChainStep::Strip(strip) => stripped(strip, &piece),
            ChainStep::Placed { by, .. } => later(by, piece).unwrap_or_default(),
            ChainStep::Spaced { .. } => format!(" {piece}"),
            ChainStep::Fallback { .. } => return fallback_byte(&piece).map_or(Ok(piece), Err),
            ChainStep::Suffixed { suffix, .. } => piece.replace(suffix, " "),
        })
    }
}

/// What a decoder makes of a piece that is not the first.
fn later(by: &Arc<DecoderWrapper>, piece: String) -> Option<String> {
    decoded(by, vec![String::new(), piece]).pop()
}

/// The library panics where more is to be taken than there is.
fn stripped(strip: &Strip, piece: &str) -> String {
    let mut rest = piece;
    for _ in 0..strip.start {
        let Some(shorter) = rest.strip_prefix(strip.content) else { break };
        rest = shorter;
    }
    for _ in 0..strip.stop {
        let Some(shorter) = rest.strip_suffix(strip.content) else { break };
        rest = shorter;
    }
    rest.into()
}

fn fallback_byte(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

/// The text of bytes that no other follows. Where one of them is no text the library gives up all that it was given.
fn run(held: &mut Vec<u8>) -> Vec<String> {
    match String::from_utf8(std::mem::take(held)) {
        Ok(text) if text.is_empty() => Vec::new(),
        Ok(text) => vec![text],
        Err(e) => vec!["\u{fffd}".into(); e.as_bytes().len()],
    }
}
