//! Tiny models with every bias and odd widths, against the f64 reference: batches, steps of several sizes, the explicit form, windows,
//! weights in blocks.

use crate::common::Rng;
use crate::gguf_file::GgufWriter;
use crate::tiny::{Tiny, VARIANTS};
use crate::{allowed, devices, two_ranks, Setup};
use latten::model::{Decoder, Draw, LoadOptions, PrefillPath, Session, SessionOptions, WeightBytes};
use latten::nn::BlockType;
use latten::parallel::Shard;
use latten::reference::DecodeOptions;
use latten::{DType, Gpu};
use pollster::block_on;

pub(crate) fn largest(got: &[f32], want: &[Vec<f64>]) -> f64 {
    let want: Vec<f64> = want.concat();
    assert_eq!(got.len(), want.len());
    got.iter().zip(&want).map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max)
}

pub(crate) fn tokens(seed: u32, count: u32) -> Vec<u32> {
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
        let logits = |session: &mut Session| {
            let id = session.insert();
            block_on(session.all_logits(&[(id, &text)])).unwrap().swap_remove(0)
        };
        let alone = load(&devices.gpus[0], LoadOptions::default()).unwrap();
        let want = logits(&mut Session::new(&alone, options).unwrap());
        let got = two_ranks(&devices, &load, Setup::new(options), |mut session| logits(&mut session));
        let (off, allowed) = (crate::distance(&got, &want), allowed(&load, options, logits, &want));
        assert!(off < allowed, "{blocks}: {off}, allowed {allowed}");
    }
}

/// Random numbers as blocks of this type.
fn blocks_of(block: BlockType, count: usize, random: &mut Rng) -> Vec<u8> {
    let values: Vec<f32> = (0..count).map(|_| random.normal(0.2)).collect();
    block.quantise(&values).unwrap()
}

/// A Llama of one layer, 4 heads of 32 and a SwiGLU of 128, whose matrices are in these blocks.
fn gguf(block: BlockType) -> Vec<u8> {
    const HIDDEN: usize = 64;
    let (mut file, mut random, number) = (GgufWriter::default(), Rng(5), block.gguf_id().unwrap());
    file.text("general.architecture", "llama");
    for (key, count) in [
        ("block_count", 1),
        ("context_length", 64),
        ("embedding_length", HIDDEN as u32),
        ("feed_forward_length", 128),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("attention.key_length", 32),
        ("attention.value_length", 32),
        ("rope.dimension_count", 32),
        ("vocab_size", 257),
    ] {
        file.count(&format!("llama.{key}"), count);
    }
    file.number("llama.attention.layer_norm_rms_epsilon", 1e-5);
    for (name, rows, inputs) in [
        ("token_embd", 257, HIDDEN),
        ("blk.0.attn_q", 128, HIDDEN),
        ("blk.0.attn_k", 64, HIDDEN),
        ("blk.0.attn_v", 64, HIDDEN),
        ("blk.0.attn_output", HIDDEN, 128),
        ("blk.0.ffn_gate", 128, HIDDEN),
        ("blk.0.ffn_up", 128, HIDDEN),
        ("blk.0.ffn_down", HIDDEN, 128),
    ] {
        file.tensor(&format!("{name}.weight"), &[rows, inputs], number, blocks_of(block, rows * inputs, &mut random));
    }
    for name in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"] {
        file.floats(&format!("{name}.weight"), &[HIDDEN], &[1.0; HIDDEN]);
    }
    file.bytes()
}

/// Columns of rows in blocks: those of a file of bytes, and of a file on the disk, kept as they are and as numbers.
#[test]
fn blocks_of_a_file_are_cut_between_blocks() {
    let devices = devices();
    let folder = crate::tiny::Folder::new("sharded-gguf");
    let options = SessionOptions { kv_dtype: DType::F32, page_size: 8, cache_tokens: 64, ..Default::default() };
    let text = tokens(5, 20);
    for (block, dtype) in [(BlockType::Q4_0, DType::F16), (BlockType::Q8_0, DType::F16), (BlockType::Q4_0, DType::F32)]
    {
        let bytes = gguf(block);
        let path = folder.path().join(format!("{block}.gguf"));
        std::fs::write(&path, &bytes).unwrap();
        let load = |gpu: &Gpu, options: LoadOptions<'_>| {
            let options = LoadOptions { dtype, ..options };
            match options.shard.rank() {
                0 => Decoder::from_gguf_bytes(gpu, WeightBytes { name: "some.gguf", bytes: &bytes }, options),
                _ => Decoder::load_with(gpu, &path, options),
            }
        };
        let logits = |session: &mut Session| {
            let id = session.insert();
            block_on(session.all_logits(&[(id, &text)])).unwrap().swap_remove(0)
        };
        let alone = load(&devices.gpus[0], LoadOptions::default()).unwrap();
        let want = logits(&mut Session::new(&alone, options).unwrap());
        assert!(want.iter().any(|l| l.abs() > 0.5));
        let got = two_ranks(&devices, &load, Setup::new(options), |mut session| logits(&mut session));
        let (off, allowed) = (crate::distance(&got, &want), allowed(&load, options, logits, &want));
        assert!(off < allowed, "{block} {dtype}: {off}, allowed {allowed}");
    }
    // 32 inputs of attn_output are one block.
    let bytes = std::fs::read(crate::common::checkout::checkout("tests/vectors/gguf/tiny.gguf")).unwrap();
    let shard = Shard::new(0, 2).unwrap();
    let file = WeightBytes { name: "tiny.gguf", bytes: &bytes };
    let options = LoadOptions { shard, ..Default::default() };
    let error = Decoder::from_gguf_bytes(&devices.gpus[0], file, options).unwrap_err().to_string();
    let why = "is in Q4_1, blocks of 32, and cannot be cut at the inputs 0 and 16 of a rank";
    assert!(error.contains("attn_output.weight") && error.contains(why), "{error}");
}
