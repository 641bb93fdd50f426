//! Gemma 3 270M in Q4_K_M, where it is at hand: `./dev test` fetches it, or `LATTEN_GEMMA_MODEL` names it. Greedy tokens are those of the
//! transformers library with the weights dequantised to f32 (`tests/vectors/gemma3.json`, by `training/gemma3_oracle.py`).

use crate::common::checkout::checkout;
use latten::model::{Decoder, Draw, Session, SessionOptions};
use latten::DType;
use pollster::block_on;
use serde::Deserialize;
use std::path::PathBuf;

/// `tests/vectors/gemma3.json`.
#[derive(Deserialize)]
struct Vectors {
    texts: Vec<TextVector>,
}

#[derive(Deserialize)]
struct TextVector {
    text: String,
    ids: Vec<u32>,
    greedy: Vec<u32>,
    /// Least distance of a best logit from the second.
    min_gap: f32,
}

/// The model's file; says where it would be if it is not there.
fn model() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("LATTEN_GEMMA_MODEL") {
        return Some(path.into());
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))?;
    let path = cache.join("latten/gemma/gemma-3-270m-q4_k_m.gguf");
    if !path.exists() {
        println!("skipped: {} is not there (./dev test fetches it)", path.display());
        return None;
    }
    Some(path)
}

/// The first tokens behind some of the texts.
fn check(texts: std::ops::Range<usize>, tokens: usize) {
    let Some(path) = model() else { return };
    let vectors: Vectors =
        serde_json::from_slice(&std::fs::read(checkout("tests/vectors/gemma3.json")).unwrap()).unwrap();
    // Weights as they are in the file, products in f32, and a cache that rounds nothing.
    let decoder = Decoder::load(crate::common::exact_gpu(), path, DType::F16).unwrap();
    let kinds = &decoder.config().layer_kinds;
    assert_eq!((kinds.len(), kinds[4].window, kinds[5].window), (18, Some(512), None));
    let options = SessionOptions { kv_dtype: DType::F32, cache_tokens: 1024, chunk: 64, ..Default::default() };
    let mut session = Session::new(&decoder, options).unwrap();
    for vector in &vectors.texts[texts] {
        assert!(vector.min_gap > 1e-3, "{} decides nothing", vector.min_gap);
        let sequence = session.insert();
        let mut made: Vec<u32> = Vec::new();
        while made.len() < tokens.min(vector.greedy.len()) {
            let input = made.last().map_or(&vector.ids[..], std::slice::from_ref);
            made.extend(block_on(session.next_tokens(&[(sequence, input)], &[Draw::default()])).unwrap());
        }
        session.remove(sequence).unwrap();
        assert_eq!(made, vector.greedy[..made.len()], "{:?}", vector.text);
    }
}

#[test]
fn a_real_gemma_goes_on_as_the_dequantised_model_does() {
    check(0..2, 8);
}

#[test]
#[ignore = "long: 32 tokens behind six texts, one of them longer than the window, a minute"]
fn a_real_gemma_goes_on_behind_every_text() {
    check(0..6, 32);
}
