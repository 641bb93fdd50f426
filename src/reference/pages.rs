//! Where a token's row lies in a paged cache, as whole words: what saving and loading move, and no arithmetic.

use crate::error::{ErrorKind, Result};

/// The rows of the first `len` tokens of a sequence, one after the other, each the token's part of every plane in order.
///
/// A page is planes one after the other, each `page_size` times so many u32s, in token order. Generic words: u32s, or
/// whatever a test counts.
///
/// - `planes`: u32s of one token in each plane
/// - `pages`: the sequence's page ids, in token order
/// - `pool`: (pages of the cache, page_size * sum of planes)
pub fn pages_rows<T: Copy>(
    planes: &[usize],
    page_size: usize,
    pages: &[u32],
    len: usize,
    pool: &[T],
) -> Result<Vec<T>> {
    let row: usize = planes.iter().sum();
    let mut rows = Vec::new();
    for token in 0..len {
        let page = *pages.get(token / page_size).ok_or(ErrorKind::shape("pages", &[pages.len()], "more pages"))?;
        let mut plane = page as usize * page_size * row;
        for &width in planes {
            let first = plane + token % page_size * width;
            let words = pool.get(first..first + width);
            rows.extend_from_slice(words.ok_or(ErrorKind::shape("pool", &[pool.len()], "more words"))?);
            plane += page_size * width;
        }
    }
    Ok(rows)
}
