//! Blocks to the numbers that they stand for, on the host.

use super::BlockType;
use crate::error::{ErrorKind, Result};
use half::f16;

/// What 4 bits stand for in the types IQ4.
const IQ4: [f32; 16] = [-127., -104., -83., -65., -49., -35., -22., -10., 1., 13., 25., 38., 53., 69., 89., 113.];
/// What 4 bits stand for in MXFP4, doubled.
const MXFP4: [f32; 16] = [0., 1., 2., 3., 4., 6., 8., 12., 0., -1., -2., -3., -4., -6., -8., -12.];

impl BlockType {
    /// The numbers that `blocks` stand for, in f32, to the last bit those of the PyPI package `gguf` (of its types) and
    /// [`reference::dequantised`](crate::reference::dequantised): any number of whole blocks, so also whole rows of a matrix. A
    /// scale that is not finite makes numbers that are not finite.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Shape`] unless `blocks` are whole blocks, and `values` as many as they stand for.
    pub fn dequantise(self, blocks: &[u8], values: &mut [f32]) -> Result<()> {
        let (bytes, elements) = (self.bytes(), self.elements());
        let count = blocks.len().checked_div(bytes).unwrap_or(0);
        if !blocks.len().is_multiple_of(bytes) {
            let want = format!("a multiple of {bytes}, the bytes of a block of {self}");
            return Err(ErrorKind::shape("blocks", &[blocks.len()], want));
        }
        if count.checked_mul(elements) != Some(values.len()) {
            let want = format!("{count} times {elements}, the elements of these blocks of {self}");
            return Err(ErrorKind::shape("values", &[values.len()], want));
        }
        let all = blocks.chunks_exact(bytes).zip(values.chunks_exact_mut(elements));
        match self {
            BlockType::Q4_0 => all.for_each(|(b, y)| nibbles(&b[2..], y, |q| half(b, 0) * (whole(q) - 8.0))),
            BlockType::Q4_1 => {
                all.for_each(|(b, y)| nibbles(&b[4..], y, |q| half(b, 0) * whole(q) + half(b, 2)));
            }
            BlockType::Q5_0 => all.for_each(|(b, y)| {
                fives(&b[2..6], &b[6..], y);
                y.iter_mut().for_each(|v| *v = half(b, 0) * (*v - 16.0));
            }),
            BlockType::Q5_1 => all.for_each(|(b, y)| {
                fives(&b[4..8], &b[8..], y);
                y.iter_mut().for_each(|v| *v = half(b, 0) * *v + half(b, 2));
            }),
            BlockType::Q8_0 => all.for_each(|(b, y)| {
                let d = half(b, 0);
                y.iter_mut().zip(&b[2..]).for_each(|(v, q)| *v = d * f32::from(q.cast_signed()));
            }),
            BlockType::Q2_K => all.for_each(|(b, y)| q2_k(b, y)),
            BlockType::Q3_K => all.for_each(|(b, y)| q3_k(b, y)),
            BlockType::Q4_K => all.for_each(|(b, y)| q4_k(b, y)),
            BlockType::Q5_K => all.for_each(|(b, y)| q5_k(b, y)),
            BlockType::Q6_K => all.for_each(|(b, y)| q6_k(b, y)),
            BlockType::IQ4_NL => all.for_each(|(b, y)| nibbles(&b[2..], y, |q| half(b, 0) * IQ4[usize::from(q & 15)])),
            BlockType::IQ4_XS => all.for_each(|(b, y)| iq4_xs(b, y)),
            BlockType::MXFP4 => {
                all.for_each(|(b, y)| nibbles(&b[1..], y, |q| power(b[0]) * MXFP4[usize::from(q & 15)]));
            }
            BlockType::Q4_G32 | BlockType::Q4_G128 => all.for_each(|(b, y)| {
                let (d, zero) = (half(b, 0), whole(b[2]));
                let runs = b[4..].chunks_exact(16).zip(y.chunks_exact_mut(32));
                runs.for_each(|(bytes, y)| nibbles(bytes, y, |q| d * (whole(q) - zero)));
            }),
        }
        Ok(())
    }
}

/// The f16 at a byte.
pub(super) fn half(block: &[u8], at: usize) -> f32 {
    block.get(at..).and_then(|bytes| bytes.first_chunk()).map_or(0.0, |bytes| f16::from_le_bytes(*bytes).to_f32())
}

/// Half of what a scale of MXFP4 stands for: `2^(e - 128)`.
pub(super) fn power(e: u8) -> f32 {
    match e {
        0 | 1 => f32::from_bits(0x0020_0000 << e),
        _ => f32::from_bits((u32::from(e) - 1) << 23),
    }
}

fn whole(q: u8) -> f32 {
    f32::from(q)
}

/// 32 values of 16 bytes: of the low halves, then of the high ones.
fn nibbles(bytes: &[u8], values: &mut [f32], value: impl Fn(u8) -> f32) {
    let (low, high) = values.split_at_mut(16);
    for ((low, high), q) in low.iter_mut().zip(high).zip(bytes) {
        *low = value(q & 15);
        *high = value(q >> 4);
    }
}

/// 32 numbers of 5 bits, the fifth ones apart.
fn fives(fifth: &[u8], bytes: &[u8], values: &mut [f32]) {
    nibbles(bytes, values, whole);
    let fifth = fifth.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    for (i, v) in values.iter_mut().enumerate() {
        *v += if fifth >> i & 1 == 1 { 16.0 } else { 0.0 };
    }
}

/// `d s q - dmin m` of runs of 16.
fn q2_k(block: &[u8], values: &mut [f32]) {
    let (d, least) = (half(block, 80), half(block, 82));
    for (run, values) in values.chunks_exact_mut(16).enumerate() {
        let (scale, offset) = (d * whole(block[run] & 15), least * whole(block[run] >> 4));
        let bytes = &block[16..][run / 8 * 32 + run % 2 * 16..];
        let shift = run / 2 % 4 * 2;
        values.iter_mut().zip(bytes).for_each(|(v, q)| *v = scale * whole(q >> shift & 3) - offset);
    }
}

/// The 16 scales of Q3_K, of 6 bits, with 32 added.
pub(super) fn q3_scales(scales: &[u8]) -> [u8; 16] {
    std::array::from_fn(|run| scales[run % 8] >> (run / 8 * 4) & 15 | (scales[8 + run % 4] >> (run / 4 * 2) & 3) << 4)
}

fn q3_k(block: &[u8], values: &mut [f32]) {
    let (d, scales) = (half(block, 108), q3_scales(&block[96..108]));
    for (run, values) in values.chunks_exact_mut(16).enumerate() {
        let scale = d * (whole(scales[run]) - 32.0);
        let third = &block[run % 2 * 16..];
        let bytes = &block[32..][run / 8 * 32 + run % 2 * 16..];
        let shift = run / 2 % 4 * 2;
        for ((v, q), third) in values.iter_mut().zip(bytes).zip(third) {
            let q = q >> shift & 3 | (third >> (run / 2) & 1) << 2;
            *v = scale * (whole(q) - 4.0);
        }
    }
}

/// Scale and offset of each of the 8 runs of Q4_K and Q5_K, of 6 bits.
pub(super) fn k_scales(scales: &[u8]) -> [(u8, u8); 8] {
    std::array::from_fn(|run| match run {
        0..4 => (scales[run] & 63, scales[run + 4] & 63),
        _ => {
            let low = scales[run + 4];
            (low & 15 | scales[run - 4] >> 6 << 4, low >> 4 | scales[run] >> 6 << 4)
        }
    })
}

fn q4_k(block: &[u8], values: &mut [f32]) {
    let (d, least, scales) = (half(block, 0), half(block, 2), k_scales(&block[4..16]));
    for (run, values) in values.chunks_exact_mut(32).enumerate() {
        let (scale, offset) = (d * whole(scales[run].0), least * whole(scales[run].1));
        let (bytes, shift) = (&block[16 + run / 2 * 32..], run % 2 * 4);
        values.iter_mut().zip(bytes).for_each(|(v, q)| *v = scale * whole(q >> shift & 15) - offset);
    }
}

fn q5_k(block: &[u8], values: &mut [f32]) {
    let (d, least, scales) = (half(block, 0), half(block, 2), k_scales(&block[4..16]));
    for (run, values) in values.chunks_exact_mut(32).enumerate() {
        let (scale, offset) = (d * whole(scales[run].0), least * whole(scales[run].1));
        let (bytes, shift) = (&block[48 + run / 2 * 32..], run % 2 * 4);
        for ((v, q), fifth) in values.iter_mut().zip(bytes).zip(&block[16..48]) {
            *v = scale * whole(q >> shift & 15 | (fifth >> run & 1) << 4) - offset;
        }
    }
}

fn q6_k(block: &[u8], values: &mut [f32]) {
    let d = half(block, 208);
    for (run, values) in values.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(block[192 + run].cast_signed());
        let low = &block[run / 8 * 64 + run % 4 * 16..];
        let high = &block[128 + run / 8 * 32 + run % 2 * 16..];
        let (low_shift, high_shift) = (run / 4 % 2 * 4, run / 2 % 4 * 2);
        for ((v, low), high) in values.iter_mut().zip(low).zip(high) {
            *v = scale * (whole(low >> low_shift & 15 | (high >> high_shift & 3) << 4) - 32.0);
        }
    }
}

fn iq4_xs(block: &[u8], values: &mut [f32]) {
    let (d, upper) = (half(block, 0), u16::from_le_bytes([block[2], block[3]]));
    for (run, values) in values.chunks_exact_mut(32).enumerate() {
        let scale = block[4 + run / 2] >> (run % 2 * 4) & 15 | ((upper >> (2 * run) & 3) as u8) << 4;
        let scale = d * (whole(scale) - 32.0);
        nibbles(&block[8 + 16 * run..], values, |q| scale * IQ4[usize::from(q & 15)]);
    }
}
