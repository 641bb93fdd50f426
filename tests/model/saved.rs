//! Sessions that are saved and loaded go on as if they had not been.

use crate::assert_kind;
use crate::common::*;
use crate::tiny::{Tiny, VARIANTS};
use latten::cache::SaveSequence;
use latten::model::{continue_sequence, generate, Decoder, GenerateOptions, PrefillPath, Session, SessionOptions};
use latten::{DType, ErrorKind, GpuOptions, SavedFault, SeqId};
use pollster::block_on;
use std::ops::ControlFlow;

const PROMPT: &[u32] = &[5, 6, 7, 8, 9, 10, 11];
const OPTIONS: SessionOptions = SessionOptions {
    max_batch: 2,
    chunk: 8,
    cache_tokens: 200,
    page_size: 8,
    kv_dtype: DType::F16,
    window: None,
    keep_first: 0,
    max_tokens: None,
    window_pools: false,
    prefill: PrefillPath::Auto,
};

fn decoder(variant: &str, seed: u64, dtype: DType) -> Decoder {
    let folder = Tiny::new(variant, seed).write(&format!("saved-{variant}-{seed}-{dtype}"));
    Decoder::load(gpu(), folder.path(), dtype).unwrap()
}

fn save(session: &mut Session, id: SeqId, tokens: &[u32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    block_on(session.save(&[SaveSequence { id, tokens }], &mut bytes, |_| {})).unwrap();
    bytes
}

fn greedy(max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_new_tokens, ..Default::default() }
}

/// Every variant, and every cache dtype, saved after ten tokens of 24, in sessions of other page sizes: the same tokens, and the same
/// logits to the bit.
#[test]
fn a_loaded_session_goes_on_as_if_it_had_stayed() {
    let all = |_| ControlFlow::Continue(());
    for (i, variant) in VARIANTS.into_iter().enumerate() {
        let decoder = decoder(variant, 5, DType::F16);
        // The dtypes with one variant, and the variants with one dtype: software GPUs take seconds to compile each.
        let others = [DType::F32, DType::BF16, DType::I8].into_iter().filter(|_| variant == "gla");
        for kv_dtype in [DType::F16].into_iter().chain(others) {
            let options = SessionOptions { kv_dtype, ..OPTIONS };
            let mut stayed = Session::new(&decoder, options).unwrap();
            let want = block_on(generate(&mut stayed, PROMPT, greedy(24), all)).unwrap();

            let mut first = Session::new(&decoder, options).unwrap();
            let id = first.insert();
            let made = block_on(continue_sequence(&mut first, id, PROMPT, greedy(10), all)).unwrap();
            assert_eq!(made, want[..10], "{variant} {kv_dtype}");
            let tokens = [PROMPT, &made].concat();
            let bytes = save(&mut first, id, &tokens);

            let page_size = [1, 16, 32, 4][i];
            let mut second = Session::new(&decoder, SessionOptions { page_size, ..options }).unwrap();
            let other = second.insert();
            block_on(second.logits(&[(other, &[1, 2, 3])])).unwrap();
            let loaded = block_on(second.load(&bytes[..], |_| {})).unwrap();
            let [loaded] = &loaded[..] else { panic!("{loaded:?}") };
            assert_eq!((&loaded.tokens, second.len(loaded.id).unwrap()), (&tokens, tokens.len() - 1));
            let input = &loaded.tokens[second.len(loaded.id).unwrap()..];
            // The logits of the same token there and here, then back.
            let stayed = block_on(first.logits(&[(id, input)])).unwrap();
            let came = block_on(second.logits(&[(loaded.id, input)])).unwrap();
            let bits = |logits: &[Vec<f32>]| logits[0].iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&stayed), bits(&came), "{variant} {kv_dtype} pages of {page_size}");
            second.truncate(loaded.id, tokens.len() - 1).unwrap();
            let rest = block_on(continue_sequence(&mut second, loaded.id, input, greedy(14), all)).unwrap();
            assert_eq!(rest, want[10..], "{variant} {kv_dtype} pages of {page_size}");
        }
    }
}

/// What the session knows of its tokens need not be given.
#[test]
fn a_session_saves_the_tokens_that_it_knows() {
    let decoder = decoder("gta", 9, DType::F16);
    let mut first = Session::new(&decoder, OPTIONS).unwrap();
    let id = first.match_prefix(PROMPT, 0);
    block_on(first.logits(&[(id, PROMPT)])).unwrap();
    let fork = first.fork(id).unwrap();
    block_on(first.logits(&[(fork, &[40, 41, 42])])).unwrap();
    let sequences = [id, fork].map(|id| SaveSequence { id, tokens: &[] });
    let mut bytes = Vec::new();
    block_on(first.save(&sequences, &mut bytes, |_| {})).unwrap();
    let mut second = Session::new(&decoder, OPTIONS).unwrap();
    let loaded = block_on(second.load(&bytes[..], |_| {})).unwrap();
    assert_eq!(loaded[0].tokens, PROMPT);
    assert_eq!(loaded[1].tokens, [PROMPT, &[40, 41, 42]].concat());
    let next = |session: &mut Session, id| block_on(session.logits(&[(id, &[50])])).unwrap();
    assert_eq!(next(&mut first, fork), next(&mut second, loaded[1].id));
    let tokens = [PROMPT, &[40, 41, 43]].concat();
    let wrong = block_on(first.save(&[SaveSequence { id: fork, tokens: &tokens }], &mut Vec::new(), |_| {}));
    assert_kind!(wrong, ErrorKind::Argument { name: "tokens", .. });
}

#[test]
fn sessions_of_other_models_are_refused() {
    let mine = decoder("gqa", 1, DType::F16);
    let mut session = Session::new(&mine, OPTIONS).unwrap();
    let id = session.insert();
    block_on(session.logits(&[(id, PROMPT)])).unwrap();
    let bytes = save(&mut session, id, PROMPT);
    assert_eq!(decoder("gqa", 1, DType::F16).fingerprint(), mine.fingerprint());
    let mut other_eps = Tiny::new("gqa", 1);
    other_eps.config.insert("rms_norm_eps".into(), serde_json::json!(1e-5));
    let folder = other_eps.write("saved-eps");
    // Other weights, the same weights rounded to 8 bits, another config.
    let others = [
        decoder("gqa", 2, DType::F16),
        decoder("gqa", 1, DType::I8),
        Decoder::load(gpu(), folder.path(), DType::F16).unwrap(),
    ];
    for other in others {
        let mut session = Session::new(&other, OPTIONS).unwrap();
        let result = block_on(session.load(&bytes[..], |_| {}));
        assert_kind!(
            result,
            ErrorKind::Saved {
                fault: SavedFault::Other { name: "model (weights, dtype and config), window or window_pools", .. },
                ..
            }
        );
        assert_eq!(session.stats().used, 0);
    }
    let mut again = Session::new(&mine, OPTIONS).unwrap();
    assert_eq!(block_on(again.load(&bytes[..], |_| {})).unwrap().len(), 1);
    let mut damaged = bytes.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    assert_kind!(
        block_on(again.load(&damaged[..], |_| {})),
        ErrorKind::Saved { fault: SavedFault::Damaged { .. }, .. }
    );
    assert_eq!(again.stats().used, 1);
}

#[test]
fn continuing_is_bounded_by_the_positions_of_the_model() {
    let decoder = decoder("mla", 3, DType::F32);
    let mut session = Session::new(&decoder, OPTIONS).unwrap();
    let id = session.insert();
    let all = |_| ControlFlow::Continue(());
    block_on(continue_sequence(&mut session, id, &[1; 20], greedy(1), all)).unwrap();
    // 20 are there; 10 more and 11 new ones, the last of which is not fed, fill 40 positions.
    let text = message(block_on(continue_sequence(&mut session, id, &[1; 10], greedy(12), all)));
    assert_eq!(text, "max_new_tokens: 12 after a prompt of 30 exceed the model's max_position_embeddings, 40");
    assert_eq!(session.len(id).unwrap(), 20);
    assert_eq!(block_on(continue_sequence(&mut session, id, &[1; 10], greedy(11), all)).unwrap().len(), 11);
    session.remove(id).unwrap();
    assert_kind!(
        block_on(continue_sequence(&mut session, id, &[1], greedy(1), all)),
        ErrorKind::UnknownSequence { .. }
    );
}

/// A session whose device was lost goes on with the model on another: fed again, and from a save.
#[test]
fn a_session_outlives_its_device() {
    let folder = Tiny::new("gla", 5).write("lost");
    let doomed = gpu_with(GpuOptions::default());
    let decoder = Decoder::load(&doomed, folder.path(), DType::F16).unwrap();
    let mut session = Session::new(&decoder, OPTIONS).unwrap();
    let (fed, saved) = (session.match_prefix(PROMPT, 0), session.insert());
    block_on(session.logits(&[(fed, PROMPT), (saved, PROMPT)])).unwrap();
    let file = save(&mut session, saved, PROMPT);
    let want = block_on(session.logits(&[(fed, &[3])])).unwrap();

    doomed.device().destroy();
    let error = block_on(session.logits(&[(fed, &[4])])).unwrap_err();
    assert_kind!(Err::<(), _>(error), ErrorKind::DeviceLost { .. });
    let other = Decoder::load(gpu(), Tiny::new("gla", 6).write("lost-other").path(), DType::F16).unwrap();
    assert_kind!(session.rebuild(&other), ErrorKind::Argument { name: "decoder", .. });
    assert_eq!(session.len(fed).unwrap(), PROMPT.len() + 1);

    let decoder = Decoder::load(gpu(), folder.path(), DType::F16).unwrap();
    let emptied = session.rebuild(&decoder).unwrap();
    let tokens = [PROMPT, &[3]].concat();
    assert_eq!(emptied.iter().map(|e| (e.id, e.len)).collect::<Vec<_>>(), [(fed, 8), (saved, 7)]);
    assert_eq!((&emptied[0].tokens, &emptied[1].tokens), (&Some(tokens), &None));
    let back = block_on(session.load(&file[..], |_| {})).unwrap().remove(0);
    block_on(session.logits(&[(fed, PROMPT)])).unwrap();
    let got = block_on(session.logits(&[(fed, &[3]), (back.id, &[3])])).unwrap();
    let bits = |logits: &[f32]| logits.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert!(got.iter().all(|logits| bits(logits) == bits(&want[0])));
}
