// The plan buffer: what attention::plan wrote, as u32s.
// Header of 32: [0] first u32 of the page tables, [1] first u32 of the merge items, [2] partial rows in all,
// [3] first u32 of the tree masks (two per query token of the step, low word first; kernels without tree masks have none),
// then for class c at 4 + 4c: first item, items, first merge item, merge items. Work items of 8 follow at 32.
// Binding 3 in every kernel that reads a plan. Parts: attention/plan_words/*.

const PLAN_HEADER = 32u;
const NO_PARTIAL = 0xffffffffu;

struct WorkItem {
    page_table_first: u32,
    q_token_first: u32,
    q_len: u32,
    kv_len: u32,
    row_first: u32,
    token_first: u32,
    token_last: u32,
    partial_row: u32,
}

struct MergeItem {
    q_token_first: u32,
    row_first: u32,
    rows: u32,
    partial_first: u32,
    partial_count: u32,
}

fn work_item_count(class_index: u32) -> u32 {
    return plan[5u + 4u * class_index];
}

fn work_item(class_index: u32, index: u32) -> WorkItem {
    let at = PLAN_HEADER + 8u * (plan[4u + 4u * class_index] + index);
    return WorkItem(
        plan[0] + plan[at], plan[at + 1u], plan[at + 2u], plan[at + 3u],
        plan[at + 4u], plan[at + 5u], plan[at + 6u], plan[at + 7u],
    );
}

fn merge_item_count(class_index: u32) -> u32 {
    return plan[7u + 4u * class_index];
}

fn merge_item(class_index: u32, index: u32) -> MergeItem {
    let at = plan[1] + 8u * (plan[6u + 4u * class_index] + index);
    return MergeItem(plan[at], plan[at + 1u], plan[at + 2u], plan[at + 3u], plan[at + 4u]);
}

// Where the step's tree masks begin.
fn tree_masks_first() -> u32 {
    return plan[3];
}

// Rows of partial results of one group.
fn partial_rows() -> u32 {
    return plan[2];
}
