//! What ranks add to each other's numbers, in 16 bits. Pure.
//!
//! A row is divided by a power of two, which makes its largest number about 2^14, and rounded to f16: so none is too large for f16, and
//! a number is off by 2^-11 of itself at most, or where it is small by 2^-39 of the row's largest. (Of f16's 11 bits, and of its
//! smallest step, 2^-24.) The words are carried as f32, whose bits nobody looks at.

use half::f16;
use half::slice::HalfFloatSliceExt;

/// How numbers go from rank to rank.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Transfer {
    /// As they are.
    #[default]
    F32,
    /// In 16 bits: what a rank adds to the residual stream, never the stream itself. Each addend is rounded once, by up to 2^-11 of
    /// itself, on every rank alike. Pays where the time of an exchange is that of its bytes.
    F16,
}

/// The exponent of the power of two that a row's largest number is brought to.
const LARGEST: i32 = 14;

/// Appends rows of `width` numbers as words: the factor of each row, then all numbers, two in a word.
pub(crate) fn pack(values: &[f32], width: usize, words: &mut Vec<f32>) {
    let mut halves: Vec<f16> = Vec::with_capacity(values.len() + 1);
    let mut scaled = Vec::with_capacity(width);
    for row in values.chunks_exact(width.max(1)) {
        let largest = row.iter().fold(0.0f32, |most, v| if v.is_finite() { most.max(v.abs()) } else { most });
        let factor = power_of_two(largest);
        words.push(factor);
        scaled.clear();
        scaled.extend(row.iter().map(|v| v / factor));
        halves.extend(scaled.iter().map(|v| f16::from_f32(*v)));
    }
    if !halves.len().is_multiple_of(2) {
        halves.push(f16::ZERO);
    }
    words.extend(
        halves
            .chunks_exact(2)
            .map(|pair| f32::from_bits(u32::from(pair[0].to_bits()) | u32::from(pair[1].to_bits()) << 16)),
    );
}

/// Adds what [`pack`] made of as many numbers to `sums`.
pub(crate) fn add(words: &[f32], width: usize, sums: &mut [f32]) {
    let rows = sums.len() / width.max(1);
    let (factors, packed) = words.split_at(rows.min(words.len()));
    let halves: Vec<f16> = packed
        .iter()
        .flat_map(|word| [word.to_bits() as u16, (word.to_bits() >> 16) as u16]) // the two halves of a word
        .map(f16::from_bits)
        .collect();
    let values = halves.to_f32_vec();
    for ((row, values), factor) in sums.chunks_exact_mut(width.max(1)).zip(values.chunks(width.max(1))).zip(factors) {
        row.iter_mut().zip(values).for_each(|(sum, value)| *sum += value * factor);
    }
}

/// What a row is divided by: a power of two that f32 has, too, when it is multiplied again.
fn power_of_two(largest: f32) -> f32 {
    if largest == 0.0 {
        return 1.0;
    }
    // The exponent of a number that is no zero: those below the normal ones have that of the smallest normal one.
    let exponent = ((largest.to_bits() >> 23) as i32 & 0xff).max(1) - 127 - LARGEST;
    f32::from_bits(((exponent.clamp(-126, 127) + 127) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn back(values: &[f32], width: usize) -> Vec<f32> {
        let mut packed = Vec::new();
        pack(values, width, &mut packed);
        assert_eq!(packed.len(), values.len() / width + values.len().div_ceil(2));
        let mut sums = vec![0.0; values.len()];
        add(&packed, width, &mut sums);
        sums
    }

    #[test]
    fn numbers_of_all_sizes_are_off_by_what_is_said() {
        let mut random = fastrand::Rng::with_seed(3);
        for exponent in [-140, -120, -20, 0, 20, 100, 126] {
            for width in [1, 3, 64] {
                let mut number = || {
                    let value = (random.f32() * 2.0 - 1.0) * 2f32.powi(random.i32(-30..1));
                    value * 2f32.powi(exponent / 2) * 2f32.powi(exponent - exponent / 2)
                };
                let values: Vec<f32> = (0..5 * width).map(|_| number()).collect();
                for (row, got) in values.chunks(width).zip(back(&values, width).chunks(width)) {
                    let largest = row.iter().fold(0.0f32, |most, v| most.max(v.abs()));
                    for (want, got) in row.iter().zip(got) {
                        // The last: f32's own smallest step.
                        let off = want.abs() * 2f32.powi(-11) + largest * 2f32.powi(-38) + f32::from_bits(1);
                        assert!((want - got).abs() <= off, "{want} became {got}, row of up to {largest}");
                    }
                }
            }
        }
    }

    #[test]
    fn largest_smallest_and_no_numbers() {
        assert_eq!(back(&[0.0, -0.0, 0.0], 3), [0.0; 3]);
        let large = f32::MAX / 2.0;
        let got = back(&[large, 1.0, -large], 3);
        assert!((got[0] / large - 1.0).abs() < 5e-4 && got[1] == 0.0 && got[2] == -got[0], "{got:?}");
        let got = back(&[f32::INFINITY, 3.0, f32::NAN, f32::NEG_INFINITY], 4);
        assert!(got[0] == f32::INFINITY && got[1] == 3.0 && got[2].is_nan() && got[3] == f32::NEG_INFINITY, "{got:?}");
        // Powers of two are exact.
        let powers: Vec<f32> = (-10..10).map(|e| 2f32.powi(e)).collect();
        assert_eq!(back(&powers, 20), powers);
    }
}
