//! The shipped models, and published ones with experts: two ranks make the tokens of one, and its logits up to rounding.

use crate::common::checkout::checkout;
use crate::{allowed, devices, distance, hf, two_ranks, Setup};
use latten::model::{generate, Config, Decoder, GenerateOptions, LoadOptions, Session, SessionOptions, WeightBytes};
use latten::parallel::Transfer;
use latten::{DType, Gpu, Result};
use pollster::block_on;
use safetensors::tensor::Dtype;
use std::ops::ControlFlow;

const PROMPT: &[u8] = b"ROMEO:\nWhat light through yonder window breaks?\n";

fn prompt() -> Vec<u32> {
    PROMPT.iter().map(|b| u32::from(*b)).collect()
}

/// Tokens, and the logits after each token of prompt and answer.
pub(crate) fn tokens_and_logits(session: &mut Session) -> (Vec<u32>, Vec<f32>) {
    let options = GenerateOptions { max_new_tokens: 24, ..Default::default() };
    let tokens = block_on(generate(session, &prompt(), options, |_| ControlFlow::Continue(()))).unwrap();
    let all = [prompt(), tokens.clone()].concat();
    let id = session.insert();
    let logits = block_on(session.all_logits(&[(id, &all)])).unwrap().swap_remove(0);
    session.remove(id).unwrap();
    (tokens, logits)
}

/// What else a model is tried with: sums in 16 bits, a cache in f16.
#[derive(PartialEq)]
enum Also {
    Nothing,
    HalvesAndF16,
}

fn shipped(variant: &str, also: Also) {
    let devices = devices();
    let folder = checkout(&format!("examples/models/{variant}"));
    // Prompts in two steps, the second with other sizes.
    let options = SessionOptions { kv_dtype: DType::F32, chunk: 32, ..Default::default() };
    let load = |gpu: &Gpu, options: LoadOptions<'_>| Decoder::load_with(gpu, &folder, options);
    let alone = load(&devices.gpus[0], LoadOptions::default()).unwrap();
    let (want, logits) = tokens_and_logits(&mut Session::new(&alone, options).unwrap());
    let (tokens, got) = two_ranks(&devices, &load, Setup::new(options), |mut session| tokens_and_logits(&mut session));
    assert_eq!(tokens, want, "{variant}");
    let off = distance(&got, &logits);
    println!("{variant}: logits differ by up to {off:e}");
    let allowed = allowed(&load, options, |session| logits_of(session, &want), &logits);
    assert!(off < allowed, "{variant}: {off}, allowed {allowed}");
    if also == Also::Nothing {
        return;
    }
    // In 16 bits: each of 8 exchanges rounds what is added to the stream by up to 2^-11 of it.
    let halves = Setup { transfer: Transfer::F16, ..Setup::new(options) };
    let got = two_ranks(&devices, &load, halves, |mut session| logits_of(&mut session, &want));
    let off = distance(&got, &logits);
    println!("{variant}: in 16 bits by up to {off:e}");
    assert!(off > 0.0 && off < 0.1, "{variant}: {off}");
    // A cache in f16, which rounds what differs in the last bit to other numbers.
    let options = SessionOptions { kv_dtype: DType::F16, ..options };
    let (want, _) = tokens_and_logits(&mut Session::new(&alone, options).unwrap());
    let (tokens, _) = two_ranks(&devices, &load, Setup::new(options), |mut session| tokens_and_logits(&mut session));
    assert_eq!(tokens, want, "{variant}");
}

/// The logits of a text that is given, whatever would be drawn.
pub(crate) fn logits_of(session: &mut Session, answer: &[u32]) -> Vec<f32> {
    let all = [prompt(), answer.to_vec()].concat();
    let id = session.insert();
    block_on(session.all_logits(&[(id, &all)])).unwrap().swap_remove(0)
}

#[test]
fn shipped_gqa() {
    shipped("gqa", Also::HalvesAndF16);
}

#[test]
fn shipped_gta() {
    shipped("gta", Also::Nothing);
}

#[test]
fn shipped_gla() {
    shipped("gla", Also::HalvesAndF16);
}

#[test]
fn shipped_mla() {
    shipped("mla", Also::Nothing);
}

#[test]
#[ignore = "long: half a minute, most of it compiling"]
fn shipped_gta_and_mla_in_16_bits() {
    shipped("gta", Also::HalvesAndF16);
    shipped("mla", Also::HalvesAndF16);
}

/// Experts by their width, shared ones, layers without; and the layers of GLA's authors, whose latents lie in tensors of their own.
#[test]
fn published_cases() {
    let devices = devices();
    for case in ["deepseek_v3_experts", "deepseek_v2_lite", "authors_gla_biased", "qwen2", "qwen3", "phi3", "mixtral"] {
        let vectors = hf::Vectors::read(case);
        let bytes = hf::file(&vectors.tensors, Dtype::F32);
        let config = Config::parse("config.json", &hf::config_text(case)).unwrap();
        let load = |gpu: &Gpu, options: LoadOptions<'_>| -> Result<Decoder> {
            let weights = WeightBytes { name: "model.safetensors", bytes: &bytes };
            Decoder::from_bytes_with(gpu, config.clone(), weights, LoadOptions { dtype: DType::F32, ..options })
        };
        let options = SessionOptions { kv_dtype: DType::F32, page_size: 8, chunk: 16, ..Default::default() };
        let fed = vectors.fed();
        let logits = two_ranks(&devices, &load, Setup::new(options), |mut session| {
            let id = session.insert();
            block_on(session.all_logits(&[(id, &fed)])).unwrap().swap_remove(0)
        });
        let off = vectors.distance(&logits);
        println!("{case}: {off:e}");
        assert!(off < 1e-4, "{case}: {off}");
    }
}
