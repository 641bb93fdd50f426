//! From a prompt to text: the generation loop, its random numbers, and bytes as tokens.

use super::owned::Owned;
use super::session::{Draw, Session, Want};
use crate::cache::SeqId;
use crate::error::{ErrorKind, Result};
use crate::nn::Sampling;
use std::ops::ControlFlow;

/// How to continue a prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GenerateOptions {
    /// Tokens to make, unless the callback stops before.
    pub max_new_tokens: usize,
    /// Temperature and nucleus; the default is greedy.
    pub sampling: Sampling,
    /// Start of the random numbers: the same seed gives the same tokens on the same device.
    pub seed: u64,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions { max_new_tokens: 100, sampling: Sampling::default(), seed: 0 }
    }
}

/// Continues a prompt in a sequence of its own, which is gone at the end. `on_token` gets each token as it comes and
/// may stop. Returns the new tokens.
///
/// Errors: [`ErrorKind::Argument`] for an empty prompt, or where prompt and new tokens exceed
/// [`Session::max_positions`]; else as [`Session::feed`].
pub async fn generate(
    session: &mut Session,
    prompt: &[u32],
    options: GenerateOptions,
    on_token: impl FnMut(u32) -> ControlFlow<()>,
) -> Result<Vec<u32>> {
    let mut own = Owned::new(session);
    let sequence = own.insert();
    continue_sequence(own.session, sequence, prompt, options, on_token).await
}

/// Feeds `input` to a sequence, with whatever it holds before it, and then what is drawn: [`generate()`] in a sequence of the
/// caller's. The last token returned is not fed: it belongs before the next input, and at the end of the tokens that
/// [`Session::save`] is given. After an error the sequence holds what was fed.
///
/// Errors: as [`generate()`]; [`ErrorKind::UnknownSequence`].
pub async fn continue_sequence(
    session: &mut Session,
    sequence: SeqId,
    input: &[u32],
    options: GenerateOptions,
    mut on_token: impl FnMut(u32) -> ControlFlow<()>,
) -> Result<Vec<u32>> {
    check_positions(session, sequence, input, options.max_new_tokens)?;
    let mut random = SplitMix64::new(options.seed);
    let mut tokens = Vec::new();
    while tokens.len() < options.max_new_tokens {
        let input = tokens.last().map_or(input, std::slice::from_ref);
        let draw = Draw { sampling: options.sampling, u: random.uniform() };
        let fed = session.feed(&[(sequence, input)], Want::Token(&[draw])).await?;
        tokens.extend(&fed.tokens);
        if fed.tokens.iter().any(|&token| on_token(token).is_break()) {
            break;
        }
    }
    Ok(tokens)
}

/// Refuses new tokens, after what a sequence holds and `input`, for which the model has no positions.
pub(super) fn check_positions(session: &Session, sequence: SeqId, input: &[u32], max_new_tokens: usize) -> Result<()> {
    let most = session.max_positions();
    let before = session.len(sequence)?.saturating_add(input.len());
    // The last token is not fed.
    if before.saturating_add(max_new_tokens) > most.saturating_add(1) {
        let why = format!("{max_new_tokens} after a prompt of {before} exceed {}, {most}", session.what_is_most());
        return Err(ErrorKind::argument("max_new_tokens", why));
    }
    Ok(())
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, seeded, and the same on every machine.
#[derive(Debug, Clone)]
pub struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    /// Starts at a seed; any is as good as another.
    pub fn new(seed: u64) -> Self {
        SplitMix64 { state: seed }
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1): 24 bits, so exact in f32.
    pub fn uniform(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 / (1u32 << 24) as f32
    }
}

/// Text from byte tokens as they come: never splits a character, and shows bytes that are no UTF-8 as U+FFFD.
#[derive(Debug, Clone, Default)]
pub struct Utf8Stream {
    pending: Vec<u8>,
}

impl Utf8Stream {
    /// Takes a byte token and returns the text that is now complete, maybe none. Tokens above 255 are no bytes and
    /// come out as U+FFFD.
    pub fn push(&mut self, token: u32) -> String {
        match u8::try_from(token) {
            Ok(byte) => {
                self.pending.push(byte);
                self.complete()
            }
            Err(_) => self.finish() + "\u{fffd}",
        }
    }

    /// What is left of an unfinished character, as U+FFFD.
    pub fn finish(&mut self) -> String {
        let text = self.complete();
        let rest = std::mem::take(&mut self.pending);
        if rest.is_empty() {
            text
        } else {
            text + "\u{fffd}"
        }
    }

    fn complete(&mut self) -> String {
        let mut text = String::new();
        complete_utf8(&mut self.pending, &mut text, |_| 1);
        text
    }
}

/// Moves what is complete of `bytes` to `text`. So many bytes that are no UTF-8 become `broken` of them times U+FFFD.
pub(super) fn complete_utf8(bytes: &mut Vec<u8>, text: &mut String, broken: impl Fn(usize) -> usize) {
    loop {
        let (valid, invalid) = match std::str::from_utf8(bytes) {
            Ok(_) => (bytes.len(), None),
            Err(e) => (e.valid_up_to(), e.error_len()),
        };
        text.push_str(&String::from_utf8_lossy(&bytes[..valid]));
        bytes.drain(..valid + invalid.unwrap_or(0));
        match invalid {
            None => return,
            Some(count) => text.extend(std::iter::repeat_n('\u{fffd}', broken(count))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(bytes: &[u8]) -> Vec<String> {
        let mut stream = Utf8Stream::default();
        let mut parts: Vec<String> = bytes.iter().map(|&b| stream.push(u32::from(b))).collect();
        parts.push(stream.finish());
        parts
    }

    #[test]
    fn text_comes_in_whole_characters() {
        assert_eq!(stream("aé€😀".as_bytes()), ["a", "", "é", "", "", "€", "", "", "", "😀", ""]);
        assert_eq!(stream(&[0xe2, 0x82]), ["", "", "\u{fffd}"]);
    }

    #[test]
    fn any_bytes_give_what_a_lossy_conversion_of_them_all_gives() {
        let mut random = SplitMix64::new(3);
        for _ in 0..2000 {
            let pieces: [&[u8]; 8] =
                [b"a", "é".as_bytes(), "€".as_bytes(), "😀".as_bytes(), &[0xff], &[0xe2, 0x82], &[0xf0, 0x9f], &[0x80]];
            let bytes: Vec<u8> = (0..6).flat_map(|_| pieces[(random.next_u64() % 8) as usize].to_vec()).collect();
            assert_eq!(stream(&bytes).concat(), String::from_utf8_lossy(&bytes), "{bytes:x?}");
        }
    }

    #[test]
    fn random_numbers_are_the_published_ones() {
        let mut random = SplitMix64::new(1_234_567);
        let got: Vec<u64> = (0..3).map(|_| random.next_u64()).collect();
        assert_eq!(got, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
        assert!((0..10_000).map(|_| random.uniform()).all(|u| (0.0..1.0).contains(&u)));
    }
}
