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
fn check(texts: std::ops::Range<usize>, tokens: usize, window_pools: bool) {
    let Some(path) = model() else { return };
    let vectors: Vectors =
        serde_json::from_slice(&std::fs::read(checkout("tests/vectors/gemma3.json")).unwrap()).unwrap();
    // Weights as they are in the file, products in f32, and a cache that rounds nothing.
    let decoder = Decoder::load(crate::common::exact_gpu(), path, DType::F16).unwrap();
    let kinds = &decoder.config().layer_kinds;
    assert_eq!((kinds.len(), kinds[4].window, kinds[5].window), (18, Some(512), None));
    let options = SessionOptions { kv_dtype: DType::F32, chunk: 64, window_pools, ..Default::default() };
    let mut session = Session::new(&decoder, SessionOptions { cache_tokens: 4096, ..options }).unwrap();
    // Of 64 pages those of a window of 512, twice, and 7 more.
    let pages = if window_pools { 3 * 64 + 15 * 23 } else { 18 * 64 };
    assert_eq!(session.cache().pool_bytes(), pages * 64 * 2 * 256 * 4);
    if window_pools {
        // By the cache's sizes: bytes of pages for 32,768 tokens in f16, without and with pools of their own.
        let bytes = [false, true].map(|window_pools| {
            let options = SessionOptions { window_pools, cache_tokens: 32 << 10, ..Default::default() };
            Session::new(&decoder, options).unwrap().cache().pool_bytes()
        });
        println!("32,768 tokens: {bytes:?} bytes of cache");
        assert_eq!(bytes.map(|bytes| bytes >> 16), [18 * 512, 3 * 512 + 15 * 24]);
    }
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
    check(0..2, 8, false);
}

#[test]
#[ignore = "long: 32 tokens behind six texts, one of them longer than the window, a minute"]
fn a_real_gemma_goes_on_behind_every_text() {
    check(0..6, 32, false);
}

#[test]
#[ignore = "long: the same with pools of their own for layers with a window, a minute"]
fn a_real_gemma_goes_on_with_fewer_pages() {
    check(0..6, 32, true);
}
