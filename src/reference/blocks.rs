//! What blocks of quantised weights stand for, element by element, exactly.
//!
//! Source: the public description of GGUF's tensor types; of `q4_g32` and `q4_g128`, which are this crate's, that of AWQ's and
//! GPTQ's tensors. A block's numbers are little endian: f16 scales, and integers of
//! 2 to 8 bits whose parts lie in several places. All products and sums here are exact in f64; rounded to f32 they are, to the
//! last bit, what the PyPI package `gguf` computes.

use super::count_rows;
use crate::error::{ErrorKind, Result};

/// The value of element `i` of a block.
type Value = fn(&[u8], usize) -> f64;

/// The values of blocks of a type, which is named as in [`BlockType`](crate::nn::BlockType): "q4_k".
///
/// - `blocks`: (blocks, bytes of a block)
/// - returns: (blocks, elements of a block)
///
/// # Errors
///
/// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for a name that is no type's,
/// [`ErrorKind::Shape`](crate::ErrorKind::Shape) for bytes that are not whole blocks.
pub fn dequantised(block_type: &str, blocks: &[u8]) -> Result<Vec<f64>> {
    let (elements, bytes, value): (usize, usize, Value) = match block_type {
        "q4_0" => (32, 18, q4_0),
        "q4_1" => (32, 20, q4_1),
        "q5_0" => (32, 22, q5_0),
        "q5_1" => (32, 24, q5_1),
        "q8_0" => (32, 34, q8_0),
        "q2_k" => (256, 84, q2_k),
        "q3_k" => (256, 110, q3_k),
        "q4_k" => (256, 144, q4_k),
        "q5_k" => (256, 176, q5_k),
        "q6_k" => (256, 210, q6_k),
        "iq4_nl" => (32, 18, iq4_nl),
        "iq4_xs" => (256, 136, iq4_xs),
        "mxfp4" => (32, 17, mxfp4),
        "q4_g32" => (32, 20, q4_group),
        "q4_g128" => (128, 68, q4_group),
        _ => return Err(ErrorKind::argument("block_type", format!("{block_type:?} is no block type"))),
    };
    count_rows("blocks", blocks.len(), bytes)?;
    Ok(blocks.chunks_exact(bytes).flat_map(|block| (0..elements).map(move |i| value(block, i))).collect())
}

/// The f16 at a byte.
fn half(block: &[u8], at: usize) -> f64 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f64()
}

/// Some bits of a byte, as a whole number.
fn bits(byte: u8, first: usize, count: usize) -> f64 {
    f64::from((u32::from(byte) >> first) & ((1 << count) - 1))
}

/// Of 16 bytes, 32 numbers of 4 bits: the low halves first.
fn nibble(bytes: &[u8], i: usize) -> f64 {
    bits(bytes[i % 16], 4 * (i / 16), 4)
}

/// Of 128 bytes, 256 numbers of 4 bits: 32 low halves, then 32 high ones of the same bytes.
fn nibble_k(bytes: &[u8], i: usize) -> f64 {
    bits(bytes[i / 64 * 32 + i % 32], i / 32 % 2 * 4, 4)
}

/// Of 64 bytes, 256 numbers of 2 bits: 32 from the lowest bits, then 32 from the next ones, of 32 bytes at a time.
fn pair_k(bytes: &[u8], i: usize) -> f64 {
    bits(bytes[i / 128 * 32 + i % 32], i / 32 % 4 * 2, 2)
}

/// `d (q - 8)`.
fn q4_0(block: &[u8], i: usize) -> f64 {
    half(block, 0) * (nibble(&block[2..], i) - 8.0)
}

/// `d q + m`.
fn q4_1(block: &[u8], i: usize) -> f64 {
    half(block, 0) * nibble(&block[4..], i) + half(block, 2)
}

/// `d (q - 16)`; the fifth bits lie together.
fn q5_0(block: &[u8], i: usize) -> f64 {
    let fifth = bits(block[2 + i / 8], i % 8, 1);
    half(block, 0) * (nibble(&block[6..], i) + 16.0 * fifth - 16.0)
}

/// `d q + m`.
fn q5_1(block: &[u8], i: usize) -> f64 {
    let fifth = bits(block[4 + i / 8], i % 8, 1);
    half(block, 0) * (nibble(&block[8..], i) + 16.0 * fifth) + half(block, 2)
}

/// `d q`.
fn q8_0(block: &[u8], i: usize) -> f64 {
    half(block, 0) * f64::from(block[2 + i] as i8)
}

/// `d s q - dmin m`; scale and offset of 16 elements are the halves of a byte.
fn q2_k(block: &[u8], i: usize) -> f64 {
    let scales = block[i / 16];
    half(block, 80) * bits(scales, 0, 4) * pair_k(&block[16..], i) - half(block, 82) * bits(scales, 4, 4)
}

/// `d (s - 32) (q - 4)`; a scale's upper two bits lie apart, and so do the third bits.
fn q3_k(block: &[u8], i: usize) -> f64 {
    let (scales, run) = (&block[96..108], i / 16);
    let scale = bits(scales[run % 8], run / 8 * 4, 4) + 16.0 * bits(scales[8 + run % 4], run / 4 * 2, 2);
    let third = bits(block[i % 32], i / 32, 1);
    half(block, 108) * (scale - 32.0) * (pair_k(&block[32..], i) + 4.0 * third - 4.0)
}

/// Scale and offset, of 6 bits each, of the 32 elements of a run: those of the last four runs are in two pieces.
fn scale_and_offset(scales: &[u8], run: usize) -> (f64, f64) {
    match run {
        0..4 => (bits(scales[run], 0, 6), bits(scales[run + 4], 0, 6)),
        _ => (
            bits(scales[run + 4], 0, 4) + 16.0 * bits(scales[run - 4], 6, 2),
            bits(scales[run + 4], 4, 4) + 16.0 * bits(scales[run], 6, 2),
        ),
    }
}

/// `d s q - dmin m`.
fn q4_k(block: &[u8], i: usize) -> f64 {
    let (scale, offset) = scale_and_offset(&block[4..16], i / 32);
    half(block, 0) * scale * nibble_k(&block[16..], i) - half(block, 2) * offset
}

/// `d s q - dmin m`; a byte's bits are the fifth ones of a run each.
fn q5_k(block: &[u8], i: usize) -> f64 {
    let (scale, offset) = scale_and_offset(&block[4..16], i / 32);
    let q = nibble_k(&block[48..], i) + 16.0 * bits(block[16 + i % 32], i / 32, 1);
    half(block, 0) * scale * q - half(block, 2) * offset
}

/// `d s (q - 32)`; of 128 elements the lower halves of 64 bytes come first.
fn q6_k(block: &[u8], i: usize) -> f64 {
    let low = bits(block[i / 128 * 64 + i % 64], i / 64 % 2 * 4, 4);
    let q = low + 16.0 * pair_k(&block[128..], i) - 32.0;
    half(block, 208) * f64::from(block[192 + i / 16] as i8) * q
}

/// What 4 bits stand for in the types IQ4: steps that suit normal values.
const IQ4: [f64; 16] = [-127., -104., -83., -65., -49., -35., -22., -10., 1., 13., 25., 38., 53., 69., 89., 113.];

/// `d table[q]`.
fn iq4_nl(block: &[u8], i: usize) -> f64 {
    half(block, 0) * IQ4[nibble(&block[2..], i) as usize]
}

/// `d (s - 32) table[q]`; a scale's upper two bits lie apart.
fn iq4_xs(block: &[u8], i: usize) -> f64 {
    let run = i / 32;
    let scale = bits(block[4 + run / 2], run % 2 * 4, 4) + 16.0 * bits(block[2 + run / 4], run % 4 * 2, 2);
    half(block, 0) * (scale - 32.0) * IQ4[nibble(&block[8 + 16 * run..], i % 32) as usize]
}

/// `2^(e - 127)` times a float of a sign, two bits of exponent and one of mantissa. The negative zero is a zero.
fn mxfp4(block: &[u8], i: usize) -> f64 {
    const VALUES: [f64; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let q = nibble(&block[1..], i) as usize;
    let magnitude = VALUES[q % 8] * 2f64.powi(i32::from(block[0]) - 127);
    if q > 8 {
        -magnitude
    } else {
        magnitude
    }
}

/// `d (q - z)`; the integers of each 32 elements lie together.
fn q4_group(block: &[u8], i: usize) -> f64 {
    half(block, 0) * (nibble(&block[4 + 16 * (i / 32)..], i % 32) - f64::from(block[2]))
}
