//! The scheduler's texts and stop strings, by the tokenizers of published models.

use crate::common::{gpu, Rng};
use crate::streamed::Pair;
use crate::tiny::Tiny;
use latten::model::{Decoder, Finished, GenerateOptions, Request, Scheduler, Session, SessionOptions};
use latten::nn::Sampling;
use latten::DType;
use pollster::block_on;
use serde_json::json;
use std::sync::Arc;

/// A random model of more tokens than any of the tokenizers here knows.
pub(crate) fn model(vocabulary: usize) -> Tiny {
    let mut tiny = Tiny::new("gqa", 3);
    let width = tiny.size("hidden_size");
    let mut random = Rng(8);
    tiny.config.insert("vocab_size".into(), json!(vocabulary));
    tiny.tensors.insert(
        "model.embed_tokens.weight".into(),
        (vec![vocabulary, width], random.normals(vocabulary * width, 0.25)),
    );
    tiny
}

/// One request's tokens and text, and why it ended.
fn run(scheduler: &mut Scheduler, request: Request) -> (Vec<u32>, Vec<u8>, Finished) {
    scheduler.add(request).unwrap();
    let (mut tokens, mut text) = (Vec::new(), Vec::new());
    loop {
        for event in block_on(scheduler.step()).unwrap() {
            tokens.extend(event.token);
            text.extend(event.bytes);
            if let Some(why) = event.finished {
                return (tokens, text, why);
            }
        }
    }
}

/// A stop string is found wherever the tokens begin and end, and the text before it is what comes out.
#[test]
fn stop_strings_across_words_of_every_tokenizer() {
    let folder = model(400).write("tokenizer-stops");
    let decoder = Decoder::load(gpu(), folder.path(), DType::F32).unwrap();
    let mut random = Rng(5);
    for pair in crate::streamed::all() {
        let options = SessionOptions { max_batch: 1, chunk: 16, cache_tokens: 64, page_size: 8, ..Default::default() };
        let session = Session::new(&decoder, options).unwrap();
        let Pair { name, ours, library, .. } = pair;
        let tokenizer = Arc::new(ours);
        let mut scheduler = Scheduler::new(session).with_tokenizer(tokenizer.clone());
        for seed in 0..3 {
            let prompt = vec![1, 40 + seed as u32, library.token_to_id("\u{2581}world").unwrap_or(7)];
            let sampling = Sampling::new(4.0, 1.0);
            let generate = GenerateOptions { max_new_tokens: 24, sampling, seed };
            let request = Request { prompt, generate, ..Default::default() };
            let (tokens, text, why) = run(&mut scheduler, request.clone());
            let whole = tokenizer.decode_after(&request.prompt, &tokens);
            assert!(matches!(why, Finished::Length), "{name}: {why:?}");
            assert_eq!(String::from_utf8(text).unwrap(), whole, "{name}");
            let starts: Vec<usize> = whole.char_indices().map(|(at, _)| at).collect();
            let at = random.below(starts.len() - 8);
            let stop = &whole[starts[at]..starts[at + 2 + random.below(5)]];
            let stopped = Request { stop_strings: vec![b"no such".into(), stop.into()], ..request };
            let (fewer, text, why) = run(&mut scheduler, stopped);
            assert!(matches!(why, Finished::StopString(1)), "{name}: {stop:?} in {whole:?}: {why:?}");
            assert_eq!(String::from_utf8(text).unwrap(), whole[..whole.find(stop).unwrap()], "{name}: {stop:?}");
            assert!(tokens.starts_with(&fewer), "{name}: {fewer:?} of {tokens:?}");
        }
    }
}

/// What is left of a text at its end is searched too, and comes out with the last event however that is made.
#[test]
fn the_end_of_a_text_is_not_lost() {
    let folder = model(400).write("tokenizer-rest");
    let decoder = Decoder::load(gpu(), folder.path(), DType::F32).unwrap();
    let options = SessionOptions { max_batch: 1, chunk: 16, cache_tokens: 64, page_size: 8, ..Default::default() };
    // Its whole text comes at the end.
    let pair = crate::streamed::all().into_iter().find(|pair| pair.name == "pattern of all").unwrap();
    let tokenizer = Arc::new(pair.ours);
    let mut scheduler = Scheduler::new(Session::new(&decoder, options).unwrap()).with_tokenizer(tokenizer.clone());
    let sampling = Sampling::new(4.0, 1.0);
    let generate = GenerateOptions { max_new_tokens: 12, sampling, seed: 1 };
    let request = Request { prompt: vec![1], generate, ..Default::default() };
    let (tokens, text, _) = run(&mut scheduler, request.clone());
    let whole = tokenizer.decode_after(&[1], &tokens);
    assert_eq!(String::from_utf8(text).unwrap(), whole);
    let start = whole.char_indices().nth(3).unwrap().0;
    let stopped = Request { stop_strings: vec![whole[start..].into()], ..request.clone() };
    let (_, text, why) = run(&mut scheduler, stopped);
    assert!(matches!(why, Finished::StopString(0)), "{why:?}");
    assert_eq!(String::from_utf8(text).unwrap(), whole[..start]);
    // Cancelled half way.
    let id = scheduler.add(request).unwrap();
    let mut tokens = Vec::new();
    while tokens.len() < 5 {
        tokens.extend(block_on(scheduler.step()).unwrap().into_iter().filter_map(|event| event.token));
    }
    scheduler.cancel(id).unwrap();
    let text: Vec<u8> = block_on(scheduler.step()).unwrap().into_iter().flat_map(|event| event.bytes).collect();
    assert_eq!(String::from_utf8(text).unwrap(), tokenizer.decode_after(&[1], &tokens));
}
