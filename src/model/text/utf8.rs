//! Text from bytes as they come. Pure.

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
pub(crate) fn complete_utf8(bytes: &mut Vec<u8>, text: &mut String, broken: impl Fn(usize) -> usize) {
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
    use crate::model::SplitMix64;

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
}
