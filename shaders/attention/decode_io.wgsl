// What the decode kernels share: parameters and results; queries are each kernel's own. Parts: plan, page, softmax,
// attention/pool/*, attention/sink/*.

struct Params {
    scale_log2: f32, // softmax_scale * log2(e)
    page_count: u32,
    page_shift: u32, // log2 of the tokens per page
    class_index: u32,
    slab_pages: u32, // of each slab but the last
    item_first: u32, // of the dispatch, among the class's items
}

@group(0) @binding(0) var<uniform> params: Params;
// (query tokens, Q_HEADS, V_DIM) f32
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
// (query tokens, Q_HEADS) f32 bits, natural log
@group(0) @binding(5) var<storage, read_write> lse: array<u32>;
// (GROUPS, partial rows, V_DIM) f32, then (GROUPS, partial rows) f32 LSE in log2 units
@group(0) @binding(6) var<storage, read_write> partials: array<f32>;

// Row of q, out and lse of a row of the item's sequence.
fn query_row(item: WorkItem, group: u32, row: u32) -> u32 {
    return (item.q_token_first + row / HEADS_PER_GROUP) * Q_HEADS + group * HEADS_PER_GROUP + row % HEADS_PER_GROUP;
}

// Page of a token; past the item's last token that one stands in.
fn page_of(item: WorkItem, token: u32) -> u32 {
    let held = min(token, max(item.token_last, 1u) - 1u);
    // The host has checked the page table; the clamp keeps a corrupted one inside the pool.
    return min(plan[item.page_table_first + (held >> params.page_shift)], params.page_count - 1u);
}

// The end of a row's softmax. A sink counts once per row: here, or where the parts are merged.
fn finish_row(item: WorkItem, group: u32, row: u32, top: f32, total: f32) -> Finished {
    if (item.partial_row != NO_PARTIAL) {
        return Finished(softmax_inverse(total), softmax_lse2(top, total));
    }
    return softmax_finish(top, total, group * HEADS_PER_GROUP + row % HEADS_PER_GROUP);
}

// Row of the partial results of a row of the tile, where its tokens are split.
fn partial_of(item: WorkItem, group: u32, tile_row: u32) -> u32 {
    return group * partial_rows() + item.partial_row + tile_row;
}

// Writes the LSE of a row of the tile, final or partial.
fn write_lse(item: WorkItem, group: u32, tile_row: u32, lse2: f32) {
    if (item.partial_row != NO_PARTIAL) {
        partials[GROUPS * partial_rows() * V_DIM + partial_of(item, group, tile_row)] = lse2;
    } else {
        lse[query_row(item, group, item.row_first + tile_row)] = softmax_lse_bits(lse2);
    }
}
