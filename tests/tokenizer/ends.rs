//! Tokens that end a text, by all files that say so.

use super::*;

#[test]
fn folders_of_bytes_have_no_names_of_tokens() {
    let files = [
        ("config.json", r#"{"tokenizer": "bytes", "eos_token_id": 10}"#),
        ("tokenizer_config.json", r#"{"eos_token": "</s>"}"#),
    ];
    assert_eq!(Folder::new("names", &files).tokenizer().unwrap().end_tokens(), [10]);
}

#[cfg(feature = "tokenizers")]
#[test]
fn every_file_that_names_an_end_counts() {
    let words = vector("words");
    let end =
        serde_json::from_str::<serde_json::Value>(&words).unwrap()["added_tokens"][4]["id"].as_u64().unwrap() as u32;
    let ends = |files: &[(&str, &str)]| {
        let files = [&[("tokenizer.json", &words[..]), ("config.json", r#"{"eos_token_id": 2}"#)][..], files].concat();
        Folder::new("names-of-words", &files).tokenizer().map(|tokenizer| tokenizer.end_tokens().to_vec())
    };
    let (settings, map, generation) = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json");
    assert_eq!(ends(&[]).unwrap(), [2]);
    assert_eq!(ends(&[(settings, r#"{"eos_token": "<|im_end|>"}"#)]).unwrap(), [2, end]);
    assert_eq!(ends(&[(settings, r#"{"eos_token": {"content": "<|im_end|>", "lstrip": false}}"#)]).unwrap(), [2, end]);
    assert_eq!(ends(&[(map, r#"{"eos_token": "<|im_end|>"}"#)]).unwrap(), [2, end]);
    assert_eq!(
        ends(&[(settings, r#"{"eos_token": "</s>"}"#), (map, r#"{"eos_token": "<|im_end|>"}"#)]).unwrap(),
        [2, end]
    );
    // Llama 3's: several in one file, and the chat's own in the other.
    let several = (generation, r#"{"eos_token_id": [1, 3]}"#);
    assert_eq!(ends(&[several, (settings, r#"{"eos_token": "<|im_end|>"}"#)]).unwrap(), [1, 3, end]);
    assert_eq!(ends(&[several, (settings, r#"{"eos_token": "<pad>"}"#)]).unwrap(), [1, 3]);
    assert_eq!(ends(&[(generation, r#"{"eos_token_id": null}"#)]).unwrap(), [0u32; 0]);
    assert_eq!(ends(&[(settings, r#"{"eos_token": null}"#), (map, "{}")]).unwrap(), [2]);
    assert_eq!(ends(&[(settings, r#"{"eos_token": "<not one>"}"#)]).unwrap(), [2]);
    for (text, why) in [
        (r#"{"eos_token": 3}"#, "eos_token: 3 is neither"),
        (r#"{"eos_token": {}}"#, "eos_token: {} is"),
        ("[", "not JSON"),
    ] {
        let error = ends(&[(settings, text)]).unwrap_err();
        match error.kind() {
            ErrorKind::Config { path, message } => {
                assert!(path.ends_with(settings) && message.contains(why), "{error}")
            }
            other => panic!("{other}"),
        }
    }
}
