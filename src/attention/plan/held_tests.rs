//! Plans over parts of sequences: what the parts' items see, together, is what the whole sequence's see.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const PAGE: u32 = 64;

fn shape(window: u32) -> PlanShape {
    PlanShape {
        heads_per_group: 1,
        groups: 4,
        v_dim: 32,
        bytes_per_token: 160,
        rope_bytes: 0,
        row_tiles: vec![64],
        groups_per_workgroup: vec![1],
        room: vec![1],
        squads: vec![1; 1],
        short_tokens: vec![0; 1],
        short_workgroups: vec![1; 1],
        most_tokens: vec![u64::MAX; 1],
        target_workgroups: 16,
        token_tile: 16,
        window,
        keep_first: 0,
    }
}

/// By tile, (sequence's first query token, first row): tokens, and the page of each, that is which token of which part.
type Seen = BTreeMap<(u32, u32), Vec<(u32, u32)>>;

/// One sequence of `q_len` new tokens of `kv_len`, of which a table from entry 5 on has `held`.
fn plan_part(q_len: u32, kv_len: u32, held: Range<u32>, window: u32, policy: SplitPolicy) -> Seen {
    let view = SeqView { page_table_first: 5, q_token_first: 3, q_len, kv_len, gap_first: 0, gap_last: held.start };
    let page_entries = 5 + (held.end - held.start).div_ceil(PAGE) as usize;
    let step =
        PlanStep { sequences: &[view], masks: &[], page_size: PAGE, page_entries, held: std::slice::from_ref(&held) };
    let list = plan_step(&step, &shape(window), policy).unwrap();
    let mut seen = Seen::new();
    for item in &list.items {
        assert_eq!((item.q_len, item.kv_len, item.q_token_first), (q_len, kv_len, 3), "what masks count by");
        let tokens = seen.entry((item.q_token_first, item.row_first)).or_default();
        for token in item.token_first..item.token_last {
            let entry = item.page_table_first.wrapping_add(token / PAGE);
            assert!((5..page_entries as u32).contains(&entry), "{item:?} reads entry {entry} for token {token}");
            // The token's place in the part, back to the sequence.
            tokens.push((token, held.start + (entry - 5) * PAGE + token % PAGE));
        }
        // What stands in for a token where there is none.
        let last = item.token_last.max(1) - 1;
        let entry = item.page_table_first.wrapping_add(last / PAGE);
        assert!((5..page_entries as u32).contains(&entry), "{item:?} has no page to stand in");
    }
    seen
}

proptest! {
    #[test]
    fn parts_make_up_the_whole(
        q_len in 1u32..300,
        before in 0u32..900,
        part_pages in 1u32..9,
        window in prop_oneof![Just(0u32), 1u32..500],
        policy in prop_oneof![Just(SplitPolicy::Auto), Just(SplitPolicy::Off), Just(SplitPolicy::FixedTokens(32))],
    ) {
        let kv_len = before + q_len;
        let first = if window == 0 { 0 } else { (before + 1).saturating_sub(window) / PAGE * PAGE };
        let whole = plan_part(q_len, kv_len, first..kv_len, window, policy);
        let mut joined = Seen::new();
        for start in (first..kv_len).step_by((part_pages * PAGE) as usize) {
            let part = plan_part(q_len, kv_len, start..kv_len.min(start + part_pages * PAGE), window, policy);
            // Each part writes every row, of those that see nothing zeros.
            prop_assert_eq!(part.keys().collect::<Vec<_>>(), whole.keys().collect::<Vec<_>>());
            for (tile, mut tokens) in part {
                joined.entry(tile).or_default().append(&mut tokens);
            }
        }
        for tokens in joined.values_mut() {
            prop_assert!(tokens.iter().all(|(token, held)| token == held), "a token's page is another's");
            tokens.sort_unstable();
        }
        let sorted = |mut seen: Seen| {
            seen.values_mut().for_each(|tokens| tokens.sort_unstable());
            seen
        };
        prop_assert_eq!(&joined, &sorted(whole));
        // Of a tile's tokens none is missing: those from its first row's first to its last row's own.
        for (&(_, row), tokens) in &joined {
            let last = before + (row + 64).min(q_len);
            let first = if window == 0 { 0 } else { (before + row + 1).saturating_sub(window) };
            prop_assert_eq!(tokens.iter().map(|t| t.0).collect::<Vec<_>>(), (first..last).collect::<Vec<_>>());
        }
    }
}
