//! A real model, SmolLM2-135M-Instruct in Q4_1, where it is at hand: `./dev chat` fetches it, or `LATTEN_CHAT_MODEL` names it. Tokens
//! are llama.cpp's (`tests/vectors/tokenizers/smollm2.json`).

use latten::model::{
    Chat, ChatOptions, ChatTemplate, Decoder, GgufMetadata, Message, Session, SessionOptions, Tokenizer,
};
use latten::DType;
use pollster::block_on;
use std::path::PathBuf;

/// The model's file; says where it would be if it is not there.
fn model() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("LATTEN_CHAT_MODEL") {
        return Some(path.into());
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))?;
    let path = cache.join("latten/chat/SmolLM2-135M-Instruct.Q4_1.gguf");
    if !path.exists() {
        println!("skipped: {} is not there (./dev chat fetches it)", path.display());
        return None;
    }
    Some(path)
}

#[test]
fn tokens_of_a_real_model_are_llama_cpps() {
    let Some(path) = model() else { return };
    let tokenizer = Tokenizer::from_folder(path).unwrap();
    let vector: serde_json::Value = serde_json::from_str(&crate::vector("smollm2")).unwrap();
    let texts: Vec<(String, Vec<u32>)> = serde_json::from_value(vector["texts"].clone()).unwrap();
    assert!(texts.len() > 10);
    for (text, want) in texts {
        assert_eq!(tokenizer.encode(&text).unwrap(), want, "{text:?}");
        let specials = ["<|im_start|>", "<|im_end|>"];
        let plain = specials.iter().fold(text, |text, special| text.replace(special, ""));
        assert_eq!(tokenizer.decode(&want), plain);
    }
    assert!(tokenizer.end_tokens().contains(&2), "{:?}", tokenizer.end_tokens());
}

#[test]
fn a_real_model_answers() {
    let Some(path) = model() else { return };
    let file = GgufMetadata::open(&path).unwrap();
    assert_eq!((file.text("general.license"), file.tensors().count()), (Some("apache-2.0"), 272));
    let decoder = Decoder::load(crate::common::gpu(), &path, DType::F16).unwrap();
    let session = Session::new(&decoder, SessionOptions::default()).unwrap();
    let template = ChatTemplate::from_folder(&path).unwrap();
    let mut chat = Chat::new(session, Tokenizer::from_folder(&path).unwrap(), template);
    let messages = [Message::user("What is the capital of France?")];
    let mut answer = chat.answer(&messages, ChatOptions { max_new_tokens: 24, ..Default::default() }).unwrap();
    let text: String = std::iter::from_fn(|| block_on(answer.next()).unwrap()).collect();
    println!("{text}");
    assert!(text.contains("Paris"), "{text}");
}
