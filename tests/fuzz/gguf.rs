//! GGUF files with bytes that are not theirs: an error or a file, never a panic, nor more memory than the file has bytes. Each
//! case is a small model whose bytes are changed, mostly in its header, where a few bits make a count or a length of anything.

use crate::common::Rng;
use crate::device::World;
use crate::memory;
use crate::written::GgufWriter;
use latten::model::{Decoder, GgufMetadata, LoadOptions, WeightBytes};
use latten::DType;
use std::panic::{catch_unwind, AssertUnwindSafe};

/// What reading takes beside a part of the file: the buffer of lists, names in trees, messages.
const BESIDE: usize = 128 << 10;
/// One of so many files that are read whole becomes a model.
const LOADED: u64 = 16;

/// A Llama of one layer, with lists of all kinds beside.
fn model() -> GgufWriter {
    let mut file = GgufWriter::default();
    file.text("general.architecture", "llama").text("general.name", "tiny").count("general.alignment", 32);
    file.count("llama.block_count", 1).count("llama.context_length", 32).count("llama.embedding_length", 32);
    file.count("llama.feed_forward_length", 32).count("llama.attention.head_count", 4);
    file.counts("llama.attention.head_count_kv", &[2]).number("llama.attention.layer_norm_rms_epsilon", 1e-5);
    file.number("llama.rope.freq_base", 1e4).count("llama.rope.dimension_count", 8);
    file.texts("tokenizer.ggml.tokens", &["a", "b", "ab", "c"]).numbers("tokenizer.ggml.scores", &[0.0; 4]);
    file.counts("tokenizer.ggml.token_type", &[1; 4]).flag("tokenizer.ggml.add_bos_token", true);
    let inner = crate::written::list(crate::written::TEXT, &[crate::written::string("x")]);
    file.value("general.nested", crate::written::LIST, crate::written::list(crate::written::LIST, &[inner]));
    // Blocks of Q8_0, whose bytes are numbers whatever they are but for their scales.
    let quantised = |rows: usize| [&[0u8, 0x20][..], &[3; 32]].concat().repeat(rows);
    file.tensor("token_embd.weight", &[4, 32], 8, quantised(4));
    for (name, rows) in [("attn_q", 32), ("attn_k", 16), ("attn_v", 16), ("attn_output", 32)] {
        file.tensor(&format!("blk.0.{name}.weight"), &[rows, 32], 8, quantised(rows));
    }
    for name in ["ffn_gate", "ffn_up", "ffn_down"] {
        file.tensor(&format!("blk.0.{name}.weight"), &[32, 32], 1, vec![0; 2048]);
    }
    for name in ["blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"] {
        file.floats(&format!("{name}.weight"), &[32], &[1.0; 32]);
    }
    file
}

/// Changes a few bytes, of the first `header` mostly, or cuts the file.
fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>, header: usize) {
    for _ in 0..1 + rng.below(3) {
        let within = if rng.below(8) == 0 { bytes.len() } else { header.min(bytes.len()) };
        let Some(at) = within.checked_sub(1).map(|last| rng.below(last + 1)) else { return };
        match rng.below(8) {
            0..=2 => bytes[at] ^= 1 << rng.below(8),
            3 => bytes[at] = rng.next() as u8,
            4 => {
                // A count, or a length.
                let value = [0, 1, u64::MAX, 1 << 32, 1 << 63, rng.next() >> rng.below(64)][rng.below(6)];
                let end = bytes.len().min(at + 8);
                bytes[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
            }
            5 => bytes.truncate(at),
            6 => {
                bytes.remove(at);
            }
            _ => bytes.insert(at, rng.next() as u8),
        }
    }
}

/// What came of the cases: read as files, loaded as models, refused.
#[derive(Debug, Default)]
struct Came {
    read: u64,
    loaded: u64,
    refused: u64,
}

fn run(seeds: std::ops::Range<u64>) -> Came {
    let (world, sound) = (World::new(), model().bytes());
    let header = GgufMetadata::from_bytes("m.gguf", &sound).unwrap();
    let header = sound.len() - header.tensors().map(|tensor| tensor.bytes as usize).sum::<usize>();
    let mut came = Came::default();
    for seed in seeds {
        let mut rng = Rng(seed.wrapping_mul(0xd134_2543_de82_ef95) ^ 0x1234);
        let mut bytes = sound.clone();
        mutate(&mut rng, &mut bytes, header);
        memory::begin(seed);
        let read = catch_unwind(|| GgufMetadata::from_bytes("m.gguf", &bytes));
        let (read, largest) = (read.unwrap_or_else(|_| panic!("case {seed} panics")), memory::largest());
        assert!(largest <= bytes.len() + BESIDE, "case {seed}: {largest} bytes at once of a file of {}", bytes.len());
        let Ok(file) = read else {
            came.refused += 1;
            continue;
        };
        came.read += 1;
        assert!(file.keys().all(|key| file.words(key).is_some()) && file.tensors().all(|t| t.bytes > 0), "case {seed}");
        if seed % LOADED == 0 {
            let load = || {
                let file = WeightBytes { name: "m.gguf", bytes: &bytes };
                Decoder::from_gguf_bytes(&world.gpu, file, LoadOptions { dtype: DType::F32, ..Default::default() })
            };
            let loaded = catch_unwind(AssertUnwindSafe(load)).unwrap_or_else(|_| panic!("case {seed} panics"));
            came.loaded += u64::from(loaded.is_ok());
        }
    }
    came
}

#[test]
fn mutated_gguf_files() {
    let came = run(0..20_000);
    println!("{came:?}");
    assert!(came.read > 1000 && came.refused > 1000 && came.loaded > 30, "{came:?}: too few of one");
}

#[test]
#[ignore = "long: 10^6 files, minutes"]
fn mutated_gguf_files_of_a_million_cases() {
    println!("{:?}", run(20_000..1_020_000));
}
