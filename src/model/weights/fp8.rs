//! Matrices in floats of 8 bits with a scale for each square of elements (`weight_scale_inv`), as DeepSeek-V3's and Kimi-K2's files have
//! them. Read as numbers.
//!
//! Source: E4M3 of Micikevicius et al., arXiv 2209.05433; squares of 128: DeepSeek-V3, arXiv 2412.19437, section 3.3.

use super::made::{Lines, MadeRows};
use super::store::{Place, WeightFile, WeightFiles};
use super::stored::Stored;
use crate::error::{shape_text, Result};
use safetensors::tensor::Dtype;
use std::ops::Range;

/// What stands behind the name of a matrix's scales, in the place of `weight`.
const SCALES: &str = "weight_scale_inv";

/// Where codes and scales lie.
pub(super) struct Fp8Rows {
    codes: Lines,
    scales: Lines,
    scales_stored: Stored,
    /// Rows and columns that share a scale.
    square: [usize; 2],
}

impl WeightFiles<'_> {
    /// Makes `x.weight`, in F32, of each `x.weight` in floats of 8 bits and its scales.
    ///
    /// Errors: [`ErrorKind::Weights`](crate::ErrorKind::Weights).
    pub(super) fn with_fp8(mut self, square: [usize; 2]) -> Result<Self> {
        let stems: Vec<String> =
            self.tensors.keys().filter_map(|name| name.strip_suffix(SCALES)).map(str::to_string).collect();
        for stem in stems {
            let (weight, scales) = (format!("{stem}weight"), format!("{stem}{SCALES}"));
            let shape = self.tensors.get(&weight).map_or(&[][..], |place| &place.shape);
            let [rows, columns] = *shape else {
                return Err(self.bad(&weight, format!("has shape {}, wanted two sizes", shape_text(shape))));
            };
            let codes = self.lines(&weight, Stored::of_safetensors(Dtype::F8_E4M3), [rows, columns])?;
            let stored = self.tensors.get(&scales).map(|place| place.stored).filter(|stored| stored.is_read());
            let stored = stored.unwrap_or(Stored::F32);
            let wanted = [rows.div_ceil(square[0]), columns.div_ceil(square[1])];
            let made = Fp8Rows { codes, scales: self.lines(&scales, stored, wanted)?, scales_stored: stored, square };
            let bytes = rows.checked_mul(columns).and_then(|elements| elements.checked_mul(4));
            let bytes = bytes.ok_or_else(|| self.bad(&weight, format!("has {rows} rows of {columns}")))?;
            let place = Place {
                file: codes.file,
                stored: Stored::F32,
                shape: [rows, columns].into(),
                offset: codes.offset,
                bytes,
                own_name: None,
                neighbours: None,
                made: Some(Box::new(MadeRows::Fp8(made))),
            };
            self.tensors.remove(&scales);
            self.tensors.insert(weight, place);
        }
        Ok(self)
    }
}

impl Fp8Rows {
    pub(super) fn read(&self, files: &[WeightFile<'_>], rows: Range<usize>, made: &mut Vec<u8>) -> Result<()> {
        let [high, wide] = self.square;
        let codes = self.codes.whole(files, rows.clone())?;
        let lines = rows.start / high..rows.end.div_ceil(high);
        let scales = self.scales_stored.decoded(&self.scales.whole(files, lines.clone())?);
        let of_line = scales.len() / lines.len().max(1);
        made.clear();
        made.reserve(4 * codes.len());
        for (row, codes) in rows.zip(codes.chunks_exact(self.codes.bytes)) {
            let scales = &scales[(row / high - lines.start) * of_line..][..of_line];
            for (codes, scale) in codes.chunks(wide).zip(scales) {
                made.extend(codes.iter().flat_map(|code| (e4m3(*code) * scale).to_le_bytes()));
            }
        }
        Ok(())
    }
}

/// A float of 8 bits: sign, 4 bits of exponent, 3 of fraction; no infinity, and one pattern that is no number.
fn e4m3(code: u8) -> f32 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let size = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => fraction / 512.0,
        _ => (8.0 + fraction) * 2f32.powi(exponent - 10),
    };
    if code >= 128 {
        -size
    } else {
        size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_numbers_of_the_paper() {
        for (code, value) in [(0x00, 0.0), (0x01, 2f32.powi(-9)), (0x07, 0.875 * 2f32.powi(-6)), (0x08, 2f32.powi(-6))]
        {
            assert_eq!(e4m3(code), value, "{code:02x}");
        }
        assert_eq!([0x38, 0x3c, 0x7e, 0xfe, 0xb9].map(e4m3), [1.0, 1.5, 448.0, -448.0, -1.125]);
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
        // Larger codes of one sign are larger numbers.
        assert!((0..0x7e).all(|code| e4m3(code) < e4m3(code + 1)));
    }
}
