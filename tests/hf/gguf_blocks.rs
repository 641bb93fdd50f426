//! A GGUF file whose blocks stay on the device beside the same file in F32.

use crate::common::checkout::checkout;
use crate::common::*;
use latten::model::{Decoder, LoadOptions, Session, SessionOptions, WeightBytes};
use latten::nn::{BlockType, WeightType};
use latten::{DType, Tier};

fn logits(kind: impl Into<WeightType>) -> Vec<f32> {
    let bytes = std::fs::read(checkout("tests/vectors/gguf/tiny.gguf")).unwrap();
    let file = WeightBytes { name: "tiny.gguf", bytes: &bytes };
    let decoder = Decoder::from_gguf_bytes(gpu(), file, LoadOptions::of(kind)).unwrap();
    let options = SessionOptions { kv_dtype: DType::F32, cache_tokens: 32, ..Default::default() };
    let mut session = Session::new(&decoder, options).unwrap();
    let sequence = session.insert();
    let tokens: Vec<u32> = (0..20).map(|i| i * 7 % 24).collect();
    pollster::block_on(session.all_logits(&[(sequence, &tokens)])).unwrap().remove(0)
}

/// In F16 only the projections whose neighbours are of another type are rounded, to 2^-11 of themselves.
#[test]
fn blocks_that_stay_say_what_their_numbers_say() {
    let want = f64s(&logits(DType::F32));
    assert!(want.iter().any(|l| l.abs() > 0.1));
    // Cooperative matrices round the input by as much again.
    let (tolerance, nmse) = if gpu().capabilities().tier == Tier::Matrix { (1e-2, 2e-6) } else { (5e-3, 1e-6) };
    assert_close("kept", &logits(DType::F16), &want, tolerance, nmse);
    assert_close("quantised anew", &logits(BlockType::Q8_0), &want, 0.2, 1e-3);
}
