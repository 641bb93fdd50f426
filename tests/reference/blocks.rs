//! Block types against the PyPI package `gguf`: tests/vectors/blocks.py wrote what it makes of the same blocks.

use crate::vector_files;
use latten::nn::BlockType;
use latten::reference::dequantised;
use latten::ErrorKind;
use serde_json::Value;

/// Blocks of the larger sample.
const MANY: usize = 600;

fn oracle() -> Value {
    serde_json::from_slice(&vector_files("blocks", 1)[0].1).unwrap()
}

/// As the script has it.
fn random_bytes(count: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..count).map(|_| next()).collect()
}

fn weighed(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.enumerate().fold(0, |sum: u64, (i, n)| sum.wrapping_add(n.wrapping_mul(2 * i as u64 + 1)))
}

/// Those of GGUF files.
fn of_gguf() -> impl Iterator<Item = BlockType> {
    BlockType::ALL.into_iter().filter(|block| block.gguf_id().is_some())
}

/// Where a block's f16 numbers lie.
fn halves(block: BlockType) -> &'static [usize] {
    match block {
        BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4_K | BlockType::Q5_K => &[0, 2],
        BlockType::Q2_K => &[80, 82],
        BlockType::Q3_K => &[108],
        BlockType::Q6_K => &[208],
        BlockType::MXFP4 => &[],
        _ => &[0],
    }
}

/// Exponents of all ones lose their lowest bit.
fn finite(block: BlockType, mut blocks: Vec<u8>) -> Vec<u8> {
    for bytes in blocks.chunks_exact_mut(block.bytes()) {
        for at in halves(block) {
            if bytes[at + 1] & 0x7c == 0x7c {
                bytes[at + 1] &= 0xfb;
            }
        }
    }
    blocks
}

fn digits(text: &Value, width: usize) -> Vec<u32> {
    let text = text.as_str().unwrap();
    (0..text.len()).step_by(width).map(|i| u32::from_str_radix(&text[i..i + width], 16).unwrap()).collect()
}

fn fast(block: BlockType, blocks: &[u8]) -> Vec<f32> {
    let mut values = vec![f32::NAN; blocks.len() / block.bytes() * block.elements()];
    block.dequantise(blocks, &mut values).unwrap();
    values
}

#[test]
fn blocks_stand_for_what_gguf_says_to_the_last_bit() {
    let oracle = oracle();
    for block in of_gguf() {
        let case = &oracle["types"][block.to_string()];
        let blocks: Vec<u8> = digits(&case["blocks"], 2).into_iter().map(|byte| byte as u8).collect();
        let wanted = digits(&case["values"], 8);
        assert_eq!(wanted.len(), 6 * block.elements(), "{block}");
        let exact: Vec<u32> =
            dequantised(&block.to_string(), &blocks).unwrap().iter().map(|v| (*v as f32).to_bits()).collect();
        assert_eq!(exact, wanted, "{block}");
        assert_eq!(fast(block, &blocks).iter().map(|v| v.to_bits()).collect::<Vec<_>>(), wanted, "{block}");
    }
}

#[test]
fn many_blocks_too() {
    let oracle = oracle();
    for block in of_gguf() {
        let blocks = finite(block, random_bytes(MANY * block.bytes(), 9));
        let wanted: u64 = oracle["types"][block.to_string()]["sum"].as_str().unwrap().parse().unwrap();
        let exact = dequantised(&block.to_string(), &blocks).unwrap();
        assert_eq!(weighed(exact.iter().map(|v| u64::from((*v as f32).to_bits()))), wanted, "{block}");
        assert_eq!(weighed(fast(block, &blocks).iter().map(|v| u64::from(v.to_bits()))), wanted, "{block}");
    }
}

#[test]
fn numbers_become_the_blocks_that_gguf_makes() {
    let pair = |b: &[u8]| (f32::from(b[0]) - 128.0) / 64.0 + (f32::from(b[1]) - 128.0) / 16384.0;
    let mut values: Vec<f32> = random_bytes(MANY * 64, 3).chunks_exact(2).map(pair).collect();
    for (run, values) in values.chunks_exact_mut(32).enumerate() {
        let size = if run == 7 { 0.0 } else { 2f32.powi(run as i32 % 23 - 16) };
        values.iter_mut().for_each(|v| *v *= size);
    }
    let oracle = oracle();
    for block in [BlockType::Q8_0, BlockType::Q4_0] {
        let blocks = block.quantise(&values).unwrap();
        assert_eq!(blocks.len(), MANY * block.bytes());
        let wanted: u64 = oracle["quantised"][block.to_string()].as_str().unwrap().parse().unwrap();
        assert_eq!(weighed(blocks.iter().map(|byte| u64::from(*byte))), wanted, "{block}");
        // And near what they were made of: half a scale, which is itself rounded to f16.
        let steps = if block == BlockType::Q8_0 { 254.0 } else { 8.0 };
        for (run, back) in values.chunks_exact(32).zip(fast(block, &blocks).chunks_exact(32)) {
            let largest = run.iter().fold(0.0, |most: f32, v| most.max(v.abs()));
            let most = largest * (1.0 / steps + 1.0 / 1024.0) + 1e-5;
            run.iter().zip(back).for_each(|(v, back)| assert!((v - back).abs() <= most, "{block}: {v} {back}"));
        }
    }
}

/// By hand: `d (q - z)`, q from 0 on; what the fourth byte says is nothing.
#[test]
fn groups_with_a_zero_stand_for_what_awq_and_gptq_say() {
    for (block, runs) in [(BlockType::Q4_G32, 1), (BlockType::Q4_G128, 4)] {
        for (zero, scale) in [(0u8, 0.5f32), (8, -0.25), (15, 3.0), (16, 0.5), (255, 1.0)] {
            let mut bytes = half::f16::from_f32(scale).to_le_bytes().to_vec();
            bytes.extend([zero, 0xa5]);
            // Elements 0 to 15 of a run are 0 to 15, and the others 15 to 0.
            (0..runs).for_each(|_| bytes.extend((0..16).map(|q| q | (15 - q) << 4)));
            let element = |i: usize| if i % 32 < 16 { i % 16 } else { 15 - i % 16 };
            let want: Vec<f32> = (0..32 * runs).map(|i| scale * (element(i) as f32 - f32::from(zero))).collect();
            assert_eq!(fast(block, &bytes), want, "{block} {zero}");
            let exact = dequantised(&block.to_string(), &bytes).unwrap();
            assert!(exact.iter().zip(&want).all(|(e, w)| *e == f64::from(*w)), "{block} {zero}");
        }
    }
}

#[test]
fn what_is_no_block_is_refused() {
    let mut values = vec![0.0; 64];
    for (bytes, count, name) in [(19, 32, "blocks"), (36, 63, "values"), (18, 64, "values"), (0, 32, "values")] {
        let error = BlockType::Q4_0.dequantise(&vec![0; bytes], &mut values[..count]).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Shape { name: n, .. } if *n == name), "{error}");
    }
    BlockType::Q4_0.dequantise(&[], &mut []).unwrap();
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38] {
        for block in [BlockType::Q8_0, BlockType::Q4_0] {
            values[40] = odd;
            let error = block.quantise(&values).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Argument { .. }), "{error}");
            assert!(error.to_string().contains("block 1"), "{error}");
        }
    }
    assert!(matches!(BlockType::Q4_0.quantise(&[0.0; 33]).unwrap_err().kind(), ErrorKind::Shape { .. }));
    assert!(matches!(BlockType::Q4_K.quantise(&[0.0; 256]).unwrap_err().kind(), ErrorKind::Unsupported { .. }));
    assert!(matches!(dequantised("q4_9", &[]).unwrap_err().kind(), ErrorKind::Argument { .. }));
    assert!(matches!(dequantised("q4_k", &[0; 145]).unwrap_err().kind(), ErrorKind::Shape { .. }));
}
