//! A real model, SmolLM2-135M-Instruct in Q4_1, where it is at hand: `./dev chat` and `./dev test` fetch it, or `LATTEN_CHAT_MODEL`
//! names it. Tokens are llama.cpp's (`tests/vectors/tokenizers/smollm2.json`); prompts, greedy answers and the likelihood of a text are
//! those of the transformers library with the weights dequantised to f32 (`tests/vectors/smollm2.json`, by
//! `training/smollm2_oracle.py`).

use crate::common::checkout::checkout;
use latten::model::{
    Chat, ChatOptions, ChatTemplate, Decoder, Draw, GgufMetadata, Message, Session, SessionOptions, Tokenizer,
};
use latten::DType;
use pollster::block_on;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// `tests/vectors/smollm2.json`.
#[derive(Deserialize)]
struct Vectors {
    chats: Vec<ChatVector>,
    held_out: HeldOut,
}

#[derive(Deserialize)]
struct ChatVector {
    messages: Vec<Message>,
    rendered: String,
    ids: Vec<u32>,
    /// 64 tokens, or up to one that ends the answer.
    greedy: Vec<u32>,
    /// Least distance of a best logit from the second.
    min_gap: f32,
}

/// The tokens of tests/vectors/held_out.txt, in windows by themselves.
#[derive(Deserialize)]
struct HeldOut {
    window: usize,
    tokens: usize,
    /// The first ones.
    ids: Vec<u32>,
    /// Of each window the sum of negative log-likelihoods, without its first token.
    nll: Vec<f64>,
}

fn vectors() -> Vectors {
    serde_json::from_slice(&std::fs::read(checkout("tests/vectors/smollm2.json")).unwrap()).unwrap()
}

/// Weights as they are in the file, products in f32, and a cache that rounds nothing.
fn session(path: &Path, chunk: usize) -> Session {
    let decoder = Decoder::load(crate::common::exact_gpu(), path, DType::F16).unwrap();
    let options = SessionOptions { kv_dtype: DType::F32, cache_tokens: 1024, chunk, ..Default::default() };
    Session::new(&decoder, options).unwrap()
}

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

#[test]
fn rendered_prompts_and_their_tokens_are_transformers_own() {
    let Some(path) = model() else { return };
    let (template, tokenizer) =
        (ChatTemplate::from_folder(&path).unwrap().unwrap(), Tokenizer::from_folder(path).unwrap());
    let vectors = vectors();
    assert_eq!(vectors.chats.len(), 10);
    for chat in vectors.chats {
        assert_eq!(template.render(&chat.messages, true).unwrap(), chat.rendered);
        assert_eq!(tokenizer.encode(&chat.rendered).unwrap(), chat.ids, "{:?}", chat.rendered);
    }
    let ids = held_out(&tokenizer);
    assert_eq!((ids.len(), &ids[..512]), (vectors.held_out.tokens, &vectors.held_out.ids[..]));
}

fn held_out(tokenizer: &Tokenizer) -> Vec<u32> {
    let text = std::fs::read_to_string(checkout("tests/vectors/held_out.txt")).unwrap();
    tokenizer.encode_plain(text).unwrap()
}

#[test]
fn greedy_answers_are_those_of_the_dequantised_model_token_by_token() {
    let Some(path) = model() else { return };
    let mut session = session(&path, 64);
    for chat in vectors().chats {
        // Some hundred times what sums in another order are off.
        assert!(chat.min_gap > 1e-3, "{} decides nothing", chat.min_gap);
        let sequence = session.insert();
        let mut made: Vec<u32> = Vec::new();
        while made.len() < chat.greedy.len() {
            let input = made.last().map_or(&chat.ids[..], std::slice::from_ref);
            made.extend(block_on(session.next_tokens(&[(sequence, input)], &[Draw::default()])).unwrap());
        }
        session.remove(sequence).unwrap();
        assert_eq!(made, chat.greedy, "{:?}", chat.rendered);
    }
}

/// Perplexity within 0.1% of the dequantised model's, over the first windows.
fn check_perplexity(windows: usize) {
    let Some(path) = model() else { return };
    let (ids, mut session) = (held_out(&Tokenizer::from_folder(&path).unwrap()), session(&path, 128));
    let HeldOut { window, nll: wanted, .. } = vectors().held_out;
    let (mut nll, mut want, mut counted) = (0.0, 0.0, 0);
    for (tokens, wanted) in ids.chunks(window).zip(wanted).take(windows) {
        let sequence = session.insert();
        let rows = block_on(session.all_logits(&[(sequence, tokens)])).unwrap().concat();
        session.remove(sequence).unwrap();
        let vocab = rows.len() / tokens.len();
        for (row, next) in rows.chunks_exact(vocab).zip(&tokens[1..]) {
            let most = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let sum: f64 = row.iter().map(|l| (f64::from(*l) - most).exp()).sum();
            nll += most + sum.ln() - f64::from(row[*next as usize]);
            counted += 1;
        }
        want += wanted;
    }
    let [got, want] = [nll, want].map(|nll: f64| (nll / f64::from(counted)).exp());
    println!("perplexity {got:.5}, {want:.5} by transformers, {counted} tokens");
    assert!((got / want - 1.0).abs() < 1e-3, "perplexity {got}, wanted {want}");
}

#[test]
fn a_text_is_as_likely_as_by_the_dequantised_model() {
    check_perplexity(1);
}

#[test]
#[ignore = "long: all of held_out.txt, two minutes on two cores"]
fn all_of_the_text_is_as_likely() {
    check_perplexity(usize::MAX);
}
