//! Whatever a tokenizer.json says: an error or a tokenizer, never a panic, and one that is sound after an error.

use super::*;
use crate::common::Rng;
use serde_json::{json, Value};

fn tokenizer(text: &str) -> Result<Tokenizer, Error> {
    Folder::new("damaged", &[("config.json", "{}"), ("tokenizer.json", text)]).tokenizer()
}

fn why(text: &str) -> String {
    let error = tokenizer(text).err().unwrap();
    match error.kind() {
        ErrorKind::Config { path, message } if path.ends_with("tokenizer.json") => message.clone(),
        other => panic!("{other}"),
    }
}

/// Where the crate `tokenizers` panics.
#[test]
fn panics_of_the_crate_are_errors() {
    let whole = vector("byte_level");
    let at = whole.find("\"decoder\"").unwrap();
    assert!(why(&whole[..at + 20]).contains("not a tokenizer: EOF"), "{}", why(&whole[..at + 20]));
    // A number that JSON has and the crate has not, in the part that it counts on.
    assert!(why(&whole.replace("\"decoder\":{", "\"decoder\":{\"x\":1e999,")).contains("tokenizers panicked"));
    let mut json: Value = serde_json::from_str(&whole).unwrap();
    json["post_processor"]["special_tokens"] = json!({});
    assert!(why(&json.to_string()).contains("post_processor: "), "{}", why(&json.to_string()));
    json["post_processor"] = Value::Null;
    let strip = json!({"type": "Strip", "content": " ", "start": 0, "stop": 1});
    json["decoder"] = json!({"type": "Sequence", "decoders": [{"type": "Fuse"}, strip]});
    let tokenizer = tokenizer(&json.to_string()).unwrap();
    assert_eq!((tokenizer.decode(&[]), tokenizer.decode(&[65])), (String::new(), tokenizer.stream().push(65)));
}

/// An error of the crate, or a panic of it, in the middle of a text; then it is as good as before, on all threads.
#[test]
fn a_tokenizer_is_sound_after_an_error() {
    let vocab = json!([["a", -1.0], ["b", -2.0], ["ab", -0.5]]);
    let model = json!({"type": "Unigram", "unk_id": null, "vocab": vocab, "byte_fallback": false});
    let mut json: Value = serde_json::from_str(&vector("words")).unwrap();
    (json["model"], json["normalizer"], json["post_processor"]) = (model, Value::Null, Value::Null);
    json["added_tokens"].as_array_mut().unwrap().truncate(1);
    let unknown = tokenizer(&json.to_string()).unwrap();
    json["pre_tokenizer"] = json!({"type": "FixedLength", "length": 0});
    let panics = tokenizer(&json.to_string()).unwrap();
    let (unk, ab) = (unknown.encode("<unk>").unwrap(), [0, 2]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    for (tokenizer, why) in [(&unknown, "unk_id"), (&panics, "tokenizers panicked: chunk size")] {
                        let error = tokenizer.encode("aabx").err().unwrap();
                        assert!(matches!(error.kind(), ErrorKind::Argument { name: "text", .. }), "{error}");
                        assert!(error.to_string().contains(why), "{error}");
                        assert_eq!(tokenizer.encode("<unk>").unwrap(), unk);
                        assert_eq!(tokenizer.decode(&[0, 9, 2]), "a\u{fffd}ab");
                    }
                    assert_eq!(unknown.encode("aab").unwrap(), ab);
                }
            });
        }
    });
}

/// One change somewhere in the tree of a file.
fn change(value: &mut Value, random: &mut Rng) {
    let inner = match value {
        Value::Array(all) if !all.is_empty() && random.below(8) > 0 => {
            let at = random.below(all.len());
            all.get_mut(at)
        }
        Value::Object(all) if !all.is_empty() && random.below(8) > 0 => {
            let at = random.below(all.len());
            all.values_mut().nth(at)
        }
        _ => None,
    };
    if let Some(inner) = inner {
        return change(inner, random);
    }
    let mut of = |all: &[&'static str]| all[random.below(all.len())];
    let (kind, pattern) = (
        of(&["Fuse", "Strip", "ByteLevel", "Metaspace", "Prepend", "Lowercase", "Sequence"]),
        of(&["a*", "", "(a|b)+", "\\s", " ?[a-z]+"]),
    );
    let model = of(&["WordPiece", "WordLevel", "BPE", "Unigram"]);
    *value = match random.below(15) {
        0 => Value::Null,
        1 => json!([]),
        2 => json!({}),
        3 => json!(""),
        4 => json!([0, 1, i64::from(u32::MAX), 255, -1, 300][random.below(6)]),
        5 => json!([1e308, -0.0, 0.5][random.below(3)]),
        6 => json!(random.below(2) == 0),
        7 => json!(["\u{2581}", " ", "a", "<0x41>", "\u{1f600}", "(", "\u{0}", "<s>"][random.below(8)]),
        8 => {
            json!({"type": kind})
        }
        9 => json!({"type": "Strip", "content": " ", "start": random.below(3), "stop": random.below(3)}),
        10 => {
            json!({"type": "Replace", "pattern": {"Regex": pattern}, "content": ""})
        }
        11 => {
            json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": random.below(2) == 0})
        }
        12 => json!({"type": "FixedLength", "length": random.below(3)}),
        13 => {
            json!({"type": model, "vocab": {"a": 0, "b": 1}, "unk_token": "a", "merges": []})
        }
        _ => match value.take() {
            Value::Array(mut all) => {
                all.truncate(all.len() / 2);
                Value::Array(all)
            }
            Value::String(text) => json!(text.chars().rev().collect::<String>()),
            Value::Number(n) => json!(n.as_f64().unwrap_or(0.0) * 2.0),
            other => json!([other]),
        },
    };
}

/// Uses a tokenizer in every way, if there is one.
fn used(text: &str) -> bool {
    let Ok(tokenizer) = tokenizer(text) else { return false };
    let before = [0, 5, 261, 300];
    for text in ["", "a", " world lo", "<s>Hello \u{1f600}</s>\n[word] the"] {
        for result in [tokenizer.encode(text), tokenizer.encode_plain(text), tokenizer.encode_after(&before, text)] {
            match result {
                Ok(tokens) => drop(tokenizer.decode(&tokens)),
                Err(error) => assert!(matches!(error.kind(), ErrorKind::Argument { name: "text", .. }), "{error}"),
            }
        }
    }
    let mut stream = tokenizer.stream_after(&before);
    (0..380).step_by(7).for_each(|token| {
        stream.push(token);
        tokenizer.token_bytes(token);
    });
    stream.finish();
    true
}

fn any_file(cases: usize) {
    let files = ["byte_level", "metaspace", "words"].map(vector);
    let trees: Vec<Value> = files.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
    let mut random = Rng(11);
    let mut sound = 0;
    for case in 0..cases {
        let text = if case % 4 == 0 {
            // Bytes that are other ones, or are not there.
            let mut bytes = files[random.below(3)].clone().into_bytes();
            for _ in 0..1 + random.below(3) {
                let at = random.below(bytes.len());
                match random.below(4) {
                    0 => bytes.truncate(at),
                    1 => drop(bytes.remove(at)),
                    2 => bytes[at] = b" {}[]\",:0aZ-"[random.below(12)],
                    _ => bytes[at] = random.below(128) as u8,
                }
                if bytes.is_empty() {
                    break;
                }
            }
            String::from_utf8_lossy(&bytes).into_owned()
        } else {
            let mut tree = trees[random.below(3)].clone();
            (0..1 + random.below(3)).for_each(|_| change(&mut tree, &mut random));
            tree.to_string()
        };
        sound += usize::from(used(&text));
    }
    assert!(sound > cases / 20 && sound < cases, "{sound} of {cases} could be used");
}

#[test]
fn no_file_panics() {
    any_file(500);
}

#[test]
#[ignore = "long: 100,000 files: some minutes"]
fn no_file_of_many_panics() {
    any_file(100_000);
}
