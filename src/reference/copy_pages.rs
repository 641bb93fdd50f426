//! What happens to pages when sequences part.

use crate::error::{ErrorKind, Result};

/// Copies whole pages of a pool: `pool[target] = pool[source]` for each `(source, target)` of `copies`, in any order.
///
/// - `pool`: (pages, page), `page` elements each
/// - `copies`: page numbers; no page is both a source and a target, none is twice a target
///
/// # Errors
///
/// [`ErrorKind::Shape`] for a pool that is not whole pages, [`ErrorKind::Argument`] for copies that depend on
/// their order, or a page that is not there. Then nothing is copied.
///
/// ```
/// let mut pool = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
/// latten::reference::copy_pages(&mut pool, 2, &[(0, 2)])?;
/// assert_eq!(pool, [1.0, 2.0, 3.0, 4.0, 1.0, 2.0]);
/// # Ok::<(), latten::Error>(())
/// ```
pub fn copy_pages(pool: &mut [f64], page: usize, copies: &[(usize, usize)]) -> Result<()> {
    let pages = super::count_rows("pool", pool.len(), page)?;
    for (i, &(source, target)) in copies.iter().enumerate() {
        if source >= pages || target >= pages {
            return Err(ErrorKind::argument("copies", format!("{source} to {target}, of {pages} pages")));
        }
        let clash = copies[..=i].iter().any(|copy| copy.0 == target)
            || copies[..i].iter().any(|copy| copy.1 == source || copy.1 == target);
        if clash {
            return Err(ErrorKind::argument("copies", format!("{source} to {target} depends on the order")));
        }
    }
    for &(source, target) in copies {
        pool.copy_within(source * page..(source + 1) * page, target * page);
    }
    Ok(())
}
