//! Where a token's row lies in a paged cache, as whole words: what saving and loading move, and no arithmetic.

use super::count_rows;
use crate::error::{ErrorKind, Result};

/// The rows of the first `len` tokens of a sequence, one after the other, each the token's part of every plane in order.
///
/// A page is planes one after the other, each `page_size` times so many u32s, in token order. Generic words: u32s, or
/// whatever a test counts.
///
/// - `planes`: u32s of one token in each plane
/// - `pages`: the sequence's page ids, in token order
/// - `pool`: (pages of the cache, page_size * sum of planes), the last not 0
///
/// # Errors
///
/// [`ErrorKind::Shape`](crate::ErrorKind::Shape) for a pool that is not whole pages or too few pages,
/// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for a page that the pool has not.
pub fn pages_rows<T: Copy>(
    planes: &[usize],
    page_size: usize,
    pages: &[u32],
    len: usize,
    pool: &[T],
) -> Result<Vec<T>> {
    let row = planes.iter().fold(0usize, |sum, width| sum.saturating_add(*width));
    let page_words = row.saturating_mul(page_size);
    let pool_pages = count_rows("pool", pool.len(), page_words)?;
    let mut rows = Vec::new();
    for token in 0..len {
        let page = *pages.get(token / page_size).ok_or(ErrorKind::shape("pages", &[pages.len()], "more pages"))?;
        if page as usize >= pool_pages {
            return Err(ErrorKind::argument("pages", format!("page {page}, the pool has {pool_pages}")));
        }
        let mut plane = page as usize * page_words;
        for &width in planes {
            rows.extend_from_slice(&pool[plane + token % page_size * width..][..width]);
            plane += page_size * width;
        }
    }
    Ok(rows)
}
