//! Numbers to blocks, on the host.

use super::BlockType;
use crate::error::{ErrorKind, Result};
use half::f16;

impl BlockType {
    /// The blocks of some numbers, in [`BlockType::Q8_0`] or [`BlockType::Q4_0`]: byte for byte those of the PyPI package
    /// `gguf`. Each number is off by about half a scale at most: of Q8_0 its block's largest magnitude over 254, of Q4_0 over 16 (over
    /// 8 where it is nearly as large as the largest, of the other sign).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] for another type, [`ErrorKind::Shape`] unless `values` are whole blocks,
    /// [`ErrorKind::Argument`] for a value that is not finite, or for which no f16 is scale enough.
    pub fn quantise(self, values: &[f32]) -> Result<Vec<u8>> {
        let code: fn(&[f32], &mut Vec<u8>) -> f32 = match self {
            BlockType::Q8_0 => q8_0,
            BlockType::Q4_0 => q4_0,
            _ => return Err(ErrorKind::Unsupported { what: format!("quantising to {self}") }.into()),
        };
        let elements = self.elements();
        if !values.len().is_multiple_of(elements) {
            let want = format!("a multiple of {elements}, the elements of a block of {self}");
            return Err(ErrorKind::shape("values", &[values.len()], want));
        }
        let mut blocks = Vec::with_capacity(values.len() / elements * self.bytes());
        for (block, values) in values.chunks_exact(elements).enumerate() {
            let at = blocks.len();
            blocks.extend([0; 2]);
            let scale = f16::from_f32(code(values, &mut blocks));
            if !scale.is_finite() {
                let odd = values.iter().copied().find(|v| !v.is_finite());
                let most = odd.unwrap_or_else(|| values.iter().fold(0.0, |most: f32, v| most.max(v.abs())));
                return Err(ErrorKind::argument("values", format!("block {block} holds {most}, too large for {self}")));
            }
            blocks[at..][..2].copy_from_slice(&scale.to_le_bytes());
        }
        Ok(blocks)
    }
}

/// The inverse of a scale; 0 of one that is 0, or lost to f16 anyway.
fn inverse(scale: f32) -> f32 {
    Some(1.0 / scale).filter(|inverse| inverse.is_finite()).unwrap_or(0.0)
}

/// Appends the codes; returns the scale, which is not finite where a value is not.
fn q8_0(values: &[f32], codes: &mut Vec<u8>) -> f32 {
    let scale = super::super::largest_magnitude(values) / 127.0;
    let inverse = inverse(scale);
    codes.extend(values.iter().map(|v| ((v * inverse).round() as i8).cast_unsigned()));
    scale
}

/// So that the code of the largest magnitude, with its sign, is -8.
fn q4_0(values: &[f32], codes: &mut Vec<u8>) -> f32 {
    let largest = values.iter().fold(0.0, |most: f32, v| if v.abs() > most.abs() || v.is_nan() { *v } else { most });
    let scale = largest / -8.0;
    let inverse = inverse(scale);
    let code = |v: &f32| (v * inverse + 8.5).clamp(0.0, 15.0) as u8;
    let (low, high) = values.split_at(16);
    codes.extend(low.iter().zip(high).map(|(low, high)| code(low) | code(high) << 4));
    scale
}
