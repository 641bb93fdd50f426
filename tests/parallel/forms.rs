//! Tiny models with every bias and odd widths, against the f64 reference: batches, steps of several sizes, the explicit form, windows,
//! weights in blocks.

use crate::tiny::{Tiny, VARIANTS};
use crate::{devices, two_ranks, Setup};
use latten::model::{Decoder, Draw, LoadOptions, PrefillPath, SessionOptions};
use latten::nn::BlockType;
use latten::reference::DecodeOptions;
use latten::{DType, Gpu};
use pollster::block_on;

fn largest(got: &[f32], want: &[Vec<f64>]) -> f64 {
    let want: Vec<f64> = want.concat();
    assert_eq!(got.len(), want.len());
    got.iter().zip(&want).map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max)
}

fn tokens(seed: u32, count: u32) -> Vec<u32> {
    (0..count).map(|i| (seed * 31 + i * 17) % 257).collect()
}

#[test]
fn logits_are_those_of_the_reference() {
    let devices = devices();
    for (variant, prefill) in VARIANTS
        .into_iter()
        .map(|v| (v, PrefillPath::Absorbed))
        .chain([("gla", PrefillPath::Explicit), ("mla", PrefillPath::Explicit)])
    {
        let tiny = Tiny::new(variant, 11);
        let folder = tiny.write(&format!("sharded-{variant}-{prefill:?}"));
        let load = |gpu: &Gpu, options: LoadOptions<'_>| {
            Decoder::load_with(gpu, folder.path(), LoadOptions { dtype: DType::F32, ..options })
        };
        let options = SessionOptions {
            max_batch: 3,
            chunk: 10,
            page_size: 4,
            kv_dtype: DType::F32,
            prefill,
            ..Default::default()
        };
        let texts = [tokens(1, 23), tokens(2, 4), tokens(3, 9)];
        two_ranks(&devices, &load, Setup::new(options), |mut session| {
            let ids = [session.insert(), session.insert(), session.insert()];
            let batch: Vec<_> = ids.iter().zip(&texts).map(|(id, text)| (*id, &text[..])).collect();
            let logits = block_on(session.all_logits(&batch)).unwrap();
            for (text, logits) in texts.iter().zip(&logits) {
                let off = largest(logits, &tiny.forward(text));
                assert!(off < 1e-4, "{variant} {prefill:?}: {off}");
            }
            // A token for each, and a step of one of them alone.
            let more = [[7u32], [8], [9]];
            let batch: Vec<_> = ids.iter().zip(&more).map(|(id, text)| (*id, &text[..])).collect();
            let draws = [Draw::default(); 3];
            let both = block_on(session.next_tokens_and_logits(&batch, &draws)).unwrap();
            for ((text, more), (logits, token)) in texts.iter().zip(more).zip(both.logits.iter().zip(&both.tokens)) {
                let want = tiny.forward(&[&text[..], &more].concat()).pop().unwrap();
                let best = (0..want.len()).max_by(|a, b| want[*a].total_cmp(&want[*b])).unwrap();
                assert_eq!(*token as usize, best, "{variant}");
                let off = largest(logits, &[want]);
                assert!(off < 1e-4, "{variant} {prefill:?}: {off}");
            }
        });
    }
}

#[test]
fn a_window_is_alike_on_all_ranks() {
    let devices = devices();
    for variant in ["gqa", "mla"] {
        let tiny = Tiny::new(variant, 5);
        let folder = tiny.write(&format!("sharded-window-{variant}"));
        let load = |gpu: &Gpu, options: LoadOptions<'_>| {
            Decoder::load_with(gpu, folder.path(), LoadOptions { dtype: DType::F32, ..options })
        };
        let (window, keep_first) = (Some(9), 2);
        let options = SessionOptions {
            chunk: 6,
            page_size: 2,
            cache_tokens: 24,
            kv_dtype: DType::F32,
            window,
            keep_first,
            ..Default::default()
        };
        let text = tokens(4, 38);
        two_ranks(&devices, &load, Setup::new(options), |mut session| {
            let id = session.insert();
            let logits = block_on(session.all_logits(&[(id, &text)])).unwrap().swap_remove(0);
            let seen = DecodeOptions { window, keep_first, ..Default::default() };
            let off = largest(&logits, &tiny.forward_seeing(&text, &seen));
            assert!(off < 1e-4, "{variant}: {off}");
            assert!(session.stats().used < 12, "{:?}", session.stats());
        });
    }
}

/// Rows of each rank that are whole blocks, quantised as they are read: what one device has, but for the blocks' scales, which are
/// the same blocks.
#[test]
fn quantised_weights_are_those_of_one_device() {
    let devices = devices();
    let folder = crate::common::checkout::checkout("examples/models/mla");
    let options = SessionOptions { kv_dtype: DType::F32, ..Default::default() };
    let text: Vec<u32> = b"To be, or not to be".iter().map(|b| u32::from(*b)).collect();
    for blocks in [BlockType::Q8_0, BlockType::Q4_0] {
        let load = |gpu: &Gpu, options: LoadOptions<'_>| {
            Decoder::load_with(gpu, &folder, LoadOptions { blocks: Some(blocks), ..options })
        };
        let alone = load(&devices.gpus[0], LoadOptions::default()).unwrap();
        let mut session = latten::Session::new(&alone, options).unwrap();
        let id = session.insert();
        let want = block_on(session.all_logits(&[(id, &text)])).unwrap().swap_remove(0);
        let got = two_ranks(&devices, &load, Setup::new(options), |mut session| {
            let id = session.insert();
            block_on(session.all_logits(&[(id, &text)])).unwrap().swap_remove(0)
        });
        let off = crate::distance(&got, &want);
        assert!(off < 1e-4, "{blocks}: {off}");
    }
}
