//! Splitting and merging: every policy within the bounds, splits in which early rows see nothing, and more work items
//! than one grid dimension holds.

use crate::case::{Case, Sequence, Size};
use crate::common::{gpu, layouts, small, Rng};
use latten::{DType, Decode, Gla, Gqa, Gta, HeadLayout, Mla, SplitPolicy};

const POLICIES: [SplitPolicy; 7] = [
    SplitPolicy::Auto,
    SplitPolicy::FixedTokens(16),
    SplitPolicy::FixedTokens(32),
    SplitPolicy::FixedTokens(100),
    SplitPolicy::Count(2),
    SplitPolicy::Count(usize::MAX),
    SplitPolicy::Off,
];

/// A step of 16 tokens on top of little: later splits hold tokens that the first rows do not see.
#[test]
fn every_policy_agrees_and_rows_that_see_nothing_of_a_split_do_not_count() {
    for heads in [layouts()[0], layouts()[2], layouts()[3]] {
        let lengths = vec![(16, 16), (17, 16), (33, 16), (40, 16), (48, 16), (200, 16), (31, 3), (33, 1), (129, 3)];
        for policy in POLICIES {
            let decode = Decode::new(gpu(), heads, DType::F32).unwrap().with_policy(policy);
            let case = Case { heads, dtype: DType::F32, page_size: 4, lengths: lengths.clone(), policy, seed: 31 };
            case.compare_all(&case.run(gpu(), &decode, case.draw(), 0xff));
        }
    }
}

/// Widths that fill no word, and heads that fill no tile.
#[test]
fn odd_dimensions() {
    let odd = [
        HeadLayout::gta(Gta { q_heads: 6, kv_heads: 2, head_dim: 12, rope_dim: 6 }).unwrap(),
        HeadLayout::gqa(Gqa { q_heads: 5, kv_heads: 5, head_dim: 20 }).unwrap(),
        HeadLayout::gqa(Gqa { q_heads: 2, kv_heads: 1, head_dim: 100 }).unwrap(),
        HeadLayout::gla(Gla { q_heads: 7, latent_heads: 1, latent_dim: 100, rope_dim: 4 }).unwrap(),
        HeadLayout::gla(Gla { q_heads: 3, latent_heads: 3, latent_dim: 1, rope_dim: 2 }).unwrap(),
        HeadLayout::gta(Gta { q_heads: 4, kv_heads: 2, head_dim: 18, rope_dim: 0 }).unwrap(),
        HeadLayout::gta(Gta { q_heads: 4, kv_heads: 2, head_dim: 6, rope_dim: 6 }).unwrap(),
    ];
    for heads in odd {
        // One class each: the other is the same text with other numbers, and costs seconds on a software GPU.
        for (dtype, q_len) in [(DType::F32, 1), (DType::F16, 3)] {
            let lengths = vec![(q_len, q_len), (200, q_len), (33, q_len), (0, 0), (70, q_len)];
            let case = Case { heads, dtype, page_size: 8, lengths, policy: SplitPolicy::FixedTokens(64), seed: 33 };
            case.check(gpu());
        }
    }
}

/// 144 rows are three tiles of 64, and a tile has fewer value units than its lanes have places: a lane without a unit
/// must not write, or it writes over the next tile's rows.
#[test]
fn several_tiles_with_lanes_to_spare() {
    let heads = HeadLayout::mqa(9, 40).unwrap();
    let lengths = vec![(16, 16), (40, 16)];
    let case = Case { heads, dtype: DType::F16, page_size: 16, lengths, policy: SplitPolicy::Off, seed: 34 };
    case.check(gpu());
}

/// 70,480 tokens in one append and 65,640 work items in one decode: both fold into the grid's third dimension.
#[test]
fn more_work_than_a_grid_dimension_holds() {
    let heads = HeadLayout::mha(1, 4).unwrap();
    let policy = SplitPolicy::FixedTokens(32);
    let decode = Decode::new(gpu(), heads, DType::F32).unwrap().with_policy(policy);
    let case = Case { heads, dtype: DType::F32, page_size: 1, lengths: vec![(70_480, 480), (40, 1)], policy, seed: 35 };
    let results = case.run_at_once(gpu(), &decode, case.draw());
    for (i, s) in results.iter().enumerate() {
        case.compare(i, s, Size::default());
    }
}

/// Many sequences: one item each, of one class, and their merges.
#[test]
fn many_sequences() {
    let heads = small();
    let lengths: Vec<(usize, usize)> = (0..300).map(|i| (1 + i * 7 % 90, 1)).collect();
    for policy in [SplitPolicy::Auto, SplitPolicy::FixedTokens(32)] {
        let case = Case { heads, dtype: DType::F16, page_size: 4, lengths: lengths.clone(), policy, seed: 37 };
        case.check(gpu());
    }
}

/// 65,537 sequences of two parts each: items and merges fold, and the last plane of the grid is short in both. What
/// lies past the items in the plan would, taken for an item, overwrite a partial result of four rows.
#[test]
#[ignore = "long: two million tokens: seconds on a GPU, a minute on a software one"]
fn more_merges_than_a_grid_dimension_holds() {
    let heads = HeadLayout::mla(Mla { q_heads: 4, latent_dim: 4, rope_dim: 0 }).unwrap();
    let policy = SplitPolicy::FixedTokens(1);
    let decode = Decode::new(gpu(), heads, DType::F16).unwrap().with_policy(policy);
    let lengths = vec![(66, 1); 65_537];
    let case = Case { heads, dtype: DType::F16, page_size: 2, lengths, policy, seed: 39 };
    let mut rng = Rng(39);
    let inputs = (0..65_537).map(|_| {
        let (rows, q) = (rng.values(66 * heads.kv_dim()), rng.values(4 * heads.q_dim()));
        Sequence { rows, q, ..Default::default() }
    });
    case.compare_all(&case.run_at_once(gpu(), &decode, inputs.collect()));
}
