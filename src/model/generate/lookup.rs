//! Drafts from the text itself: what followed the last time that its end was seen. Pure.

/// At most `most` tokens that may follow `tokens`: those after the last place where its last `max_ngram` tokens stood
/// before, or fewer of them, but at least `min_ngram`. Where they run up to the end of `tokens` they go on with
/// themselves, as a text that repeats does. None where there is no such place.
pub(crate) fn look_up(tokens: &[u32], max_ngram: usize, min_ngram: usize, most: usize) -> Vec<u32> {
    let longest = max_ngram.min(tokens.len().saturating_sub(1));
    for n in (min_ngram.max(1)..=longest).rev() {
        let (before, end) = (&tokens[..tokens.len() - 1], &tokens[tokens.len() - n..]);
        if let Some(found) = before.windows(n).rposition(|window| window == end) {
            let period = tokens.len() - (found + n);
            return (0..most).map(|i| tokens[found + n + i % period]).collect();
        }
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str, max_ngram: usize, min_ngram: usize, most: usize) -> String {
        let tokens: Vec<u32> = text.bytes().map(u32::from).collect();
        look_up(&tokens, max_ngram, min_ngram, most).iter().map(|token| *token as u8 as char).collect()
    }

    #[test]
    fn the_longest_end_counts_and_its_last_place() {
        assert_eq!(words("the cat, the dog, the c", 5, 1, 4), "at, ");
        // Of one token, the last place.
        assert_eq!(words("abacada", 1, 1, 3), "dad");
        assert_eq!(words("xyz1 yz2 xyz", 3, 1, 2), "1 ");
        assert_eq!(words("xyz1 yz2 xyz", 2, 1, 2), "2 ");
        assert_eq!(words("xyz1 yz2 xyz", 3, 1, 0), "");
    }

    #[test]
    fn what_repeats_goes_on() {
        assert_eq!(words("abcabc", 3, 1, 8), "abcabcab");
        assert_eq!(words("aa", 3, 1, 5), "aaaaa");
        assert_eq!(words("na na n", 4, 2, 6), "a na n");
    }

    #[test]
    fn what_was_never_seen_gives_nothing() {
        for (text, max, min) in [("", 3, 1), ("a", 3, 1), ("abc", 3, 1), ("abca", 3, 2), ("abcab", 0, 0)] {
            assert_eq!(words(text, max, min, 4), "", "{text}");
        }
        assert_eq!(words("abca", 3, 0, 2), "bc");
        assert_eq!(words("abca", usize::MAX, 1, 2), "bc");
    }
}
