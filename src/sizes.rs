//! Sizes that come from outside are multiplied and added here, once, where they come in. What lies behind may then rely
//! on the bound. Pure.
#![warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use crate::error::{ErrorKind, Result};
use std::ops::RangeInclusive;

/// Elements of a row over all of its heads, at most: kernels count them in 32 bits.
pub(crate) const MOST_ROW: usize = u32::MAX as usize;

/// A sum of products, at most `most`: `4 * 16 + 8` is of `&[&[4, 16], &[8]]`.
///
/// Errors: [`ErrorKind::Argument`] with the numbers.
pub(crate) fn sum_of_products(name: &'static str, terms: &[&[usize]], most: usize) -> Result<usize> {
    let product = |factors: &[usize]| factors.iter().try_fold(1usize, |product, n| product.checked_mul(*n));
    let sum = terms.iter().try_fold(0usize, |sum, factors| sum.checked_add(product(factors)?));
    sum.filter(|sum| *sum <= most).ok_or_else(|| {
        let product = |factors: &&[usize]| factors.iter().map(usize::to_string).collect::<Vec<_>>().join(" * ");
        let text = terms.iter().map(product).collect::<Vec<_>>().join(" + ");
        ErrorKind::argument(name, format!("{text} is more than {most}"))
    })
}

/// Refuses a number out of its range.
///
/// Errors: [`ErrorKind::Argument`] with the numbers.
pub(crate) fn expect_in(name: &'static str, number: usize, range: RangeInclusive<usize>) -> Result<()> {
    match range.contains(&number) {
        true => Ok(()),
        false => Err(ErrorKind::argument(name, format!("{number} is not in {}..={}", range.start(), range.end()))),
    }
}

/// No real model comes near; keeps every product of dimensions far inside u32.
pub(crate) const MAX_DIM: usize = 1 << 14;

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_exact_or_refused_with_their_numbers() {
        assert_eq!(sum_of_products("row", &[&[4, 16], &[8]], 72).unwrap(), 72);
        let text = |terms: &[&[usize]], most| sum_of_products("row", terms, most).unwrap_err().to_string();
        assert_eq!(text(&[&[4, 16], &[8]], 71), "row: 4 * 16 + 8 is more than 71");
        let max = usize::MAX;
        assert_eq!(text(&[&[2, max]], max), format!("row: 2 * {max} is more than {max}"));
        assert_eq!(text(&[&[max], &[1]], max), format!("row: {max} + 1 is more than {max}"));
        assert_eq!(sum_of_products("row", &[&[max], &[0]], max).unwrap(), max);
    }
}
