//! What rank 0 tells the others, as bytes: 32-bit words, and texts behind their lengths. Pure.
#![warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use super::SessionOptions;
use crate::attention::SplitPolicy;
use crate::cache::{Mirror, MirroredSequence, PageCopy};
use crate::gpu::DType;
use crate::parallel::Transfer;

/// A call of the session of rank 0, as far as it concerns the others.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum RankMessage {
    /// The first: what all sessions are made with.
    Begin { options: SessionOptions, transfer: Transfer },
    /// Tokens through all layers.
    Step { ids: Vec<u32>, policy: SplitPolicy, mirror: Mirror },
    /// Each writes its rows to a file of its own, with these tokens of each sequence.
    Save { path: String, tokens: Vec<Vec<u32>>, mirror: Mirror },
    /// Each reads its rows from its file.
    Load { path: String, mirror: Mirror },
    /// The session is gone.
    End,
}

/// MessageWords as they are written.
#[derive(Default)]
struct MessageWords(Vec<u8>);

impl MessageWords {
    fn word(&mut self, word: u32) {
        self.0.extend_from_slice(&word.to_le_bytes());
    }

    /// A size, which is within 64 bits.
    fn size(&mut self, size: usize) {
        self.0.extend_from_slice(&(size as u64).to_le_bytes());
    }

    fn words(&mut self, words: &[u32]) {
        self.size(words.len());
        self.0.extend_from_slice(bytemuck::cast_slice(words));
    }

    fn text(&mut self, text: &str) {
        self.size(text.len());
        self.0.extend_from_slice(text.as_bytes());
    }

    fn mirror(&mut self, mirror: &Mirror) {
        self.size(mirror.sequences.len());
        for MirroredSequence { pages, numbers } in &mirror.sequences {
            self.words(pages);
            numbers.iter().for_each(|number| self.word(*number));
        }
        self.size(mirror.copies.len());
        for copies in &mirror.copies {
            let pages: Vec<u32> = copies.iter().flat_map(|copy| [copy.source, copy.target]).collect();
            self.words(&pages);
        }
    }

    fn options(&mut self, options: &SessionOptions) {
        let SessionOptions { max_batch, chunk, cache_tokens, page_size, kv_dtype, window, keep_first, .. } = options;
        let SessionOptions { max_tokens, prefill, .. } = options;
        [*max_batch, *chunk, *cache_tokens, *page_size, *keep_first].iter().for_each(|size| self.size(*size));
        for number in [window, max_tokens] {
            self.size(number.map_or(0, |number| number.saturating_add(1)));
        }
        self.text(&kv_dtype.to_string());
        self.text(&prefill.to_string());
    }
}

/// Bytes that are read, from the front.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn word(&mut self) -> Option<u32> {
        self.bytes(4)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
    }

    fn size(&mut self) -> Option<usize> {
        usize::try_from(u64::from_le_bytes(*self.bytes(8)?.first_chunk()?)).ok()
    }

    fn words(&mut self) -> Option<Vec<u32>> {
        let count = self.size()?;
        let bytes = self.bytes(count.checked_mul(4)?)?;
        Some(bytes.chunks_exact(4).filter_map(|b| b.first_chunk()).map(|b| u32::from_le_bytes(*b)).collect())
    }

    /// As many as are said to follow, each of one byte at least.
    fn list<T>(&mut self, mut one: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.size().filter(|count| *count <= self.0.len())?;
        (0..count).map(|_| one(self)).collect()
    }

    fn text(&mut self) -> Option<&'a str> {
        let count = self.size()?;
        std::str::from_utf8(self.bytes(count)?).ok()
    }

    fn mirror(&mut self) -> Option<Mirror> {
        let sequences = self.list(|rest| {
            let pages = rest.words()?;
            let mut numbers = [0; 5];
            for number in &mut numbers {
                *number = rest.word()?;
            }
            Some(MirroredSequence { pages, numbers })
        })?;
        let copies = self.list(|rest| {
            let pages = rest.words()?;
            let pairs = pages.chunks_exact(2).filter_map(|pair| pair.first_chunk());
            Some(pairs.map(|&[source, target]| PageCopy { source, target }).collect())
        })?;
        Some(Mirror { sequences, copies })
    }

    fn options(&mut self) -> Option<SessionOptions> {
        let (max_batch, chunk, cache_tokens) = (self.size()?, self.size()?, self.size()?);
        let (page_size, keep_first) = (self.size()?, self.size()?);
        let (window, max_tokens) = (self.size()?.checked_sub(1), self.size()?.checked_sub(1));
        let kv_dtype: DType = self.text()?.parse().ok()?;
        let prefill = self.text()?.parse().ok()?;
        let sizes = SessionOptions { max_batch, chunk, cache_tokens, page_size, ..Default::default() };
        Some(SessionOptions { kv_dtype, window, keep_first, max_tokens, prefill, ..sizes })
    }
}

impl RankMessage {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut words = MessageWords::default();
        match self {
            RankMessage::Begin { options, transfer } => {
                words.word(0);
                words.options(options);
                words.word(match transfer {
                    Transfer::F32 => 0,
                    Transfer::F16 => 1,
                });
            }
            RankMessage::Step { ids, policy, mirror } => {
                words.word(1);
                words.words(ids);
                let (kind, number) = match *policy {
                    SplitPolicy::Auto => (0, 0),
                    SplitPolicy::FixedTokens(tokens) => (1, tokens),
                    SplitPolicy::Count(parts) => (2, parts),
                    SplitPolicy::Off => (3, 0),
                };
                words.word(kind);
                words.size(number);
                words.mirror(mirror);
            }
            RankMessage::Save { path, tokens, mirror } => {
                words.word(2);
                words.text(path);
                words.size(tokens.len());
                tokens.iter().for_each(|tokens| words.words(tokens));
                words.mirror(mirror);
            }
            RankMessage::Load { path, mirror } => {
                words.word(3);
                words.text(path);
                words.mirror(mirror);
            }
            RankMessage::End => words.word(4),
        }
        words.0
    }

    /// None of what is no message.
    pub(super) fn decode(bytes: &[u8]) -> Option<RankMessage> {
        let mut rest = Rest(bytes);
        let message = match rest.word()? {
            0 => {
                let options = rest.options()?;
                let transfer = if rest.word()? == 0 { Transfer::F32 } else { Transfer::F16 };
                RankMessage::Begin { options, transfer }
            }
            1 => {
                let ids = rest.words()?;
                let policy = match (rest.word()?, rest.size()?) {
                    (0, _) => SplitPolicy::Auto,
                    (1, tokens) => SplitPolicy::FixedTokens(tokens),
                    (2, parts) => SplitPolicy::Count(parts),
                    _ => SplitPolicy::Off,
                };
                RankMessage::Step { ids, policy, mirror: rest.mirror()? }
            }
            2 => {
                let path = rest.text()?.into();
                let tokens = rest.list(|rest| rest.words())?;
                RankMessage::Save { path, tokens, mirror: rest.mirror()? }
            }
            3 => RankMessage::Load { path: rest.text()?.into(), mirror: rest.mirror()? },
            4 => RankMessage::End,
            _ => return None,
        };
        rest.0.is_empty().then_some(message)
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::model::PrefillPath;

    fn messages() -> Vec<RankMessage> {
        let sequence = |n: u32| MirroredSequence { pages: (0..n).collect(), numbers: [n, 1, 2, 3, u32::MAX] };
        let copies = vec![vec![PageCopy { source: 1, target: 2 }, PageCopy { source: 3, target: 4 }], vec![]];
        let mirror = Mirror { sequences: vec![sequence(3), sequence(0)], copies };
        let options = SessionOptions {
            window: Some(0),
            prefill: PrefillPath::From(70),
            kv_dtype: DType::BF16,
            ..Default::default()
        };
        let policies = [SplitPolicy::Auto, SplitPolicy::FixedTokens(64), SplitPolicy::Count(3), SplitPolicy::Off];
        let step = |policy| RankMessage::Step { ids: vec![1, u32::MAX], policy, mirror: mirror.clone() };
        let mut all: Vec<RankMessage> = policies.into_iter().map(step).collect();
        for transfer in [Transfer::F32, Transfer::F16] {
            all.push(RankMessage::Begin { options, transfer });
            all.push(RankMessage::Begin { options: SessionOptions::default(), transfer });
        }
        let tokens = vec![vec![5, 6], vec![]];
        all.push(RankMessage::Save { path: "a/b c".into(), tokens, mirror: mirror.clone() });
        all.push(RankMessage::Load { path: String::new(), mirror });
        all.push(RankMessage::End);
        all
    }

    #[test]
    fn what_is_sent_is_what_comes() {
        for message in messages() {
            assert_eq!(RankMessage::decode(&message.encode()), Some(message));
        }
    }

    #[test]
    fn what_is_cut_changed_or_longer_is_no_panic() {
        let mut random = fastrand::Rng::with_seed(7);
        for message in messages() {
            let bytes = message.encode();
            for end in 0..bytes.len() {
                assert_eq!(RankMessage::decode(&bytes[..end]), None, "{message:?} cut at {end}");
            }
            assert_eq!(RankMessage::decode(&[&bytes[..], &[0]].concat()), None);
            for _ in 0..200 {
                let mut changed = bytes.clone();
                let at = random.usize(..changed.len());
                changed[at] = random.u8(..);
                let _ = RankMessage::decode(&changed); // whatever it is
            }
        }
    }
}
