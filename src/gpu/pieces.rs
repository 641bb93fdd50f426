//! A grid in several dispatches, each a bounded amount of work. Pure.
#![warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

/// Where a piece begins (x, y), and its grid.
type GridPiece = ((u32, u32), (u32, u32, u32));

/// A grid whose workgroups take `flop` each, in pieces of about `most` at the most: runs of y, or where one is too much
/// runs of x within it. At least one workgroup of every z is a piece.
pub(crate) fn pieces(grid: (u32, u32, u32), flop: u64, most: u64) -> Vec<GridPiece> {
    let (x, y, z) = grid;
    let column = flop.saturating_mul(z.into()).max(1);
    let row = column.saturating_mul(x.into());
    // Pieces begin at numbers of 16 bits in x and 14 in y.
    if row.saturating_mul(y.into()) <= most || x >= 1 << 16 || y >= 1 << 14 {
        return vec![((0, 0), grid)];
    }
    let fits = |flop: u64, of: u32| {
        u32::try_from(most.checked_div(flop).unwrap_or(most)).unwrap_or(u32::MAX).clamp(1, of.max(1))
    };
    let (width, height) = if row <= most { (x, fits(row, y)) } else { (fits(column, x), 1) };
    let runs = |of: u32, step: u32| {
        (0..of).step_by(step as usize).map(move |first| (first, step.min(of.saturating_sub(first))))
    };
    let in_y = runs(y, height);
    in_y.flat_map(|(y, height)| runs(x, width).map(move |(x, width)| ((x, y), (width, height, z)))).collect()
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_grid_once_within_the_bound() {
        for grid in [(1, 1, 1), (7, 1, 3), (5, 9, 2), (64, 33, 1), (300, 2, 16)] {
            for (flop, most) in [(10, u64::MAX), (10, 10), (10, 1), (10, 95), (10, 640), (3, 5000)] {
                let mut seen = std::collections::HashSet::new();
                let pieces = pieces(grid, flop, most);
                for &((x0, y0), (nx, ny, nz)) in &pieces {
                    let groups = u64::from(nx * ny * nz);
                    assert!(groups * flop <= most || (nx, ny) == (1, 1), "{grid:?} {flop} {most}: {pieces:?}");
                    assert_eq!(nz, grid.2);
                    for x in x0..x0 + nx {
                        assert!((y0..y0 + ny).all(|y| x < grid.0 && y < grid.1 && seen.insert((x, y))));
                    }
                }
                assert_eq!(seen.len() as u32, grid.0 * grid.1, "{grid:?} {flop} {most}");
                let all = u64::from(grid.0 * grid.1 * grid.2) * flop;
                assert!(pieces.len() == 1 || all > most, "{grid:?} {flop} {most}: {pieces:?}");
            }
        }
    }
}
