use std::collections::BTreeMap;

use crate::gpu::grid::fold;

use super::*;
use crate::attention::plan::shape::KernelForm;

/// GLA-2 with 64 heads per latent of 256 and a rope key of 64, f16, on a large card.
fn gla() -> PlanShape {
    PlanShape {
        heads_per_group: 64,
        groups: 2,
        v_dim: 256,
        bytes_per_token: (256 + 64) * 2,
        rope_bytes: 64 * 2,
        row_tiles: vec![8, 16, 64],
        groups_per_workgroup: vec![1; 3],
        room: vec![1; 3],
        squads: vec![1; 3],
        short_tokens: vec![0; 3],
        short_workgroups: vec![1; 3],
        most_tokens: vec![u64::MAX; 3],
        target_workgroups: 264,
        token_tile: 64,
        window: 0,
        keep_first: 0,
    }
}

/// GQA 32/8 of 128, f16.
fn gqa() -> PlanShape {
    PlanShape { heads_per_group: 4, groups: 8, v_dim: 128, bytes_per_token: 512, row_tiles: vec![4, 8, 64], ..gla() }
}

/// Sequences of these (q_len, kv_len), laid out as a cache with pages of 64 would.
fn batch(lengths: &[(u32, u32)]) -> Vec<SeqView> {
    let (mut page_table_first, mut q_token_first) = (0, 0);
    let view = |&(q_len, kv_len): &(u32, u32)| {
        let view = SeqView { page_table_first, q_token_first, q_len, kv_len, gap_first: 0, gap_last: 0 };
        page_table_first += kv_len.div_ceil(64);
        q_token_first += q_len;
        view
    };
    lengths.iter().map(view).collect()
}

fn decode(lengths: &[u32]) -> Vec<SeqView> {
    batch(&lengths.iter().map(|&len| (1, len)).collect::<Vec<_>>())
}

fn tokens(item: &WorkItem) -> u64 {
    u64::from(item.token_last - item.token_first)
}

/// What a sequence's result depends on: per tile its height, rows, and the cuts in its tokens.
type Cuts = BTreeMap<u32, (usize, u32, Vec<(u32, u32)>)>;

/// Checks every promise of a plan that holds under any policy; returns the cuts of each sequence, by first query token.
fn check_plan(sequences: &[SeqView], shape: &PlanShape, list: &WorkList) -> BTreeMap<u32, Cuts> {
    let mut merges: BTreeMap<(u32, u32), MergeItem> = BTreeMap::new();
    let mut found: BTreeMap<u32, Cuts> = BTreeMap::new();
    let (mut item, mut merge, mut next_row, mut parts) = (0, 0, 0, BTreeMap::new());
    assert_eq!((list.classes.len(), list.merge_classes.len()), (shape.row_tiles.len(), shape.row_tiles.len()));
    for (class, &row_tile) in shape.row_tiles.iter().enumerate() {
        assert_eq!((list.classes[class].start, list.merge_classes[class].start), (item, merge));
        (item, merge) = (list.classes[class].end, list.merge_classes[class].end);
        let items = &list.items[list.classes[class].clone()];
        assert!(items.windows(2).all(|pair| tokens(&pair[0]) >= tokens(&pair[1])), "longest first");
        for item in items {
            let key = (item.q_token_first, item.row_first);
            parts.entry(key).or_insert_with(Vec::new).push((*item, row_tile));
        }
        let mut slots = 0;
        for merge in &list.merges[list.merge_classes[class].clone()] {
            assert_eq!(merge.partial_first as usize, next_row, "slots are handed out without gaps");
            assert!(merge.partial_count > 1 && merge.rows as usize <= row_tile && merge.reserved == [0; 3]);
            next_row += merge.partial_count as usize * row_tile;
            slots += merge.partial_count as usize;
            assert!(merges.insert((merge.q_token_first, merge.row_first), *merge).is_none());
        }
        assert_eq!(list.partial_slots[class], slots);
    }
    assert_eq!((item, merge, next_row), (list.items.len(), list.merges.len(), list.partial_rows));

    for sequence in sequences.iter().filter(|sequence| sequence.q_len > 0) {
        let rows = sequence.q_len as usize * shape.heads_per_group;
        let fitting = shape.row_tiles.iter().copied().find(|tile| *tile >= rows);
        let row_tile = fitting.unwrap_or(*shape.row_tiles.last().unwrap());
        let cuts = found.entry(sequence.q_token_first).or_default();
        for first in (0..rows).step_by(row_tile) {
            let last = (first + row_tile).min(rows) - 1;
            let seen = |row: usize| sequence.kv_len - sequence.q_len + (row / shape.heads_per_group) as u32 + 1;
            let start = if shape.window > 0 { seen(first).saturating_sub(shape.window) } else { 0 };
            let key = (sequence.q_token_first, first as u32);
            let mut parts = parts.remove(&key).unwrap();
            parts.sort_by_key(|(item, _)| item.token_first);
            let merge = merges.remove(&key);
            let mut token = start;
            for (index, (item, class_tile)) in parts.iter().enumerate() {
                let WorkItem { page_table_first, q_token_first, q_len, kv_len, .. } = *item;
                assert_eq!(
                    SeqView { page_table_first, q_token_first, q_len, kv_len, gap_first: 0, gap_last: 0 },
                    *sequence
                );
                assert_eq!((*class_tile, item.token_first), (row_tile, token));
                assert_eq!((item.token_first - start) as usize % shape.token_tile, 0);
                assert!(item.token_last > token || parts.len() == 1, "an empty part");
                let slot = merge.map(|merge| merge.partial_first + (index * row_tile) as u32);
                assert_eq!(item.partial, slot.unwrap_or(NO_PARTIAL));
                token = item.token_last;
            }
            assert_eq!(token, seen(last), "every visible token once");
            assert_eq!(merge.map_or(1, |merge| merge.partial_count as usize), parts.len());
            assert!(merge.is_none_or(|merge| merge.rows as usize == last - first + 1));
            let bounds = parts.iter().map(|(item, _)| (item.token_first, item.token_last)).collect();
            cuts.insert(first as u32, (row_tile, (last - first + 1) as u32, bounds));
        }
    }
    assert!(parts.is_empty() && merges.is_empty(), "work for rows that do not exist");
    found
}

/// Tokens that the busiest of `workers` walks if each takes the next item when it is done.
fn makespan(list: &WorkList, groups: usize, workers: usize) -> u64 {
    let mut busy = vec![0u64; workers];
    for item in &list.items {
        for _ in 0..groups {
            *busy.iter_mut().min().unwrap() += tokens(item);
        }
    }
    busy.into_iter().max().unwrap()
}

/// Bytes of partials written and read against bytes of cache read.
fn merge_share(list: &WorkList, shape: &PlanShape) -> f64 {
    let partial: usize = list.merges.iter().map(|merge| (merge.rows * merge.partial_count) as usize).sum();
    let read: u64 = list.items.iter().map(tokens).sum();
    (2 * 4 * partial * shape.v_dim) as f64 / (read as f64 * shape.bytes_per_token as f64)
}

fn err(sequences: &[SeqView], shape: &PlanShape, policy: SplitPolicy) -> ErrorKind {
    plan(sequences, shape, policy).unwrap_err().kind().clone()
}

#[test]
fn nothing_to_do() {
    let empty = WorkList {
        classes: vec![0..0; 3],
        merge_classes: vec![0..0; 3],
        partial_slots: vec![0; 3],
        forms: vec![KernelForm::Usual; 3],
        ..WorkList::default()
    };
    assert_eq!(plan(&[], &gla(), SplitPolicy::Auto).unwrap(), empty);
    assert_eq!(plan(&batch(&[(0, 0), (0, 100_000)]), &gla(), SplitPolicy::Auto).unwrap(), empty);
}

#[test]
fn a_split_sequence() {
    let list = plan(&decode(&[300]), &gqa(), SplitPolicy::FixedTokens(100)).unwrap();
    let cuts: Vec<_> = list.items.iter().map(|item| (item.token_first, item.token_last, item.partial)).collect();
    assert_eq!(cuts, [(0, 128, 0), (128, 256, 4), (256, 300, 8)]);
    let merge =
        MergeItem { q_token_first: 0, row_first: 0, rows: 4, partial_first: 0, partial_count: 3, reserved: [0; 3] };
    assert_eq!((list.merges, list.partial_rows, list.partial_slots), (vec![merge], 12, vec![3, 0, 0]));
}

#[test]
fn prefill_tiles_skip_what_the_mask_hides() {
    let list = plan(&batch(&[(48, 148)]), &gqa(), SplitPolicy::Off).unwrap();
    let tiles: Vec<_> = list.items.iter().map(|item| (item.row_first, item.token_last)).collect();
    assert_eq!(tiles, [(128, 148), (64, 132), (0, 116)]);
}

#[test]
fn a_window_leaves_out_what_no_row_sees() {
    let shape = PlanShape { window: 100, ..gqa() };
    let list = plan(&batch(&[(48, 300), (1, 99), (1, 101)]), &shape, SplitPolicy::Off).unwrap();
    // Tiles of 16, 16 and 16 query tokens: the first sees from 253 - 100 on, the last up to 300.
    let cuts: Vec<_> = list.items.iter().map(|item| (item.kv_len, item.token_first, item.token_last)).collect();
    assert_eq!(cuts, [(101, 1, 101), (99, 0, 99), (300, 153, 268), (300, 169, 284), (300, 185, 300)]);
    // Parts are counted from there.
    let list = plan(&decode(&[300]), &shape, SplitPolicy::FixedTokens(64)).unwrap();
    let cuts: Vec<_> = list.items.iter().map(|item| (item.token_first, item.token_last)).collect();
    assert_eq!(cuts, [(200, 264), (264, 300)]);
    // A window longer than any sequence is none.
    let sequences = batch(&[(48, 300), (1, 99)]);
    let wide = PlanShape { window: u32::MAX, ..gqa() };
    let same = |policy| plan(&sequences, &wide, policy).unwrap() == plan(&sequences, &gqa(), policy).unwrap();
    assert!(same(SplitPolicy::Off) && same(SplitPolicy::FixedTokens(64)) && same(SplitPolicy::Auto));
}

#[test]
fn a_tree_reaches_as_far_as_its_masks() {
    let cuts = |masks: &[u64], window| {
        let shape = PlanShape { heads_per_group: 32, window, ..gqa() };
        let sequences = batch(&[(0, 50), (5, 105)]);
        let step = PlanStep { sequences: &sequences, masks, page_size: 64, page_entries: 3, held: &[] };
        let list = plan_step(&step, &shape, SplitPolicy::Off).unwrap();
        let mut cuts: Vec<_> = list.items.iter().map(|i| (i.row_first, i.token_first, i.token_last)).collect();
        cuts.sort();
        cuts
    };
    // Two query tokens of 32 rows are a tile; the last is alone.
    let tree = [0b1, 0b11, 0b101, 0b1001, 0b10011];
    assert_eq!(cuts(&tree, 0), [(0, 0, 102), (64, 0, 104), (128, 0, 105)]);
    assert_eq!(cuts(&tree, 10), [(0, 91, 102), (64, 92, 104), (128, 93, 105)]);
    let chain = [0b1, 0b11, 0b111, 0b1111, 0b11111];
    assert_eq!((cuts(&chain, 0), cuts(&chain, 10)), (cuts(&[], 0), cuts(&[], 10)));
    assert_eq!(cuts(&[0b1, 0b10, 0b100, 0b1000, 0b10000], 1), cuts(&[], 1));
}

#[test]
fn the_class_is_the_sequences_own() {
    let list = plan(&batch(&[(3, 100), (1, 200), (2, 300), (16, 100)]), &gqa(), SplitPolicy::Off).unwrap();
    assert_eq!(list.classes, [0..1, 1..2, 2..4]);
    let lengths: Vec<_> = list.items.iter().map(|item| item.kv_len).collect();
    assert_eq!(lengths, [200, 300, 100, 100]);
}

#[test]
fn ragged_batches_are_balanced() {
    let mut straggler = vec![1024; 15];
    straggler.push(131_072);
    for lengths in [vec![4641, 45_118, 1730, 1696], straggler] {
        let sequences = decode(&lengths);
        for shape in [gqa(), PlanShape { heads_per_group: 8, ..gla() }] {
            let list = plan(&sequences, &shape, SplitPolicy::Auto).unwrap();
            check_plan(&sequences, &shape, &list);
            let total: u64 = lengths.iter().map(|len| u64::from(*len)).sum::<u64>() * shape.groups as u64;
            let ideal = total as f64 / shape.target_workgroups as f64;
            let ratio = makespan(&list, shape.groups, shape.target_workgroups) as f64 / ideal;
            assert!(ratio < 1.15, "{lengths:?}: {ratio} of the ideal {ideal}");
            let share = merge_share(&list, &shape);
            assert!(share <= 0.1, "{lengths:?}: merging is {share} of the reading");
        }
    }
}

#[test]
fn equal_lengths_make_no_short_second_round() {
    // Thirds of 128 tiles would be 384 workgroups, more than the device takes at once; halves are 256.
    let sequences = decode(&[8192; 64]);
    let list = plan(&sequences, &gla(), SplitPolicy::Auto).unwrap();
    check_plan(&sequences, &gla(), &list);
    assert_eq!((list.items.len(), makespan(&list, 2, 264)), (128, 4096));
    // A straggler is not left whole for that.
    let mut lengths = vec![100; 200];
    lengths.push(131_072);
    let list = plan(&decode(&lengths), &PlanShape { groups: 1, ..gqa() }, SplitPolicy::Auto).unwrap();
    assert!(makespan(&list, 1, 264) <= 640);
    assert_eq!(list.merges.len(), 1);
    // What is one too many is cut alone, and the rest stays whole.
    let sequences = decode(&[8192; 265]);
    let one = PlanShape { groups: 1, ..gqa() };
    let list = plan(&sequences, &one, SplitPolicy::Auto).unwrap();
    check_plan(&sequences, &one, &list);
    assert_eq!(list.merges.len(), 1);
    assert!(makespan(&list, 1, 264) <= 8192 + 256);
}

#[test]
fn classes_are_balanced_each_by_itself() {
    // One token of 32 sequences, and a prompt's chunk: two dispatches, one after the other.
    let mut lengths = vec![(1, 8192); 32];
    lengths.push((16, 8192));
    let sequences = batch(&lengths);
    let list = plan(&sequences, &gqa(), SplitPolicy::Auto).unwrap();
    check_plan(&sequences, &gqa(), &list);
    let counts: Vec<usize> = list.classes.iter().map(|class| class.len()).collect();
    assert_eq!(counts[0], 32, "32 sequences of 8 groups fill 264 slots");
    assert!(counts[2] >= 16, "one tile alone is cut: {counts:?}");
}

#[test]
fn a_workgroup_of_several_groups_is_as_large() {
    // All 8 groups in one workgroup: 33 of those fill what 264 of one group do.
    let whole = PlanShape { groups_per_workgroup: vec![8, 1, 1], room: vec![8, 1, 1], ..gqa() };
    let list = plan(&decode(&[8192; 33]), &whole, SplitPolicy::Auto).unwrap();
    assert_eq!((list.items.len(), list.merges.len()), (33, 0));
    let list = plan(&decode(&[132_000]), &whole, SplitPolicy::Auto).unwrap();
    assert!(makespan(&list, 1, 33) <= 4096 + 64 && list.items.len() <= 66, "{} items", list.items.len());
}

#[test]
fn short_tiles_stay_whole() {
    // 64 rows of 256 against 640 bytes per token: a partial is worth 205 tokens, so no part is under 410.
    let parts = |len| plan(&decode(&[len]), &gla(), SplitPolicy::Auto).unwrap().items.len();
    assert_eq!([64, 819].map(parts), [1, 1]);
    assert!(parts(8192) >= 8 && parts(8192) <= 8192 / 410);
}

#[test]
fn many_items_are_sorted_by_counting() {
    let lengths: Vec<u32> = (0..9000u32).map(|i| 1 + i.wrapping_mul(2_654_435_761) % 200_000).collect();
    let sequences = decode(&lengths);
    let list = plan(&sequences, &gqa(), SplitPolicy::Off).unwrap();
    check_plan(&sequences, &gqa(), &list);
    let mut items = list.items.clone();
    items.sort_by_key(|item| Reverse(item.token_last - item.token_first));
    let mut same = sequences.iter().map(|s| s.q_token_first).collect::<Vec<_>>();
    same.sort_by_key(|first| Reverse(sequences[*first as usize].kv_len));
    assert_eq!(list.items, items);
    assert_eq!(items.iter().map(|item| item.q_token_first).collect::<Vec<_>>(), same, "equal lengths in order");
}

#[test]
fn grids_fold() {
    assert_eq!(
        [0, 1, 65_535, 65_536, 131_070, 131_071].map(fold),
        [(0, 1), (1, 1), (65_535, 1), (32_768, 2), (65_535, 2), (43_691, 3)]
    );
    for count in (1..MAX_ITEMS as usize).step_by(997).chain([MAX_ITEMS as usize]) {
        let (y, z) = fold(count);
        let grid = y as usize * z as usize;
        assert!(y <= 65_535 && z <= 65_535 && grid >= count && grid - count < z as usize, "{count}: {y} x {z}");
    }
    assert_eq!(fold(usize::MAX), (65_535, 65_535));
}

/// On a slow device an item is bounded, however few there are: by whole token tiles, and other policies are as asked.
#[test]
fn auto_bounds_what_an_item_sees() {
    let slow = PlanShape { most_tokens: vec![5000, 1000, 70], target_workgroups: 2, ..gla() };
    let sequences = batch(&[(1, 40_000), (2, 9000), (1, 70), (40, 3000), (1, 5000)]);
    let list = plan(&sequences, &slow, SplitPolicy::Auto).unwrap();
    check_plan(&sequences, &slow, &list);
    let longest = |list: &WorkList, class: usize| list.items[list.classes[class].clone()].iter().map(tokens).max();
    // 64 rows a token: all are of the tallest kernel.
    assert_eq!((longest(&list, 0), longest(&list, 2)), (None, Some(70)));
    let few = PlanShape { heads_per_group: 4, ..slow.clone() };
    let list = plan(&sequences, &few, SplitPolicy::Auto).unwrap();
    check_plan(&sequences, &few, &list);
    assert!((4000..=5000).contains(&longest(&list, 0).unwrap()), "{:?}", longest(&list, 0));
    assert_eq!(longest(&list, 2), Some(64));
    let whole = plan(&sequences, &few, SplitPolicy::Off).unwrap();
    assert_eq!(longest(&whole, 0), Some(40_000));
}

#[path = "work_forms_tests.rs"]
mod forms;

#[path = "work_refused_tests.rs"]
mod refused;

#[path = "work_random_tests.rs"]
mod random;
