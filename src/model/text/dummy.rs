//! The space that some tokenizers put before the first word of a text, so that it is the same token there as elsewhere. In a
//! text that goes on it would be one too many.

use std::cell::Cell;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{Model, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Result, Tokenizer};

/// What a tokenizer puts before a text.
pub(crate) struct Dummy {
    /// What it writes there.
    written: String,
    /// Whether that is before spaces become what it writes: then a text's own space stands after it.
    before_all: bool,
    /// Only at the beginning of a text; else after every token that was added to the vocabulary, too.
    once: bool,
}

impl Dummy {
    /// That of a tokenizer that has one.
    pub(crate) fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let prepended = tokenizer.get_normalizer().and_then(prepended);
        let normalized = prepended.map(|written| Dummy { written, before_all: true, once: false });
        normalized.or_else(|| tokenizer.get_pre_tokenizer().and_then(of_words))
    }

    /// Whether there is none of it in a text that goes on after these tokens. Where all are special no text has begun.
    pub(crate) fn is_left_out(&self, tokenizer: &Tokenizer, before: &[u32]) -> bool {
        let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
        let begun = before.iter().any(|token| added.get(token).is_none_or(|added| !added.special));
        begun && (self.once || before.last().is_some_and(|token| !added.contains_key(token)))
    }

    /// The tokens of a text without it.
    pub(crate) fn encode_without(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
        let mut parts = tokenizer.get_added_vocabulary().extract_and_normalize(tokenizer.get_normalizer(), text);
        let is_there = first(&parts).is_some_and(|first| self.is_in(first, text));
        if let Some(words) = tokenizer.get_pre_tokenizer() {
            words.pre_tokenize(&mut parts)?;
        }
        let to_do = Cell::new(is_there && first(&parts).is_some());
        parts.tokenize(|part| {
            let part = part.get();
            let part = if to_do.take() { part.strip_prefix(&self.written).unwrap_or(part) } else { part };
            if part.is_empty() {
                Ok(Vec::new())
            } else {
                tokenizer.get_model().tokenize(part)
            }
        })?;
        Ok(parts.into_encoding(None, 0, OffsetType::None)?.get_ids().to_vec())
    }

    /// Whether it is, or will be, at the beginning of a text, and stands for no space of the text's own.
    fn is_in(&self, normalized: &str, text: &str) -> bool {
        let own = |rest: &str| rest.starts_with(' ') || rest.starts_with(&self.written);
        match self.before_all {
            true => normalized.strip_prefix(&self.written).is_some_and(|rest| own(rest) || !text.starts_with(' ')),
            false => !own(normalized) && !text.starts_with(' '),
        }
    }
}

/// The first part, unless that is a token already.
fn first(parts: &PreTokenizedString) -> Option<&str> {
    let parts = parts.get_splits(OffsetReferential::Original, OffsetType::None);
    parts.first().filter(|(_, _, tokens)| tokens.is_none()).map(|(text, ..)| *text)
}

fn prepended(normalizer: &NormalizerWrapper) -> Option<String> {
    match normalizer {
        NormalizerWrapper::Prepend(prepend) => Some(prepend.prepend.clone()).filter(|written| !written.is_empty()),
        NormalizerWrapper::Sequence(all) => all.as_ref().iter().find_map(prepended),
        _ => None,
    }
}

fn of_words(words: &PreTokenizerWrapper) -> Option<Dummy> {
    match words {
        PreTokenizerWrapper::Sequence(all) => all.as_ref().iter().find_map(of_words),
        PreTokenizerWrapper::Metaspace(space) if space.prepend_scheme != PrependScheme::Never => {
            let once = space.prepend_scheme == PrependScheme::First;
            Some(Dummy { written: space.get_replacement().into(), before_all: false, once })
        }
        // A space, as its bytes are written.
        PreTokenizerWrapper::ByteLevel(bytes) if bytes.add_prefix_space => {
            Some(Dummy { written: "\u{120}".into(), before_all: false, once: false })
        }
        _ => None,
    }
}
