//! Streams against what the library makes of the whole list, for every kind of decoder.

use super::*;
use crate::common::Rng;
use latten::model::TextStream;
use serde_json::{json, Value};
use std::panic::{catch_unwind, AssertUnwindSafe};

/// Of words.json: U+FFFD as a word, for ids that are not known.
const UNKNOWN: &str = "\u{fffd}";

/// A tokenizer of latten's, and the library's own.
pub(crate) struct Pair {
    pub(crate) name: String,
    pub(crate) ours: Tokenizer,
    pub(crate) library: tokenizers::Tokenizer,
    /// The decoder falls back to bytes and gives their characters one by one.
    bytes_apart: bool,
}

impl Pair {
    pub(crate) fn new(name: &str, json: &Value, bytes_apart: bool) -> Pair {
        let text = json.to_string();
        let files = [("config.json", "{}"), ("tokenizer.json", &text)];
        let ours = Folder::new(&name.replace([' ', ','], "-"), &files).tokenizer().unwrap();
        let library = tokenizers::Tokenizer::from_bytes(&text).unwrap();
        Pair { name: name.into(), ours, library, bytes_apart }
    }

    pub(crate) fn vocabulary(&self) -> u32 {
        self.library.get_vocab_size(true) as u32
    }

    /// The library's text, with U+FFFD as the word of each id that is not known, and for each broken byte of a run where
    /// the library would have it for all bytes of the run. None where the library panics.
    fn whole(&self, ids: &[u32]) -> Option<String> {
        let unknown = self.library.token_to_id(UNKNOWN).unwrap();
        let known = |id: &u32| if self.library.id_to_token(*id).is_some() { *id } else { unknown };
        let mut ids: Vec<u32> = ids.iter().map(known).collect();
        if self.bytes_apart {
            self.break_runs(&mut ids, unknown);
        }
        catch_unwind(AssertUnwindSafe(|| self.library.decode(&ids, true).unwrap())).ok()
    }

    fn break_runs(&self, ids: &mut Vec<u32>, unknown: u32) {
        let special = self.library.get_added_tokens_decoder();
        ids.retain(|id| special.get(id).is_none_or(|added| !added.special));
        let byte = |id: u32| {
            let piece = self.library.id_to_token(id)?;
            let digits = piece.strip_prefix("<0x")?.strip_suffix('>').filter(|digits| digits.len() == 2)?;
            u8::from_str_radix(digits, 16).ok()
        };
        let mut start = 0;
        while start < ids.len() {
            let run: Vec<u8> = ids[start..].iter().map_while(|id| byte(*id)).collect();
            let mut at = start;
            for part in run.utf8_chunks() {
                at += part.valid().len();
                ids[at..at + part.invalid().len()].fill(unknown);
                at += part.invalid().len();
            }
            start += run.len() + 1;
        }
    }
}

fn with_decoder(file: &str, decoder: Value) -> Value {
    let mut json: Value = serde_json::from_str(&vector(file)).unwrap();
    json["decoder"] = decoder;
    let added = json["added_tokens"].as_array_mut().unwrap();
    if added.iter().all(|token| token["content"] != UNKNOWN) {
        let mut word = added[0].clone();
        (word["content"], word["special"], word["id"]) = (json!(UNKNOWN), json!(false), json!(264));
        added.push(word);
    }
    json
}

/// Every kind of decoder, alone and in sequences.
pub(crate) fn all() -> Vec<Pair> {
    let replace = json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "});
    let pattern = json!({"type": "Replace", "pattern": {"Regex": "l+o?| +"}, "content": "_"});
    let (fallback, fuse) = (json!({"type": "ByteFallback"}), json!({"type": "Fuse"}));
    let strip = |start: usize, stop: usize| json!({"type": "Strip", "content": " ", "start": start, "stop": stop});
    let metaspace =
        |scheme: &str| json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": true});
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let piece = |cleanup: bool| json!({"type": "WordPiece", "prefix": "##", "cleanup": cleanup});
    let ctc =
        |cleanup: bool| json!({"type": "CTC", "pad_token": "<0x00>", "word_delimiter_token": "|", "cleanup": cleanup});
    let suffix = json!({"type": "BPEDecoder", "suffix": "</w>"});
    let sequence = |all: &[&Value]| json!({"type": "Sequence", "decoders": all});
    let long = json!({"type": "Replace", "pattern": {"String": "lolo w"}, "content": "\u{2581}"});
    let words = [
        ("llama", sequence(&[&replace, &fallback, &fuse, &strip(1, 0)]), true),
        ("gemma", sequence(&[&replace, &fallback, &fuse]), true),
        ("both ends", sequence(&[&replace, &fallback, &fuse, &strip(2, 2)]), true),
        ("fallback first", sequence(&[&fallback, &metaspace("never")]), false),
        ("strip pieces", sequence(&[&replace, &fallback, &strip(1, 1)]), false),
        ("pattern", sequence(&[&replace, &pattern, &fallback]), true),
        ("pattern of all", sequence(&[&replace, &fuse, &pattern, &strip(0, 1)]), false),
        ("literal of all", sequence(&[&sequence(&[&replace, &fuse]), &long, &fallback, &metaspace("always")]), false),
        ("metaspace", metaspace("always"), false),
        ("metaspace first", sequence(&[&metaspace("first"), &fallback]), true),
        ("metaspace never", metaspace("never"), false),
        ("pieces", piece(true), false),
        ("pieces as they are", sequence(&[&piece(false), &fuse, &piece(false)]), false),
        ("pieces of all", sequence(&[&fuse, &piece(true)]), false),
        ("ctc", ctc(true), false),
        ("ctc, fused", sequence(&[&ctc(false), &fuse, &ctc(true)]), false),
        ("suffix", suffix.clone(), false),
        ("suffix, fused", sequence(&[&suffix, &fuse, &strip(1, 0)]), false),
        ("suffix, pieces", sequence(&[&suffix, &strip(0, 1), &replace]), false),
        ("suffix of all", sequence(&[&fuse, &suffix]), false),
        ("bytes as words", level.clone(), false),
        ("none", Value::Null, false),
    ];
    let mut pairs: Vec<Pair> = Vec::new();
    for (name, decoder, apart) in words {
        pairs.push(Pair::new(name, &with_decoder("words", decoder), apart));
    }
    for (name, decoder) in [
        ("byte level", level.clone()),
        ("byte level in a sequence", sequence(&[&level])),
        ("byte level, fallback", sequence(&[&sequence(&[&level, &fallback]), &fuse, &strip(1, 1)])),
    ] {
        pairs.push(Pair::new(name, &with_decoder("byte_level", decoder), false));
    }
    let plain: Value = serde_json::from_str(&vector("metaspace")).unwrap();
    pairs.push(Pair::new("metaspace.json", &with_decoder("metaspace", plain["decoder"].clone()), true));
    pairs
}

/// Ids of all kinds: those not known, special ones, added words, bytes of a character or of a part of one, and any.
pub(crate) fn list(random: &mut Rng, pair: &Pair) -> Vec<u32> {
    let any = pair.vocabulary();
    let id = |word: &str| pair.library.token_to_id(word);
    let written = |byte: u8| id(&format!("<0x{byte:02X}>")).unwrap_or((7 * u32::from(byte) + 3) % 256);
    let mut ids = Vec::new();
    for _ in 0..random.below(14) {
        match random.below(8) {
            0 => ids.push(any + random.below(70_000) as u32),
            1 => ids.extend(id(["<s>", "</s>", "<|first|>", "<|last|>", "<pad>"][random.below(5)])),
            2 => ids.extend(id(["[TOOL]", "[w\u{f6}rd ]", "[word]", "\u{2581}", "\u{2581}\u{2581}"][random.below(5)])),
            3 | 4 => {
                let text = ["\u{1f600}", "\u{20ac}", "\u{e9}", " ", "a", "\u{4f60}\u{597d}"][random.below(6)];
                let cut = if random.below(3) == 0 { random.below(text.len()) } else { text.len() };
                ids.extend(text.bytes().take(cut).map(written));
            }
            _ => ids.push(random.below(any as usize) as u32),
        }
        if random.below(6) == 0 {
            ids.extend(ids.last().copied());
        }
    }
    ids
}

fn lists_are_the_librarys(lists: usize) {
    for (i, pair) in all().iter().enumerate() {
        let (mut compared, mut random) = (0, Rng(i as u64));
        for _ in 0..lists {
            let ids = list(&mut random, pair);
            let Some(want) = pair.whole(&ids) else { continue };
            let words: Vec<_> = ids.iter().map(|id| pair.library.id_to_token(*id)).collect();
            assert_eq!(pair.ours.decode(&ids), want, "{}: {ids:?}, {words:?}", pair.name);
            compared += 1;
        }
        // The library panics where there is less than its decoders strip.
        assert!(compared > lists / 2, "{}: {compared} of {lists}", pair.name);
    }
}

#[test]
fn a_stream_is_the_librarys_text_of_the_whole_list() {
    lists_are_the_librarys(1500);
}

#[test]
#[ignore = "long: 20,000 lists for each decoder: half a minute"]
fn a_stream_is_the_librarys_text_of_many_lists() {
    lists_are_the_librarys(20_000);
}

fn named(name: &str) -> Pair {
    all().into_iter().find(|pair| pair.name == name).unwrap()
}

fn ids(pair: &Pair, words: &[&str]) -> Vec<u32> {
    words.iter().map(|word| pair.library.token_to_id(word).unwrap_or(9999)).collect()
}

#[test]
fn text_after_an_unknown_or_a_special_token_is_whole() {
    let llama = named("llama");
    let tokens = ids(&llama, &["\u{2581}a", "?", "\u{2581}b", "\u{2581}lo", "\u{2581}world", "!", "\u{2581}a"]);
    assert_eq!(llama.ours.decode(&tokens), "a\u{fffd} b lo world! a");
    assert_eq!(llama.ours.decode(&ids(&llama, &["\u{2581}a", "</s>", "\u{2581}b", "\u{2581}lo"])), "a b lo");
    assert_eq!(llama.ours.decode(&ids(&llama, &["<s>", "\u{2581}a", "\u{2581}b"])), "a b");
}

/// What is certain comes with its token.
#[test]
fn text_comes_as_soon_as_it_is_certain() {
    for (name, words, parts) in [
        (
            "llama",
            &["\u{2581}a", "\u{2581}b", "<0xE2>", "<0x82>", "<0xAC>", "!"][..],
            &["a", " b", "", "", "\u{20ac}", "!", ""][..],
        ),
        // Of a broken byte as soon as it is known to be one.
        ("llama", &["<0xFF>", "<0xE2>", "a"], &["\u{fffd}", "", "\u{fffd}a", ""]),
        (
            "both ends",
            &["\u{2581}a", "\u{2581}", "\u{2581}\u{2581}", "\u{2581}b", " "],
            &["a", "", " ", "   b", "", ""],
        ),
        ("pieces", &["lo", "##wor", "a", "!"], &["lo", "wor", " a", "!", ""]),
        ("suffix", &["lo", "a</w>", "b</w>", "!"], &["lo", "a", " b", " !", ""]),
        ("ctc", &["lo", "lo", "<0x00>", "lo", "|"], &["lo", "", "", "lo", " ", ""]),
        ("none", &["lo", "a"], &["lo", " a", ""]),
        ("literal of all", &["lo", "lo", "lo", "\u{2581}world", "!"], &["", "", "", "loorld", "!", ""]),
    ] {
        let pair = named(name);
        let tokens: Vec<u32> = ids(&pair, words);
        assert_eq!(stream(&pair.ours, &tokens), parts, "{name}: {words:?}");
    }
}

/// Where the library panics: a decoder strips more than there is.
#[test]
fn nothing_is_stripped_of_no_text() {
    for name in ["both ends", "strip pieces", "pattern of all", "byte level, fallback", "suffix, pieces"] {
        let pair = named(name);
        assert_eq!(pair.ours.decode(&[]), "", "{name}");
        let space = if name.starts_with("byte") { vec![7 * 32 + 3] } else { ids(&pair, &["<0x20>"]) };
        let want = if name == "pattern of all" || name == "suffix, pieces" { "<0x20>" } else { "" };
        assert_eq!(pair.ours.decode(&space), want, "{name}");
    }
}

/// After its end a stream begins anew, and a long text takes no longer for each token than a short one: if a token's cost
/// grew with those before it this would take hours.
#[test]
fn streams_are_used_again_and_for_long_texts() {
    for pair in all() {
        let mut random = Rng(7);
        let tokens: Vec<u32> = (0..1200).flat_map(|_| list(&mut random, &pair)).collect();
        let long: Vec<u32> = tokens.iter().cycle().take(150_000).copied().collect();
        let mut stream: TextStream<'_> = pair.ours.stream();
        let bytes: usize = long.iter().map(|token| stream.push(*token).len()).sum();
        stream.finish();
        assert!(bytes > 10_000, "{}: {bytes}", pair.name);
        let short = list(&mut random, &pair);
        let again: String = short.iter().map(|token| stream.push(*token)).collect();
        assert_eq!(again + &stream.finish(), pair.ours.decode(&short), "{}", pair.name);
    }
}

/// The bytes of tokens are those of the text, but for what only other tokens tell.
#[test]
fn bytes_of_tokens_are_those_of_the_text() {
    let bytes = |name: &str, word: &str| {
        let pair = named(name);
        pair.ours.token_bytes(pair.library.token_to_id(word).unwrap_or(9999))
    };
    for (name, word, want) in [
        ("llama", "\u{2581}world", &b" world"[..]),
        ("llama", "<0xC3>", &[0xc3]),
        ("llama", "</s>", b""),
        ("llama", "[TOOL]", b"[TOOL]"),
        ("llama", "?", "\u{fffd}".as_bytes()),
        ("metaspace", "\u{2581}world", b" world"),
        ("metaspace", "<0xC3>", b"<0xC3>"),
        ("pieces", "##lo", b"lo"),
        ("pieces", "lo", b" lo"),
        ("suffix", "lo</w>", b"lo "),
        ("ctc", "|", b" "),
        ("none", "lo", b" lo"),
        ("byte level", "[word]", b"[word]"),
        ("gemma", "\u{1f600}", "\u{1f600}".as_bytes()),
    ] {
        assert_eq!(bytes(name, word), want, "{name}: {word}");
    }
    for name in ["byte level", "byte level in a sequence"] {
        let pair = named(name);
        assert!((0..=255u8).all(|b| pair.ours.token_bytes((7 * u32::from(b) + 3) % 256) == [b]), "{name}");
    }
    for name in ["gemma", "metaspace never", "byte level", "pattern"] {
        let pair = named(name);
        for seed in 0..500 {
            let ids = list(&mut Rng(seed), &pair);
            let bytes: Vec<u8> = ids.iter().flat_map(|id| pair.ours.token_bytes(*id)).collect();
            // One byte after the other: how many U+FFFD broken ones give depends on where they stand.
            let plain = |text: &str| text.replace('\u{fffd}', "");
            assert_eq!(plain(&String::from_utf8_lossy(&bytes)), plain(&pair.ours.decode(&ids)), "{name}: {ids:?}");
        }
    }
    assert_eq!(Tokenizer::bytes().token_bytes(0xc3), [0xc3]);
    assert_eq!(Tokenizer::bytes().token_bytes(256), "\u{fffd}".as_bytes());
}

/// An added word that is no text as bytes is itself: the library gives U+FFFD for good characters.
#[test]
fn an_added_word_is_not_read_as_bytes_where_that_is_no_text() {
    let mut json = with_decoder("byte_level", named("byte level").library.get_decoder().map(|d| json!(d)).unwrap());
    json["added_tokens"][2]["content"] = json!("[w\u{f6}rd]");
    let pair = Pair::new("added", &json, false);
    let word = pair.library.token_to_id("[w\u{f6}rd]").unwrap();
    assert_eq!(pair.ours.decode(&[word]), "[w\u{f6}rd]");
}
