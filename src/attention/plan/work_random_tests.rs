//! Plans of random batches, kernels and policies.

use super::*;
use proptest::prelude::*;

fn lengths(count: usize) -> impl Strategy<Value = Vec<(u32, u32)>> {
    let q_len = prop_oneof![1 => Just(0u32), 4 => Just(1), 2 => 2u32..17, 1 => 17u32..200];
    let cached = prop_oneof![1 => Just(0u32), 3 => 0u32..300, 2 => 300u32..9000, 1 => 9000u32..140_000];
    prop::collection::vec((q_len, cached).prop_map(|(q_len, cached)| (q_len, q_len + cached)), 0..count)
}

fn shape() -> impl Strategy<Value = PlanShape> {
    let row_tiles =
        prop::sample::subsequence(vec![1, 4, 8, 16, 64, 128], 1..=6).prop_filter("tall", |tiles| *tiles != [1]);
    let heads = prop::sample::select(vec![1usize, 2, 3, 4, 8, 9, 16, 63, 64, 128]);
    let dims = (prop::sample::select(vec![32usize, 128, 512]), 1usize..5);
    let most_groups = prop::array::uniform6(1usize..9);
    let window = prop_oneof![2 => Just(0u32), 1 => 1u32..5000];
    (heads, 1usize..9, dims, row_tiles, most_groups, 1usize..600, (0u32..8, window)).prop_map(
        |(heads_per_group, groups, (v_dim, ratio), row_tiles, most_groups, target_workgroups, (log2, window))| {
            let divisor = |most: &usize| (1..=*most).rev().find(|n| groups.is_multiple_of(*n)).unwrap();
            PlanShape {
                rope_bytes: 0,
                heads_per_group,
                groups,
                v_dim,
                bytes_per_token: v_dim * ratio,
                groups_per_workgroup: most_groups[..row_tiles.len()].iter().map(divisor).collect(),
                room: most_groups[..row_tiles.len()].to_vec(),
                squads: vec![1; row_tiles.len()],
                short_tokens: vec![0; row_tiles.len()],
                short_workgroups: vec![1; row_tiles.len()],
                most_tokens: vec![u64::MAX; row_tiles.len()],
                row_tiles,
                target_workgroups,
                token_tile: 1 << log2,
                window,
                keep_first: 0,
            }
        },
    )
}

fn policy() -> impl Strategy<Value = SplitPolicy> {
    prop_oneof![
        3 => Just(SplitPolicy::Auto),
        1 => Just(SplitPolicy::Off),
        2 => (200usize..5000).prop_map(SplitPolicy::FixedTokens),
        2 => (1usize..40).prop_map(SplitPolicy::Count),
    ]
}

proptest! {
    #[test]
    fn every_row_sees_every_visible_token_once(lengths in lengths(8), shape in shape(), policy in policy()) {
        let sequences = batch(&lengths);
        let list = plan(&sequences, &shape, policy).unwrap();
        let found = check_plan(&sequences, &shape, &list);
        for (_, _, bounds) in found.values().flat_map(BTreeMap::values) {
            let start = bounds[0].0;
            let in_cuts = |tokens: usize| bounds.iter().all(|(first, _)| ((first - start) as usize).is_multiple_of(tokens));
            match policy {
                SplitPolicy::Auto => {}
                SplitPolicy::Off => prop_assert_eq!(bounds.len(), 1),
                SplitPolicy::FixedTokens(n) => prop_assert!(in_cuts(n.next_multiple_of(shape.token_tile))),
                SplitPolicy::Count(n) => prop_assert!(bounds.len() <= n),
            }
        }
        prop_assert_eq!(plan(&sequences, &shape, policy).unwrap(), list);
    }

    #[test]
    fn auto_merges_little_and_balances(lengths in lengths(8), shape in shape()) {
        let sequences = batch(&lengths);
        let list = plan(&sequences, &shape, SplitPolicy::Auto).unwrap();
        prop_assert!(list.merges.is_empty() || merge_share(&list, &shape) <= 0.5);
        for (class, (items, &row_tile)) in list.classes.iter().zip(&shape.row_tiles).enumerate() {
            let items = &list.items[items.clone()];
            let total: u64 = items.iter().map(tokens).sum();
            let share = total * shape.workgroups(class) as u64 / shape.slots(class) as u64;
            let partial = (8 * row_tile * shape.v_dim).div_ceil(shape.bytes_per_token) as u64;
            let shortest = (10 * partial).max(128).max(shape.token_tile as u64);
            let longest = items.iter().map(tokens).max().unwrap_or(0);
            prop_assert!(longest <= 2 * share + 2 * (shortest + shape.token_tile as u64), "{} of {}", longest, share);
        }
    }

    #[test]
    fn fixed_tokens_ignore_the_batch(lengths in lengths(6), shape in shape(), n in 200usize..3000, seed in any::<u64>()) {
        let policy = SplitPolicy::FixedTokens(n);
        let sequences = batch(&lengths);
        let together = check_plan(&sequences, &shape, &plan(&sequences, &shape, policy).unwrap());
        let mut shuffled = sequences.clone();
        shuffled.sort_by_key(|view| (u64::from(view.q_token_first) + 1).wrapping_mul(seed | 1));
        let busy = PlanShape { target_workgroups: shape.target_workgroups + 7, ..shape.clone() };
        prop_assert_eq!(&check_plan(&shuffled, &shape, &plan(&shuffled, &busy, policy).unwrap()), &together);
        for view in sequences.iter().filter(|view| view.q_len > 0) {
            let alone = check_plan(&[*view], &shape, &plan(&[*view], &shape, policy).unwrap());
            prop_assert_eq!(&alone[&view.q_token_first], &together[&view.q_token_first]);
        }
    }
}
