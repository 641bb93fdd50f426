use proptest::prelude::*;
use std::collections::BTreeMap;

use super::*;
use crate::attention::options::AttentionOptions;
use crate::attention::plan::work::{plan_step, SplitPolicy, WorkItem, WorkList};

/// A batch with its page table: each entry says whose page it is, and which.
struct Batch {
    views: Vec<SeqView>,
    table: Vec<(usize, u32)>,
    page_size: u32,
}

/// What a cache frees for a window, and keeps beside it (tokens); none where it frees nothing.
type Freed = Option<(u32, u32)>;

fn batch(lengths: &[(u32, u32)], page_size: u32, freed: Freed) -> Batch {
    let (mut views, mut table, mut q_token_first) = (Vec::new(), Vec::new(), 0);
    for (index, &(q_len, kv_len)) in lengths.iter().enumerate() {
        let (mut gap_first, mut gap_last) = (0, 0);
        if let Some((window, keep_first)) = freed {
            let first = keep_first.next_multiple_of(page_size);
            let last = (kv_len - q_len + 1).saturating_sub(window) / page_size * page_size;
            if first < last {
                (gap_first, gap_last) = (first, last);
            }
        }
        views.push(SeqView { page_table_first: table.len() as u32, q_token_first, q_len, kv_len, gap_first, gap_last });
        let held = |page: &u32| !(gap_first..gap_last).contains(&(page * page_size));
        table.extend((0..kv_len.div_ceil(page_size)).filter(held).map(|page| (index, page)));
        q_token_first += q_len;
    }
    Batch { views, table, page_size }
}

impl Batch {
    fn plan(&self, masks: &[u64], shape: &PlanShape, policy: SplitPolicy) -> Result<WorkList> {
        let Batch { views, table, page_size } = self;
        let step = PlanStep { sequences: views, masks, page_size: *page_size, page_entries: table.len(), held: &[] };
        plan_step(&step, shape, policy)
    }
}

fn shape(heads_per_group: usize, window: u32, keep_first: u32) -> PlanShape {
    PlanShape {
        heads_per_group,
        groups: 2,
        v_dim: 64,
        bytes_per_token: 256,
        rope_bytes: 0,
        row_tiles: vec![4, 16, 64],
        groups_per_workgroup: vec![2, 1, 1],
        room: vec![2, 1, 1],
        squads: vec![1; 3],
        short_tokens: vec![0; 3],
        short_workgroups: vec![1; 3],
        most_tokens: vec![u64::MAX; 3],
        target_workgroups: 64,
        token_tile: 16,
        window,
        keep_first,
    }
}

/// As the kernels' `sees`, for query token `m` of an item's sequence and a token as the item counts it.
fn kernel_sees(item: &WorkItem, shape: &PlanShape, mask: Option<u64>, m: u32, token: u32) -> bool {
    let &PlanShape { window, keep_first, .. } = shape;
    let in_window = |seen: u32| window == 0 || token >= seen - seen.min(window) || token < keep_first;
    let Some(mask) = mask else {
        let seen = (item.kv_len + m + 1).wrapping_sub(item.q_len);
        return token < seen.min(item.token_last) && in_window(seen);
    };
    let before = item.kv_len.wrapping_sub(item.q_len);
    if token < before {
        return token < item.token_last && in_window(before + mask.count_ones());
    }
    token < item.token_last && token - before < 64 && mask >> (token - before) & 1 == 1
}

/// The tokens that query token `m` sees, by the definition: of all up to its own, or those before the step and of the
/// step's those of its mask, the last of the window and the first ones.
fn spec_seen(view: &SeqView, shape: &PlanShape, mask: Option<u64>, m: u32) -> Vec<u32> {
    let before = view.kv_len - view.q_len;
    let new: Vec<u32> = (0..view.q_len).filter(|i| mask.map_or(*i <= m, |mask| mask >> i & 1 == 1)).collect();
    let all = before + new.len() as u32;
    let first = if shape.window == 0 { 0 } else { all.saturating_sub(shape.window) };
    let kept = shape.keep_first.min(first);
    let token = |rank: u32| if rank < before { rank } else { before + new[(rank - before) as usize] };
    (0..kept).chain(first..all).map(token).collect()
}

/// By first row of a tile, for one sequence: its parts as (page table, items), in token order.
type Tiles = BTreeMap<u32, Vec<WorkItem>>;

/// The pages that a tile's table names from that of its first part on, as far as its last reaches; all of them the
/// sequence's own. And what it would call the first of them.
fn pages(batch: &Batch, list: &WorkList, sequence: usize, tile: &[WorkItem]) -> (Vec<u32>, u32) {
    let entries = batch.table.len();
    let copied: Vec<u32> = list.copied_entries.iter().cloned().flatten().collect();
    let end = tile.iter().map(|item| item.token_last).max().unwrap().div_ceil(batch.page_size);
    // Those before may not be there: nobody asks for them.
    let begin = tile.iter().map(|item| item.token_first).min().unwrap() / batch.page_size;
    let entry = |i: u32| {
        let at = tile[0].page_table_first.wrapping_add(i) as usize;
        batch.table[at.checked_sub(entries).map_or(at, |at| copied[at] as usize)]
    };
    let named: Vec<(usize, u32)> = (begin..end).map(entry).collect();
    assert!(named.iter().all(|(owner, _)| *owner == sequence), "another sequence's page, of {entries} entries");
    (named.into_iter().map(|(_, page)| page).collect(), begin)
}

/// Checks that each row sees each token that it should, once, and no other; returns each sequence's tiles.
fn check(batch: &Batch, masks: &[u64], given: &[u64], shape: &PlanShape, list: &WorkList) -> Vec<Tiles> {
    let mut tiles: Vec<Tiles> = batch.views.iter().map(|_| Tiles::new()).collect();
    for item in &list.items {
        let of = |view: &SeqView| view.q_len > 0 && view.q_token_first == item.q_token_first;
        let sequence = batch.views.iter().position(of).unwrap();
        tiles[sequence].entry(item.row_first).or_default().push(*item);
    }
    let mask_of = |masks: &[u64], view: &SeqView, m: u32| masks.get((view.q_token_first + m) as usize).copied();
    for (sequence, (view, tiles)) in batch.views.iter().zip(&mut tiles).enumerate() {
        let rows = view.q_len as usize * shape.heads_per_group;
        let row_tile = shape.row_tiles.iter().copied().find(|tile| *tile >= rows).unwrap_or(64);
        assert_eq!(tiles.len(), rows.div_ceil(row_tile));
        for (first, parts) in tiles.iter_mut() {
            parts.sort_by_key(|item| item.token_first);
            assert!(
                parts.windows(2).all(|pair| pair[0].token_last == pair[1].token_first),
                "a token twice, or left out"
            );
            assert!(parts.windows(2).all(|pair| pair[0].page_table_first == pair[1].page_table_first));
            let (pages, begin) = pages(batch, list, sequence, parts);
            let bounds = (parts[0].token_first, parts[parts.len() - 1].token_last);
            let page = |token: u32| pages[(token / batch.page_size - begin) as usize];
            let real = |token: u32| page(token) * batch.page_size + token % batch.page_size;
            let last = (*first as usize + row_tile).min(rows) - 1;
            let tokens = (*first as usize / shape.heads_per_group, last / shape.heads_per_group);
            for m in [tokens.0 as u32, tokens.1 as u32] {
                let sees = |item: &WorkItem, token: &u32| kernel_sees(item, shape, mask_of(masks, view, m), m, *token);
                let each = parts.iter().flat_map(|item| (item.token_first..item.token_last).map(move |t| (item, t)));
                let got: Vec<u32> = each.filter(|(item, t)| sees(item, t)).map(|(_, t)| real(t)).collect();
                assert_eq!(got, spec_seen(view, shape, mask_of(given, view, m), m), "query token {m} of {view:?}");
            }
            // What is read in vain: up to two pages, and an eighth, or what the tile's other rows see.
            let seen = u64::from(shape.keep_first) + u64::from(shape.window);
            let others = (tokens.1 - tokens.0) as u64 + if view.q_len <= 64 { 64 } else { 0 };
            let most = seen + others + 2 * u64::from(batch.page_size) + seen.div_ceil(8).max(batch.page_size.into());
            assert!(shape.keep_first == 0 || u64::from(bounds.1) <= most, "{bounds:?} of at most {most}");
        }
    }
    tiles
}

/// Chains and branches of up to 64 tokens.
fn trees(lengths: &[(u32, u32)], mut seed: u64) -> Vec<u64> {
    let mut masks = Vec::new();
    for &(q_len, _) in lengths {
        let begin = masks.len();
        for m in 0..q_len as usize {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            // Mostly the token before.
            let parent = if seed >> 62 > 0 { m.wrapping_sub(1) } else { (seed >> 33) as usize % (m + 1) };
            masks.push(Some(parent).filter(|p| *p < m).map_or(0, |p| masks[begin + p]) | 1 << m);
        }
    }
    masks
}

fn lengths(most_new: u32) -> impl Strategy<Value = Vec<(u32, u32)>> {
    let q_len = prop_oneof![1 => Just(0u32), 4 => Just(1), 3 => 2..most_new];
    let cached = prop_oneof![4 => Just(0u32), 12 => 0u32..300, 8 => 300u32..9000, 1 => 9000u32..(1 << 20)];
    prop::collection::vec((q_len, cached).prop_map(|(q_len, cached)| (q_len, q_len + cached)), 1..4)
}

fn some_shape() -> impl Strategy<Value = PlanShape> {
    let window = prop_oneof![3 => 1u32..40, 2 => 40u32..900];
    let keep = prop_oneof![1 => Just(0u32), 4 => 1u32..9, 2 => 9u32..400];
    (prop::sample::select(vec![1usize, 3, 4, 16]), window, keep).prop_map(|(h, window, keep)| shape(h, window, keep))
}

fn policy() -> impl Strategy<Value = SplitPolicy> {
    prop_oneof![
        2 => Just(SplitPolicy::Auto),
        1 => Just(SplitPolicy::Off),
        2 => (16usize..900).prop_map(SplitPolicy::FixedTokens),
        1 => (1usize..9).prop_map(SplitPolicy::Count),
    ]
}

fn page_size() -> impl Strategy<Value = u32> {
    prop::sample::select(vec![1u32, 8, 16, 64, 256])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_row_sees_what_it_should_once(
        lengths in lengths(150),
        shape in some_shape(),
        policy in policy(), page_size in page_size(), seed in any::<u64>(),
    ) {
        let PlanShape { window, keep_first, .. } = shape;
        let whole = batch(&lengths, page_size, None);
        let list = whole.plan(&[], &shape, policy).unwrap();
        let found = check(&whole, &[], &[], &shape, &list);
        let new: u32 = lengths.iter().map(|(q_len, _)| q_len).sum();
        let copied: usize = list.copied_entries.iter().map(|entries| entries.len()).sum();
        let sections = lengths.len() as u32 + new / page_size.max((window + keep_first) / 8);
        let most = sections * (2 * (window + keep_first + 64 + page_size) / page_size + 4);
        prop_assert!(copied as u32 <= most, "{} entries, at most {}", copied, most);

        // Freed pages change neither work nor what it reads, nor does a cache that frees less.
        for (more_window, more_first) in [(0, 0), ((seed % 70) as u32, (seed >> 32) as u32 % 70)] {
            let freed = batch(&lengths, page_size, Some((window + more_window, keep_first + more_first)));
            let list = freed.plan(&[], &shape, policy).unwrap();
            let same = check(&freed, &[], &[], &shape, &list);
            let work = |tiles: &[Tiles]| -> Vec<WorkItem> {
                let items = tiles.iter().flat_map(BTreeMap::values).flatten();
                items.map(|item| WorkItem { page_table_first: 0, ..*item }).collect()
            };
            prop_assert_eq!(work(&found), work(&same));
            // A step of one token meets the table as the cache has it.
            let at_once = more_window == 0 && more_first == 0 && lengths.iter().all(|(q_len, _)| *q_len <= 1);
            prop_assert!(!at_once || list.copied_entries.is_empty());
        }
    }

    #[test]
    fn trees_see_what_they_should_once(
        lengths in lengths(65),
        shape in some_shape(),
        policy in policy(), page_size in page_size(), seed in any::<u64>(),
    ) {
        let PlanShape { window, keep_first, .. } = shape;
        let given = trees(&lengths, seed);
        let options = AttentionOptions {
            window: Some(window as usize),
            keep_first: keep_first as usize,
            tree: true,
            ..Default::default()
        };
        for freed in [None, Some((window, keep_first))] {
            let batch = batch(&lengths, page_size, freed);
            let masks = options.masks(&batch.views, Some(&given)).unwrap();
            let list = batch.plan(&masks, &shape, policy).unwrap();
            check(&batch, &masks, &given, &shape, &list);
        }
    }

    #[test]
    fn fixed_tokens_ignore_the_batch(
        lengths in lengths(100),
        shape in some_shape(),
        n in 16usize..900, page_size in page_size(), freed in any::<bool>(),
    ) {
        let freed = freed.then_some((shape.window, shape.keep_first));
        let policy = SplitPolicy::FixedTokens(n);
        let all = batch(&lengths, page_size, freed);
        let list = all.plan(&[], &shape, policy).unwrap();
        let together = check(&all, &[], &[], &shape, &list);
        for (index, (length, tiles)) in lengths.iter().zip(&together).enumerate().filter(|(_, (l, _))| l.0 > 0) {
            let one = batch(&[*length], page_size, freed);
            let busy = PlanShape { target_workgroups: 7, ..shape.clone() };
            let alone_list = one.plan(&[], &busy, policy).unwrap();
            let alone = check(&one, &[], &[], &shape, &alone_list);
            for (row, parts) in tiles {
                let cuts = |parts: &[WorkItem]| -> Vec<(u32, u32, u32)> {
                    parts.iter().map(|item| (item.kv_len, item.token_first, item.token_last)).collect()
                };
                prop_assert_eq!(cuts(parts), cuts(&alone[0][row]));
                prop_assert_eq!(pages(&all, &list, index, parts), pages(&one, &alone_list, 0, &alone[0][row]));
            }
        }
    }
}

#[test]
fn a_long_sequence_costs_first_tokens_and_window() {
    // 4 first tokens in pages of 16, and the 100 of the window in those from 1,048,464 on: 16 + 112 tokens.
    let whole = batch(&[(1, 1 << 20)], 16, None);
    let list = whole.plan(&[], &shape(4, 100, 4), SplitPolicy::Off).unwrap();
    let cuts: Vec<_> = list.items.iter().map(|i| (i.page_table_first, i.kv_len, i.token_first, i.token_last)).collect();
    assert_eq!(cuts, [(65_536, 128, 0, 128)]);
    assert_eq!(list.copied_entries, [0..1, 65_529..65_536]);
    let freed = batch(&[(1, 1 << 20)], 16, Some((100, 4)));
    let list = freed.plan(&[], &shape(4, 100, 4), SplitPolicy::Off).unwrap();
    assert_eq!((list.items[0].page_table_first, list.items[0].kv_len, list.copied_entries.len()), (0, 128, 0));
    // Each 16 query tokens of a prompt are a tile. Their windows begin at up to 3057, a table for each 128 tokens of
    // that; the first 8 tiles past the first page, and those before, need none.
    let prompt = batch(&[(4096, 4096)], 16, None);
    let list = prompt.plan(&[], &shape(4, 1024, 4), SplitPolicy::Off).unwrap();
    assert_eq!((list.items.len(), list.copied_entries.len() / 2), (256, 23));
}

#[test]
fn what_is_gone_and_would_be_seen_is_refused() {
    let refused = |freed, window, keep_first| {
        let batch = batch(&[(1, 50), (1, 1000)], 16, Some(freed));
        let error = batch.plan(&[], &shape(4, window, keep_first), SplitPolicy::Auto).err();
        let text = error.as_ref().map(|e| e.to_string()).unwrap_or_default();
        let argument = |e: crate::error::Error| matches!(e.kind(), ErrorKind::Argument { name: "window", .. });
        assert!(error.is_none_or(argument), "{text}");
        text
    };
    // The last token sees 900..1000, the page from 896 on.
    assert_eq!((refused((100, 8), 100, 8), refused((100, 8), 100, 16), refused((100, 0), 100, 0)), Default::default());
    assert_eq!((refused((100, 8), 50, 0), refused((100, 8), 100, 0)), Default::default());
    for (window, keep_first) in [(120, 8), (100, 17), (0, 0), (1000, 1), (u32::MAX, u32::MAX)] {
        let text = refused((100, 8), window, keep_first);
        assert!(text.contains("sequence 1 no longer holds its tokens 16..896"), "{window} {keep_first}: {text}");
    }
    assert!(refused((100, 0), 100, 1).contains("0..896, this step reads all but 16..896"));
}

#[test]
fn numbers_of_a_foreign_cache() {
    let page = |page_size| {
        let view = SeqView { page_table_first: 0, q_token_first: 0, q_len: 1, kv_len: 9, gap_first: 8, gap_last: 4 };
        plan_step(
            &PlanStep { sequences: &[view], masks: &[], page_size, page_entries: 3, held: &[] },
            &shape(4, 2, 1),
            SplitPolicy::Auto,
        )
    };
    for page_size in [0, 3, u32::MAX] {
        let error = page(page_size).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Argument { name: "page_size", .. }), "{error}");
    }
    // A gap that ends before it begins is none.
    assert_eq!(page(4).unwrap().items[0].kv_len, 9);
    // Nor is one of no token, wherever it is.
    let view = SeqView { page_table_first: 0, q_token_first: 0, q_len: 1, kv_len: 9, gap_first: 8, gap_last: 8 };
    let step = PlanStep { sequences: &[view], masks: &[], page_size: 4, page_entries: 3, held: &[] };
    for keep_first in [0, 1] {
        let list = plan_step(&step, &shape(4, 5, keep_first), SplitPolicy::Off).unwrap();
        assert_eq!(list.items[0].page_table_first, 0);
    }
    // Entries past 32 bits.
    let view = SeqView {
        page_table_first: u32::MAX - 1,
        q_token_first: 0,
        q_len: 1,
        kv_len: u32::MAX,
        gap_first: 0,
        gap_last: 0,
    };
    let step = PlanStep { sequences: &[view], masks: &[], page_size: 1, page_entries: 3, held: &[] };
    let error = plan_step(&step, &shape(4, 2, 1), SplitPolicy::Off).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Argument { name: "sequences", .. }), "{error}");
}
