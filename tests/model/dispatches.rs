//! Dispatches cut for slow devices: the same results, in more pieces.

use crate::common::*;
use crate::tiny::{Tiny, VARIANTS};
use latten::model::{Config, Decoder, Session, SessionOptions, WeightBytes};
use latten::{DType, Gpu, GpuOptions};
use safetensors::tensor::Dtype;

/// Logits of a prompt and of a token after it, and the dispatches of both.
fn logits(gpu: &Gpu, tiny: &Tiny) -> (Vec<f32>, u64) {
    let config = Config::parse("config.json", &tiny.config_json()).unwrap();
    let bytes = tiny.bytes(Dtype::F32);
    let decoder =
        Decoder::from_bytes(gpu, config, WeightBytes { name: "model.safetensors", bytes: &bytes }, DType::F32).unwrap();
    let options = SessionOptions { kv_dtype: DType::F32, page_size: 4, max_batch: 2, ..Default::default() };
    let mut session = Session::new(&decoder, options).unwrap();
    let ids = [session.insert(), session.insert()];
    let prompt: Vec<u32> = (0..30).map(|i| i * 7 % 256).collect();
    let mut feed = |batch: &[(latten::SeqId, &[u32])]| pollster::block_on(session.all_logits(batch)).unwrap().concat();
    let before = gpu.counters().dispatches;
    let mut all = feed(&[(ids[0], &prompt), (ids[1], &prompt[..5])]);
    all.extend(feed(&[(ids[0], &[3]), (ids[1], &[4])]));
    (all, gpu.counters().dispatches - before)
}

#[test]
fn small_dispatches_give_the_same_bits() {
    let with = |dispatch_flop| gpu_with(GpuOptions { dispatch_flop, ..Default::default() });
    let (whole, cut) = (with(Some(u64::MAX)), with(Some(1)));
    assert_eq!((whole.capabilities().dispatch_flop, cut.capabilities().dispatch_flop), (u64::MAX, 1));
    for variant in VARIANTS {
        let tiny = Tiny::new(variant, 5);
        let ((want, few), (got, many)) = (logits(&whole, &tiny), logits(&cut, &tiny));
        assert!(many > 2 * few, "{variant}: {many} dispatches, {few} whole");
        // Attention is cut into other parts, too, which are merged; products have the same sums.
        assert_close(variant, &got, &f64s(&want), 2e-5, 1e-11);
    }
}

#[test]
fn what_a_dispatch_may_hold_is_measured() {
    let measured = pollster::block_on(latten::nn::measure_dispatch_flop(gpu())).unwrap();
    println!("{measured} FLOP, the default is {}", gpu().capabilities().dispatch_flop);
    // From 40 MFLOP/s to a PFLOP/s.
    assert!((1_000_000..25_000_000_000_000).contains(&measured), "{measured}");
}
