//! Stop strings in bytes that come piece by piece. Pure.

use crate::error::{ErrorKind, Result};

/// Looks for the first of some strings in a text that comes piece by piece, and holds back what may be the beginning of one. What a
/// [`Request`](super::Request) has; for loops of one's own, over the bytes of their tokens.
///
/// ```
/// use latten::model::StopStrings;
/// # fn main() -> latten::Result<()> {
/// let mut stops = StopStrings::new(&[b"\n\n".to_vec()])?;
/// let mut text = Vec::new();
/// assert_eq!(stops.push(b"one\n", &mut text), None);
/// assert_eq!(text, b"one"); // the line's end may be half of a string
/// assert_eq!(stops.push(b"\nrest", &mut text), Some(0));
/// assert_eq!(text, b"one");
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default)]
pub struct StopStrings {
    strings: Vec<Stop>,
    /// The end of what came that may be the beginning of a string: the longest of the matches under way.
    held: Vec<u8>,
}

/// One string, found as Knuth, Morris and Pratt do: each byte costs about one comparison.
#[derive(Debug, Clone)]
struct Stop {
    bytes: Vec<u8>,
    /// For each length of a match: that of the longest shorter one that ends there too.
    shorter: Vec<usize>,
    matched: usize,
}

impl StopStrings {
    /// For strings in bytes; with none nothing is held back.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for an empty one.
    pub fn new(strings: &[Vec<u8>]) -> Result<Self> {
        if let Some(i) = strings.iter().position(Vec::is_empty) {
            return Err(ErrorKind::argument("stop_strings", format!("number {i} is empty")));
        }
        Ok(Self::of(strings))
    }

    /// Of strings of which none is empty.
    pub(super) fn of(strings: &[Vec<u8>]) -> Self {
        StopStrings { strings: strings.iter().map(|bytes| Stop::new(bytes)).collect(), held: Vec::new() }
    }

    /// Takes some bytes and appends to `text` what is now known to come before any of the strings. Returns which string
    /// they complete, if any: the one that is complete first, of several the longest. Nothing is to come after it.
    pub fn push(&mut self, bytes: &[u8], text: &mut Vec<u8>) -> Option<usize> {
        for &byte in bytes {
            self.held.push(byte);
            let mut complete: Option<usize> = None;
            for stop in &mut self.strings {
                stop.push(byte);
                let longer = |other: usize| stop.bytes.len() > other;
                if stop.matched == stop.bytes.len() && complete.is_none_or(longer) {
                    complete = Some(stop.bytes.len());
                }
            }
            let held = complete.unwrap_or_else(|| self.strings.iter().map(|stop| stop.matched).max().unwrap_or(0));
            text.extend(self.held.drain(..self.held.len() - held));
            if let Some(length) = complete {
                self.held.clear();
                return self.strings.iter().position(|s| s.bytes.len() == length && s.matched == length);
            }
        }
        None
    }

    /// Appends to `text` what is held back, where nothing is to come.
    pub fn finish(&mut self, text: &mut Vec<u8>) {
        text.append(&mut self.held);
    }
}

impl Stop {
    fn new(bytes: &[u8]) -> Self {
        let mut stop = Stop { bytes: bytes.to_vec(), shorter: vec![0; bytes.len() + 1], matched: 0 };
        for (i, byte) in bytes.iter().enumerate().skip(1) {
            stop.push(*byte);
            stop.shorter[i + 1] = stop.matched;
        }
        stop.matched = 0;
        stop
    }

    fn push(&mut self, byte: u8) {
        while self.bytes.get(self.matched) != Some(&byte) {
            if self.matched == 0 {
                return;
            }
            self.matched = self.shorter[self.matched];
        }
        self.matched += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SplitMix64;

    /// As documented, by looking at all of the text again for every byte.
    fn plain(strings: &[Vec<u8>], text: &[u8]) -> (Vec<u8>, Option<usize>) {
        for end in 1..=text.len() {
            let ends = |s: &&Vec<u8>| text[..end].ends_with(s);
            let longest = strings.iter().filter(ends).map(Vec::len).max();
            if let Some(length) = longest {
                let which = strings.iter().position(|s| s.len() == length && text[..end].ends_with(s));
                return (text[..end - length].to_vec(), which);
            }
        }
        (text.to_vec(), None)
    }

    #[test]
    fn strings_are_found_however_the_bytes_are_cut_and_no_byte_of_them_comes_out() {
        let mut random = SplitMix64::new(8);
        let mut below = |n: u64| (random.next_u64() % n) as usize;
        let (mut found, mut held_back) = (0, 0);
        for case in 0..20_000 {
            let letters = 2 + below(2) as u64;
            let mut word =
                |most: u64| -> Vec<u8> { (0..1 + below(most)).map(|_| b'a' + below(letters) as u8).collect() };
            let strings: Vec<Vec<u8>> = (0..1 + case % 3).map(|_| word(6)).collect();
            let bytes = word(24);
            let (want, which) = plain(&strings, &bytes);
            let mut stops = StopStrings::of(&strings);
            let (mut text, mut rest, mut got) = (Vec::new(), &bytes[..], None);
            while !rest.is_empty() && got.is_none() {
                let (now, later) = rest.split_at((1 + below(4)).min(rest.len()));
                got = stops.push(now, &mut text);
                rest = later;
                assert!(want.starts_with(&text), "{strings:?} in {bytes:?}: {text:?} came out");
                held_back += stops.held.len();
                // No more is held back than may be a beginning.
                let end = &stops.held[..];
                assert!(end.is_empty() || strings.iter().any(|s| s.starts_with(end)), "{strings:?}: {end:?} held");
            }
            stops.finish(&mut text);
            assert_eq!((text, got), (want, which), "{strings:?} in {bytes:?}");
            found += usize::from(which.is_some());
        }
        assert!(found > 2000 && found < 19_800 && held_back > 1000, "{found} found, {held_back} bytes held back");
    }

    #[test]
    fn without_strings_nothing_is_held_back() {
        let mut text = Vec::new();
        assert_eq!(StopStrings::default().push(b"any", &mut text), None);
        let error = StopStrings::new(&[b"a".to_vec(), Vec::new()]).unwrap_err();
        assert_eq!(error.to_string(), "stop_strings: number 1 is empty");
        assert_eq!(text, b"any");
    }
}
