//! A small greedy generator of pairwise test plans: rows in which every pair of values of every two columns occurs.

use crate::common::Rng;
use std::collections::BTreeSet;

type Pair = ((usize, usize), (usize, usize));

/// Rows of value indices, `widths[c]` values in column c, until every allowed pair occurs. `allowed` is asked of rows
/// that are partly filled (`None`) and must never refuse what a fuller row may be.
pub fn rows(widths: &[usize], seed: u64, allowed: impl Fn(&[Option<usize>]) -> bool) -> Vec<Vec<usize>> {
    let mut rng = Rng(seed);
    let mut open: BTreeSet<Pair> = BTreeSet::new();
    for a in 0..widths.len() {
        for b in a + 1..widths.len() {
            for (x, y) in (0..widths[a]).flat_map(|x| (0..widths[b]).map(move |y| (x, y))) {
                let mut row = vec![None; widths.len()];
                (row[a], row[b]) = (Some(x), Some(y));
                if allowed(&row) {
                    open.insert(((a, x), (b, y)));
                }
            }
        }
    }
    let mut rows = Vec::new();
    while !open.is_empty() {
        let best = (0..24).filter_map(|_| candidate(widths, &open, &mut rng, &allowed)).max_by_key(|(_, n)| *n);
        let (row, covered) = best.expect("a pair that the constraints allow alone fits into no row");
        assert!(covered > 0);
        open.retain(|((a, x), (b, y))| row[*a] != *x || row[*b] != *y);
        rows.push(row);
    }
    rows
}

/// A row that starts from an open pair and takes for each other column the value that closes the most.
fn candidate(
    widths: &[usize],
    open: &BTreeSet<Pair>,
    rng: &mut Rng,
    allowed: &impl Fn(&[Option<usize>]) -> bool,
) -> Option<(Vec<usize>, usize)> {
    let mut row: Vec<Option<usize>> = vec![None; widths.len()];
    let &((a, x), (b, y)) = open.iter().nth(rng.below(open.len()))?;
    (row[a], row[b]) = (Some(x), Some(y));
    let mut columns: Vec<usize> = (0..widths.len()).filter(|c| *c != a && *c != b).collect();
    let mut covered = 1;
    while !columns.is_empty() {
        let column = columns.swap_remove(rng.below(columns.len()));
        let start = rng.below(widths[column]);
        let mut best: Option<(usize, usize)> = None;
        for value in (0..widths[column]).map(|v| (v + start) % widths[column]) {
            row[column] = Some(value);
            if !allowed(&row) {
                continue;
            }
            let closes = |c: usize| {
                let other = (c, row[c].unwrap_or(usize::MAX));
                c != column && open.contains(&(other.min((column, value)), other.max((column, value))))
            };
            let gain = (0..widths.len()).filter(|c| closes(*c)).count();
            if best.is_none_or(|(_, n)| gain > n) {
                best = Some((value, gain));
            }
        }
        let (value, gain) = best?;
        row[column] = Some(value);
        covered += gain;
    }
    Some((row.into_iter().flatten().collect(), covered))
}

#[test]
fn every_allowed_pair_occurs() {
    let widths = [3, 5, 2, 4];
    let allowed = |row: &[Option<usize>]| row[0] != Some(0) || row[1].is_none_or(|v| v == 2);
    let rows = rows(&widths, 1, allowed);
    for a in 0..4 {
        for b in a + 1..4 {
            for (x, y) in (0..widths[a]).flat_map(|x| (0..widths[b]).map(move |y| (x, y))) {
                let wanted = !(a == 0 && b == 1 && x == 0 && y != 2);
                assert_eq!(rows.iter().any(|r| r[a] == x && r[b] == y), wanted, "{a}={x} {b}={y}");
            }
        }
    }
    assert!(rows.len() < 30, "{} rows", rows.len());
}
