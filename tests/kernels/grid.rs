//! The shape table of the design: every pair of values in the default run, a large random sample behind `--ignored`.

use crate::case::{Case, Errors};
use crate::common::{gpu, tier, Rng};
use crate::pairwise;
use latten::{DType, Gla, Gqa, Gta, HeadLayout, Mla, SplitPolicy, Tier};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Mha,
    Gqa,
    Mqa,
    Gta,
    Gla(usize),
    Mla,
}

/// Tokens in the cache before the step.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Length {
    Zero,
    One,
    Page(isize),
    Split(isize),
    Long,
    /// One long sequence among short ones.
    Straggler,
}

use Length::{Long, One, Page, Split, Straggler, Zero};

const KINDS: [Kind; 9] =
    [Kind::Mha, Kind::Gqa, Kind::Mqa, Kind::Gta, Kind::Gla(1), Kind::Gla(2), Kind::Gla(4), Kind::Gla(8), Kind::Mla];
const HEADS_PER_GROUP: [usize; 10] = [1, 2, 3, 4, 8, 9, 16, 63, 64, 128];
const DIMS: [usize; 8] = [32, 48, 64, 96, 128, 192, 256, 512];
const Q_LENS: [usize; 6] = [1, 2, 3, 5, 8, 16];
const LENGTHS: [Length; 10] = [Zero, One, Page(-1), Page(0), Page(1), Split(-1), Split(0), Split(1), Long, Straggler];
const PAGES: [usize; 4] = [1, 16, 64, 256];
const DTYPES: [DType; 5] = [DType::F32, DType::F16, DType::BF16, DType::I8, DType::I4];
const POLICIES: [SplitPolicy; 4] =
    [SplitPolicy::Auto, SplitPolicy::FixedTokens(96), SplitPolicy::Count(3), SplitPolicy::Off];
const WIDTHS: [usize; 8] = [9, 10, 8, 6, 10, 4, DTYPES.len(), 4];

/// Multiply-adds of one case: half a second or so of software GPU.
const MOST_WORK: usize = 1 << 30;

fn heads(kind: Kind, per_group: usize, dim: usize) -> HeadLayout {
    let gqa = |kv_heads| HeadLayout::gqa(Gqa { q_heads: kv_heads * per_group, kv_heads, head_dim: dim });
    let rope_dim = if dim.is_multiple_of(64) { 64 } else { 32 };
    let layout = match kind {
        Kind::Mha => gqa(3),
        Kind::Gqa => gqa(2),
        Kind::Mqa => gqa(1),
        Kind::Gta => HeadLayout::gta(Gta { q_heads: 2 * per_group, kv_heads: 2, head_dim: dim, rope_dim: dim / 2 }),
        Kind::Gla(n) => HeadLayout::gla(Gla { q_heads: n * per_group, latent_heads: n, latent_dim: dim, rope_dim }),
        // The rope width of DeepSeek; GLA-1 above has another for some dims, and no other difference.
        Kind::Mla => HeadLayout::mla(Mla { q_heads: per_group, latent_dim: dim, rope_dim: 64 }),
    };
    layout.unwrap()
}

/// Cached tokens and new ones of each sequence.
fn lengths(length: Length, q_len: usize, page: usize, policy: SplitPolicy) -> Vec<(usize, usize)> {
    let split = if let SplitPolicy::FixedTokens(n) = policy { n } else { 128 };
    let with = |before: usize| (before + q_len, q_len);
    match length {
        Zero => vec![with(0)],
        One => vec![with(1)],
        Page(d) => vec![with(page.wrapping_add_signed(d))],
        Split(d) => vec![with(split.wrapping_add_signed(d))],
        Long => vec![with(4096)],
        // Members with nothing to ask, and with nothing at all, beside it.
        Straggler => vec![with(7), (5, 0), with(1500), (0, 0), with(33), with(0)],
    }
}

/// Whether a row, as far as it is filled, exists and is quick enough; the unknown counts as least.
fn allowed(row: &[Option<usize>]) -> bool {
    let kind = row[0].map(|i| KINDS[i]);
    let per_group = row[1].map_or(1, |i| HEADS_PER_GROUP[i]);
    if kind == Some(Kind::Mha) && per_group != 1 {
        return false;
    }
    let groups = match kind {
        Some(Kind::Gla(n)) => n,
        Some(Kind::Gqa | Kind::Gta) => 2,
        _ => 1,
    };
    let q_len = row[3].map_or(1, |i| Q_LENS[i]);
    let tokens = match row[4].map(|i| LENGTHS[i]) {
        Some(Long) => 4096,
        Some(Straggler) => 1500,
        _ => 128,
    };
    groups * per_group * q_len * tokens * 2 * row[2].map_or(32, |i| DIMS[i]) <= MOST_WORK
}

/// Whether the kernel of a row, as far as it is filled, compiles in a second or two on a software GPU: lavapipe's LLVM takes
/// 5 s for a tile of 64 rows of 64 elements, a minute and more for 64 rows of 512.
fn compiles_fast(row: &[Option<usize>]) -> bool {
    let per_group = row[1].map_or(1, |i| HEADS_PER_GROUP[i]);
    let q_len = row[3].map_or(1, |i| Q_LENS[i]);
    let class = [1, 4, 16].into_iter().find(|c| *c >= q_len).unwrap_or(16);
    (per_group * class).min(64) * row[2].map_or(32, |i| DIMS[i]) <= 64 * 32
}

fn case(row: &[usize], seed: u64) -> Case {
    let (page_size, policy) = (PAGES[row[5]], POLICIES[row[7]]);
    Case {
        heads: heads(KINDS[row[0]], HEADS_PER_GROUP[row[1]], DIMS[row[2]]),
        dtype: DTYPES[row[6]],
        page_size,
        lengths: lengths(LENGTHS[row[4]], Q_LENS[row[3]], page_size, policy),
        policy,
        seed,
    }
}

const SEED: u64 = 20_250_521;

/// The columns that a kernel's text depends on: kind, heads per group, width, new tokens and dtype.
const COMPILED: [usize; 5] = [0, 1, 2, 3, 6];

/// Rows without what is known at run time alone: every kind in every dtype, and every value of the other columns. Those of the
/// default run, since a software GPU takes seconds for each new kernel: it has each pair of a value in a column of
/// [`COMPILED`] and one in another column, and of the columns at run time; [`all_pairs`] has the pairs among [`COMPILED`] too.
fn pool() -> Vec<Vec<Option<usize>>> {
    let mut rng = Rng(SEED);
    let mut pool: Vec<Vec<Option<usize>>> = Vec::new();
    let kinds = (0..KINDS.len()).flat_map(|kind| (0..DTYPES.len()).map(move |dtype| [(0, kind), (6, dtype)].to_vec()));
    let others =
        [1, 2, 3].into_iter().flat_map(|column| (0..WIDTHS[column]).map(move |value| [(column, value)].to_vec()));
    for fixed in kinds.chain(others) {
        if fixed.len() == 1 && pool.iter().any(|row| row[fixed[0].0] == Some(fixed[0].1)) {
            continue;
        }
        let row = std::iter::repeat_with(|| {
            let mut row = vec![None; WIDTHS.len()];
            COMPILED.iter().for_each(|&column| row[column] = Some(rng.below(WIDTHS[column])));
            fixed.iter().for_each(|&(column, value)| row[column] = Some(value));
            row
        });
        pool.extend(row.take(10_000).find(|row| allowed(row) && compiles_fast(row)));
    }
    pool
}

#[test]
fn the_default_run_has_every_value() {
    let pool = pool();
    for column in COMPILED {
        for value in 0..WIDTHS[column] {
            assert!(pool.iter().any(|row| row[column] == Some(value)), "column {column} lacks value {value}");
        }
    }
    let pairs: std::collections::BTreeSet<_> = pool.iter().map(|row| (row[0], row[6])).collect();
    assert_eq!(pairs.len(), KINDS.len() * DTYPES.len());
    assert!(pool.len() < 60, "{} kernels", pool.len());
}

/// The table's pairs: in the default run on software GPUs those of [`pool`]. One part of `PARTS` per test, so that tests
/// share the cores.
fn pairwise_part(part: usize, all: bool) {
    const PARTS: usize = 4;
    let all = all || !gpu().capabilities().is_software();
    if !all && part % 2 == 1 && tier::wanted() == Some(Tier::Portable) {
        println!("skipped: every second part, where the kernels of another tier had all; --ignored runs them");
        return;
    }
    let pool = pool();
    // Filled as one of the pool is, if that is no other than the row so far.
    let in_pool = |row: &[Option<usize>]| {
        pool.iter().any(|some| {
            let agrees = row.iter().zip(some).all(|(a, b)| a.is_none() || b.is_none() || a == b);
            agrees && allowed(&row.iter().zip(some).map(|(a, b)| a.or(*b)).collect::<Vec<_>>())
        })
    };
    let rows = pairwise::rows(&WIDTHS, SEED, |row| if all { allowed(row) } else { in_pool(row) });
    println!("pairwise: {} rows of seed {SEED}, part {part} of {PARTS}", rows.len());
    if !all && part == 0 {
        let adapter = &gpu().capabilities().adapter;
        println!("skipped: most kernels, for {adapter} takes seconds to compile one; --ignored runs them");
    }
    // Rows of one kernel in one part.
    let compiled = |row: &[usize]| COMPILED.map(|column| row[column]);
    let mut kernels: Vec<_> = rows.iter().map(|row| compiled(row)).collect();
    kernels.sort_unstable();
    kernels.dedup();
    let part_of = |row: &[usize]| kernels.binary_search(&compiled(row)).unwrap_or(0) % PARTS;
    let mut worst = [Errors::default(); DTYPES.len()];
    for (i, row) in rows.iter().enumerate().filter(|(_, row)| part_of(row) == part) {
        let start = std::time::Instant::now();
        let case = case(row, SEED + i as u64);
        let e = case.check(gpu());
        println!("{:.1?} {case:?}", start.elapsed());
        worst[row[6]] = worst[row[6]].worst(e);
    }
    for (dtype, worst) in DTYPES.iter().zip(worst) {
        println!("worst of {dtype}: {worst:?}");
    }
}

#[test]
fn pairwise_0() {
    pairwise_part(0, false);
}

#[test]
fn pairwise_1() {
    pairwise_part(1, false);
}

#[test]
fn pairwise_2() {
    pairwise_part(2, false);
}

#[test]
fn pairwise_3() {
    pairwise_part(3, false);
}

#[test]
#[ignore = "long: every pair of the shape table; a quarter of an hour on two cores of software GPU"]
fn all_pairs() {
    (0..4).for_each(|part| pairwise_part(part, true));
}

/// Random rows of the full table, by layout since each new one costs a compilation; `LATTEN_GRID_LAYOUTS` layouts
/// per part (40) of 20 rows each.
fn sample_part(part: u64) {
    let layouts = std::env::var("LATTEN_GRID_LAYOUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    let mut rng = Rng(SEED + part);
    for layout in 0..layouts {
        let mut row: Vec<Option<usize>> = vec![None; WIDTHS.len()];
        for column in [0, 1, 2, 6] {
            while row[column].is_none() || !allowed(&row) {
                row[column] = Some(rng.below(WIDTHS[column]));
            }
        }
        let some = case(&row.iter().map(|v| v.unwrap_or(0)).collect::<Vec<_>>(), 0);
        println!("layout {layout}: {:?} {}", some.heads, some.dtype);
        for i in 0..20 {
            let mut full = row.clone();
            for column in [3, 5, 7, 4] {
                while full[column].is_none() || !allowed(&full) {
                    full[column] = Some(rng.below(WIDTHS[column]));
                }
            }
            let indices: Vec<usize> = full.into_iter().flatten().collect();
            case(&indices, SEED ^ (part << 32 | (layout as u64) << 16 | i)).check(gpu());
        }
    }
}

#[test]
#[ignore = "long: 3,200 random rows of the shape table in four parts; half an hour on two cores of software GPU"]
fn sample_0() {
    sample_part(0);
}

#[test]
#[ignore = "long: see sample_0"]
fn sample_1() {
    sample_part(1);
}

#[test]
#[ignore = "long: see sample_0"]
fn sample_2() {
    sample_part(2);
}

#[test]
#[ignore = "long: see sample_0"]
fn sample_3() {
    sample_part(3);
}
