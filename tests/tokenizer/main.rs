//! Text to tokens and back: of folders whose tokens are bytes, and with the feature `tokenizers` of published ones.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, which clippy.toml does not reach

use common::checkout::checkout;
use latten::model::Tokenizer;
use latten::{Error, ErrorKind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

#[cfg(feature = "tokenizers")]
#[allow(clippy::duplicate_mod, dead_code)] // examples share files, and each is a program of its own
#[path = "../../examples/chat/main.rs"]
mod chat;
#[allow(clippy::duplicate_mod)] // an example shares a file with it
#[path = "../common/mod.rs"]
mod common;
#[cfg(feature = "tokenizers")]
mod continued;
#[cfg(feature = "tokenizers")]
mod damaged;
mod ends;
#[cfg(feature = "tokenizers")]
#[allow(clippy::duplicate_mod, dead_code)] // examples share files, and each is a program of its own
#[path = "../../examples/generate/main.rs"]
mod generate;
#[cfg(feature = "tokenizers")]
mod gguf;
#[cfg(all(feature = "tokenizers", target_os = "linux"))]
mod interrupted;
#[cfg(feature = "tokenizers")]
mod real;
#[cfg(feature = "tokenizers")]
mod scheduled;
#[cfg(feature = "tokenizers")]
mod streamed;
#[cfg(feature = "tokenizers")]
#[allow(dead_code)]
#[path = "../model/tiny.rs"]
mod tiny;
#[cfg(feature = "tokenizers")]
#[path = "../common/gguf.rs"]
mod written;

/// A folder with these files, that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        // Tests run side by side.
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("latten-tokenizer-{name}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        files.iter().for_each(|(file, text)| std::fs::write(folder.join(file), text).unwrap());
        Folder(folder)
    }

    fn tokenizer(&self) -> Result<Tokenizer, Error> {
        Tokenizer::from_folder(&self.0)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn vector(name: &str) -> String {
    std::fs::read_to_string(checkout(&format!("tests/vectors/tokenizers/{name}.json"))).unwrap()
}

/// What a stream gives for each token, and at its end.
fn stream(tokenizer: &Tokenizer, tokens: &[u32]) -> Vec<String> {
    let mut stream = tokenizer.stream();
    let mut parts: Vec<String> = tokens.iter().map(|token| stream.push(*token)).collect();
    parts.push(stream.finish());
    parts
}

#[test]
fn bytes_are_tokens_of_this_crates_own_models() {
    let tokenizer = Tokenizer::from_folder(checkout("examples/models/gla")).unwrap();
    assert!(tokenizer.is_bytes() && tokenizer.end_tokens().is_empty());
    assert_eq!(tokenizer.encode("a é").unwrap(), [97, 32, 0xc3, 0xa9]);
    assert_eq!(tokenizer.encode([0xff, 0]).unwrap(), [255, 0]);
    assert_eq!(
        stream(&tokenizer, &[97, 0xc3, 0xa9, 0xe2, 256, 0xc3]),
        ["a", "", "é", "", "\u{fffd}\u{fffd}", "", "\u{fffd}"]
    );
    assert_eq!(tokenizer.decode(&tokenizer.encode("naïve €").unwrap()), "naïve €");
}

#[test]
fn folders_say_what_is_wrong_with_them() {
    let bytes = r#"{"tokenizer": "bytes", "eos_token_id": 10}"#;
    let with = |generation: &str| {
        let files = [("config.json", bytes), ("generation_config.json", generation)];
        Folder::new("ends", &files).tokenizer().map(|t| t.end_tokens().to_vec())
    };
    assert_eq!(Folder::new("own", &[("config.json", bytes)]).tokenizer().unwrap().end_tokens(), [10]);
    assert_eq!(with("{}").unwrap(), [10]);
    assert_eq!(with(r#"{"eos_token_id": null}"#).unwrap(), [0u32; 0]);
    assert_eq!(with(r#"{"eos_token_id": 7}"#).unwrap(), [7]);
    assert_eq!(with(r#"{"eos_token_id": [7, 300]}"#).unwrap(), [7, 300]);
    for (files, file, why) in [
        (
            vec![("generation_config.json", r#"{"eos_token_id": [7, -1]}"#), ("config.json", bytes)],
            "generation_config.json",
            "eos_token_id: no token",
        ),
        (
            vec![("config.json", r#"{"tokenizer": "bytes", "eos_token_id": "x"}"#)],
            "config.json",
            "eos_token_id: no token",
        ),
        (vec![("config.json", "{")], "config.json", "not JSON"),
        (vec![("config.json", "{}")], "config.json", "there is no "),
    ] {
        match Folder::new("bad", &files).tokenizer().err().unwrap().kind() {
            ErrorKind::Config { path, message } => {
                assert!(path.ends_with(file) && message.contains(why), "{path} {message}")
            }
            other => panic!("{other}"),
        }
    }
    assert!(matches!(Folder::new("empty", &[]).tokenizer().err().unwrap().kind(), ErrorKind::Io { .. }));
}

#[cfg(not(feature = "tokenizers"))]
#[test]
fn without_the_feature_an_error_names_it() {
    let folder = Folder::new("feature", &[("config.json", "{}"), ("tokenizer.json", &vector("byte_level"))]);
    match folder.tokenizer().err().unwrap().kind() {
        ErrorKind::Config { path, message } => {
            assert!(path.ends_with("tokenizer.json") && message.contains("--features tokenizers"), "{path} {message}");
        }
        other => panic!("{other}"),
    }
}

#[cfg(feature = "tokenizers")]
mod published {
    use super::*;

    fn tokenizer(name: &str) -> Tokenizer {
        let files = [("config.json", r#"{"eos_token_id": 262}"#), ("tokenizer.json", &vector(name))];
        Folder::new(name, &files).tokenizer().unwrap()
    }

    /// As tests/vectors/tokenizers/make.py numbers them.
    fn byte(byte: u8) -> u32 {
        (7 * u32::from(byte) + 3) % 256
    }

    #[test]
    fn byte_level_merges() {
        let tokenizer = tokenizer("byte_level");
        assert!(!tokenizer.is_bytes());
        assert_eq!(tokenizer.end_tokens(), [262]);
        let the = [261, 257, 258, byte(b' '), byte(b'a'), 259, byte(b' '), byte(b' '), 260];
        // Of blanks before a word all but the last are a piece of their own.
        assert_eq!(tokenizer.encode("the the all  é").unwrap(), [&the[..7], &[byte(b' '), 260]].concat());
        assert_eq!(tokenizer.encode("").unwrap(), [261]);
        assert_eq!(tokenizer.encode("th[word]<|last|>").unwrap(), [261, 256, 263, 262]);
        for text in ["the the all  é", "€ 😀\n\n\tnaïve\u{0}", " lead", "trail ", "[word] é[word]"] {
            assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()), text);
        }
    }

    #[test]
    fn byte_level_text_comes_in_whole_characters() {
        let tokenizer = tokenizer("byte_level");
        let euro: Vec<u32> = "€".bytes().map(byte).collect();
        let parts =
            stream(&tokenizer, &[&[261, 258][..], &euro, &[263, euro[0], euro[1], 260, 999, 262, euro[0]]].concat());
        assert_eq!(parts, ["", " the", "", "", "€", "[word]", "", "", "\u{fffd}é", "\u{fffd}", "", "", "\u{fffd}"]);
    }

    #[test]
    fn pieces_with_spaces_and_fallback() {
        let tokenizer = tokenizer("metaspace");
        let bytes = |text: &str| text.bytes().map(|b| 2 + u32::from(b)).collect::<Vec<u32>>();
        // Vocabulary: the two special ones, 256 bytes, then space, a, b, " a", "ab", " ab".
        let ab = 258 + 5;
        assert_eq!(tokenizer.encode("ab b€").unwrap(), [&[ab, 258, 260][..], &bytes("€")].concat());
        assert_eq!(stream(&tokenizer, &[ab, ab, 258, 260]), ["ab", " ab", " ", "b", ""]);
        assert_eq!(
            stream(&tokenizer, &[&[0, ab][..], &bytes("€"), &[ab, 1]].concat()),
            ["", "ab", "", "", "€", " ab", "", ""]
        );
        for text in ["ab b€", "a  ab😀é b", "b"] {
            let tokens = tokenizer.encode(text).unwrap();
            assert_eq!(tokenizer.decode(&tokens), text);
            assert!(stream(&tokenizer, &tokens).iter().all(|part| !part.contains('\u{fffd}')), "{text}");
        }
        let half = [&bytes("€")[..2], &[ab]].concat();
        let text = tokenizer.decode(&half);
        assert!(text.starts_with('\u{fffd}') && text.ends_with(" ab"), "{text}");
    }

    #[test]
    fn what_is_no_text_or_no_tokenizer_is_refused() {
        let error = tokenizer("byte_level").encode([b'a', 0xff]).err().unwrap();
        assert!(matches!(error.kind(), ErrorKind::Argument { name: "text", .. }), "{error}");
        for json in ["", "{}", "{\"model\": 3}"] {
            let error =
                Folder::new("none", &[("config.json", "{}"), ("tokenizer.json", json)]).tokenizer().err().unwrap();
            assert!(error.to_string().contains("not a tokenizer"), "{error}");
        }
    }
}
