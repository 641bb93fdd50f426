//! What the decoder of a `tokenizer.json` makes of a list of tokens, made as the tokens come. The library's decoders take
//! the whole list; here each of them is a step that takes piece after piece and keeps no more than what is to come can
//! still change. So a text that was given out never changes, and a token costs the same wherever it comes.

use super::joined::Joined;
use super::pieces::ChainStep;
use super::Utf8Stream;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use tokenizers::{Decoder, DecoderWrapper};

/// Bytes of text that a step holds at most, where only the whole text would tell what it becomes; what is longer is
/// decoded in parts of about this length.
pub(crate) const MOST_HELD: usize = 1 << 16;

/// All steps of a decoder, with what they hold. A clone of a new one is a new text.
#[derive(Clone)]
pub(crate) struct Chain {
    /// What happens to pieces, each a token's at first.
    steps: Vec<ChainStep>,
    /// Where the pieces are joined.
    joint: Joint,
    /// What happens to the text after that.
    joined: Vec<Joined>,
}

#[derive(Clone)]
enum Joint {
    Text,
    /// Pieces are bytes written as characters.
    Bytes(Utf8Stream),
}

impl Chain {
    pub(crate) fn new(decoder: Option<&DecoderWrapper>) -> Self {
        let mut all = Vec::new();
        match decoder {
            Some(decoder) => flatten(decoder, &mut all),
            None => return Chain { steps: vec![ChainStep::spaced()], joint: Joint::Text, joined: Vec::new() },
        }
        let joins = |d: &&DecoderWrapper| matches!(d, DecoderWrapper::Fuse(_) | DecoderWrapper::ByteLevel(_));
        let place = all.iter().position(joins).unwrap_or(all.len());
        let joint = match all.get(place) {
            Some(DecoderWrapper::ByteLevel(_)) => Joint::Bytes(Utf8Stream::default()),
            _ => Joint::Text,
        };
        // Where nothing looks at pieces any more, a step may give parts of them.
        let last = match joint {
            Joint::Text => place.checked_sub(1),
            Joint::Bytes(_) => None,
        };
        let steps = all[..place].iter().enumerate().map(|(i, d)| ChainStep::new(d, Some(i) == last)).collect();
        let joined = all.get(place + 1..).unwrap_or_default().iter().filter_map(|d| Joined::new(d)).collect();
        Chain { steps, joint, joined }
    }

    /// Takes what a token is called, and whether it was added to the model's own vocabulary. Returns the text that is now
    /// certain.
    pub(crate) fn push(&mut self, piece: String, added: bool) -> String {
        let mut pieces = vec![piece];
        for step in &mut self.steps {
            let mut next = Vec::new();
            pieces.into_iter().for_each(|piece| step.push(piece, &mut next));
            pieces = next;
        }
        let text = self.joint.push(pieces, added);
        self.joined.iter_mut().fold(text, |text, step| step.push(text))
    }

    /// What the steps still hold, where nothing is to come. The chain is used up.
    pub(crate) fn finish(&mut self) -> String {
        let mut pieces = Vec::new();
        for step in &mut self.steps {
            let mut next = Vec::new();
            pieces.into_iter().for_each(|piece| step.push(piece, &mut next));
            step.finish(&mut next);
            pieces = next;
        }
        let mut text = self.joint.push(pieces, false);
        if let Joint::Bytes(stream) = &mut self.joint {
            text.push_str(&stream.finish());
        }
        self.joined.iter_mut().fold(text, |text, step| step.push(text) + &step.finish())
    }

    /// The bytes of a token in the middle of a text, whatever is around it.
    pub(crate) fn bytes(&self, piece: String, added: bool) -> Vec<u8> {
        let mut piece = piece;
        for step in &self.steps {
            match step.alone(piece) {
                Ok(next) => piece = next,
                Err(byte) => return vec![byte],
            }
        }
        if let Joint::Bytes(_) = self.joint {
            return written_bytes(&piece, added);
        }
        self.joined.iter().fold(piece, |text, step| step.alone(text)).into_bytes()
    }
}

impl Joint {
    fn push(&mut self, pieces: Vec<String>, added: bool) -> String {
        match self {
            Joint::Text => pieces.concat(),
            Joint::Bytes(stream) => {
                let bytes = pieces.iter().flat_map(|piece| written_bytes(piece, added));
                bytes.map(|byte| stream.push(u32::from(byte))).collect()
            }
        }
    }
}

fn flatten<'a>(decoder: &'a DecoderWrapper, all: &mut Vec<&'a DecoderWrapper>) {
    match decoder {
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().for_each(|d| flatten(d, all)),
        one => all.push(one),
    }
}

/// A decoder of the library on these pieces; U+FFFD where it fails.
pub(crate) fn decoded(decoder: &Arc<DecoderWrapper>, pieces: Vec<String>) -> Vec<String> {
    super::json::guarded(|| decoder.decode_chain(pieces)).unwrap_or_else(|_| vec!["\u{fffd}".into()])
}

/// The bytes that a piece is written for; the piece itself where it is not written so. Of added tokens also where that
/// would be no text: nobody wrote them as bytes.
fn written_bytes(piece: &str, added: bool) -> Vec<u8> {
    static KNOWN: OnceLock<HashMap<char, u8>> = OnceLock::new();
    let known = KNOWN.get_or_init(byte_characters);
    let bytes: Option<Vec<u8>> = piece.chars().map(|c| known.get(&c).copied()).collect();
    bytes.filter(|bytes| !added || std::str::from_utf8(bytes).is_ok()).unwrap_or_else(|| piece.into())
}

/// GPT-2's way to write bytes in a vocabulary of words: printable ones as themselves, the others in order from U+0100 on
/// (Radford et al. 2019).
fn byte_characters() -> HashMap<char, u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..=255u8).filter(|byte| !printable(*byte)).zip('\u{100}'..);
    let own = (0..=255u8).filter(|byte| printable(*byte)).map(|byte| (char::from(byte), byte));
    own.chain(others.map(|(byte, c)| (c, byte))).collect()
}
