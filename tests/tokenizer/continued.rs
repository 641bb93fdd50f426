//! Texts that go on: no second first token, and no second first space.

use super::*;
use crate::common::Rng;
use serde_json::{json, Value};

fn with(file: &str, change: impl FnOnce(&mut Value)) -> Tokenizer {
    let mut json: Value = serde_json::from_str(&vector(file)).unwrap();
    change(&mut json);
    let text = json.to_string();
    Folder::new("continued", &[("config.json", "{}"), ("tokenizer.json", &text)]).tokenizer().unwrap()
}

/// words.json with this in front of words.
fn metaspace(scheme: &str, words: Option<Value>) -> Tokenizer {
    with("words", |json| {
        let space = json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": true});
        json["normalizer"] = Value::Null;
        json["decoder"] = json!({"type": "Sequence", "decoders": [space, {"type": "ByteFallback"}]});
        json["pre_tokenizer"] = match words {
            Some(words) => json!({"type": "Sequence", "pretokenizers": [words, space]}),
            None => space,
        };
    })
}

fn prefixed_bytes() -> Tokenizer {
    with("byte_level", |json| {
        json["pre_tokenizer"] =
            json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    })
}

#[test]
fn a_first_token_that_a_text_spells_is_not_there_twice() {
    let llama = with("words", |_| ());
    let plain = llama.encode_plain("world").unwrap();
    let whole = [&[1][..], &plain].concat();
    assert_eq!(llama.encode("world").unwrap(), whole);
    assert_eq!(llama.encode("<s>world").unwrap(), whole);
    assert_eq!(llama.encode("<s><s>world").unwrap(), [&[1][..], &whole].concat());
    assert_eq!((llama.encode("").unwrap(), llama.encode("<s>").unwrap()), (vec![1], vec![1]));
    assert_eq!(llama.encode_plain("").unwrap(), [0u32; 0]);
    // Two tokens before and one after.
    let around = with("words", |json| {
        json["post_processor"]["single"] = json!([
            {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"SpecialToken": {"id": "<pad>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}]);
        for (name, id) in [("<pad>", 3), ("</s>", 2)] {
            json["post_processor"]["special_tokens"][name] = json!({"id": name, "ids": [id], "tokens": [name]});
        }
    });
    let whole = [&[1, 3][..], &plain, &[2]].concat();
    for text in ["world", "<s><pad>world", "world</s>", "<s><pad>world</s>"] {
        assert_eq!(around.encode(text).unwrap(), whole, "{text}");
    }
    assert_eq!(around.encode("<s>world").unwrap(), [&[1, 3, 1][..], &plain, &[2]].concat());
    let bytes = with("byte_level", |_| ());
    assert_eq!(bytes.encode("<|first|>the").unwrap(), bytes.encode("the").unwrap());
    assert_eq!(Tokenizer::bytes().encode_after(&[65], "a").unwrap(), [97]);
}

#[test]
fn a_text_goes_on_with_no_first_token_and_no_first_space() {
    let llama = with("words", |_| ());
    let id = |text: &str| llama.encode_plain(text).unwrap();
    let first = llama.encode("world").unwrap();
    assert_eq!(llama.encode_after(&first, " world").unwrap(), id("world"));
    assert_eq!(llama.encode_after(&first, "  world").unwrap(), id(" world"));
    assert_eq!(llama.encode_after(&[], "world").unwrap(), first);
    // Where a special token ends what is before, the tokenizer has its space again, as in one text.
    assert_eq!(llama.encode_after(&[&first[..], &[2]].concat(), "world").unwrap(), id("world"));
    let both = llama.encode("world</s>world").unwrap();
    assert_eq!([&first[..], &llama.encode_after(&first, "</s>world").unwrap()].concat(), both);
    assert!(llama.encode_after(&first, "").unwrap().is_empty());
}

/// Two parts of a text are the text.
#[test]
fn parts_of_texts_are_the_whole() {
    let split = json!({"type": "WhitespaceSplit"});
    let words = ["world", "lo", " ", "  ", "a", "Hello", "\u{e9}", "\u{1f600}", "!", "[TOOL]", "</s>", "\n"];
    for (name, tokenizer) in [
        ("prepended", with("words", |_| ())),
        ("metaspace", with("metaspace", |_| ())),
        ("always", metaspace("always", None)),
        ("first", metaspace("first", None)),
        ("never", metaspace("never", None)),
        ("each word", metaspace("always", Some(split))),
        ("bytes", with("byte_level", |_| ())),
        ("prefixed bytes", prefixed_bytes()),
    ] {
        let mut random = Rng(1);
        let mut compared = 0;
        for _ in 0..1000 {
            let mut text = |least: usize| -> String {
                (0..least + random.below(4)).map(|_| words[random.below(words.len())]).collect()
            };
            let (before, after) = (text(1), text(0));
            // Words that are split at blanks lose those that stand together.
            let blank = name == "each word" && [&before, &after].iter().any(|t| t.contains("  ") || t.contains('\n'));
            if blank || before.trim() != before && name == "each word" {
                continue;
            }
            let first = tokenizer.encode(&before).unwrap();
            let then = tokenizer.encode_after(&first, &after).unwrap();
            let whole = tokenizer.encode(format!("{before}{after}")).unwrap();
            let (got, want) = (tokenizer.decode(&[&first[..], &then].concat()), tokenizer.decode(&whole));
            if name == "each word" {
                // A blank at an end, or beside a special token, is lost in any case.
                assert_eq!(
                    got.split_whitespace().collect::<Vec<_>>(),
                    want.split_whitespace().collect::<Vec<_>>(),
                    "{before:?} {after:?}"
                );
            } else {
                assert_eq!(got, want, "{name}: {before:?} and {after:?}");
            }
            assert_eq!(tokenizer.decode(&first) + &tokenizer.decode_after(&first, &then), got, "{name}");
            compared += 1;
        }
        assert!(compared > 200, "{name}: {compared}");
    }
}

/// `generate` goes on with a saved text without a first token in its middle.
#[test]
fn a_saved_text_goes_on_without_a_second_first_token() {
    let folder = crate::scheduled::model(400).write("tokenizer-saved");
    std::fs::write(folder.path().join("tokenizer.json"), vector("words")).unwrap();
    let (half, more) = (folder.path().join("half"), folder.path().join("more"));
    let run = |args: &str| {
        let mut words: Vec<String> = args.split(' ').map(str::to_string).collect();
        words.splice(0..0, ["--model".into(), folder.path().display().to_string()]);
        let args = crate::generate::parse(words.into_iter()).unwrap();
        match pollster::block_on(crate::generate::run_to(&args, &mut Vec::new())) {
            Ok(()) => {}
            Err(crate::generate::Stop::Failed(message)) => panic!("{message}"),
            Err(crate::generate::Stop::ReaderGone) => panic!("nobody reads"),
        }
    };
    let tokens = |path: &std::path::Path| {
        latten::cache::saved_info(std::fs::File::open(path).unwrap()).unwrap().sequences[0].tokens.clone()
    };
    run(&format!("--prompt world --tokens 3 --temperature 1 --seed 4 --save-session {}", half.display()));
    run(&format!("--load-session {} --prompt lo --tokens 2 --save-session {}", half.display(), more.display()));
    let (half, more) = (tokens(&half), tokens(&more));
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    let then = tokenizer.encode_after(&half, "lo").unwrap();
    assert_eq!((half[0], half.len()), (1, tokenizer.encode("world").unwrap().len() + 3));
    assert_eq!(more[..half.len() + then.len()], [&half[..], &then].concat());
    assert!(!then.contains(&1), "{then:?}");
}
