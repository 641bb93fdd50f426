// Query words read when they are needed: they do not fit in registers, but stay in the nearest cache.
// NOPE_DIM and ROPE_DIM are multiples of 4 here. Slot: query_*.

// (query tokens, Q_HEADS, Q_DIM) f32
@group(0) @binding(2) var<storage, read> q: array<vec4<f32>>;

fn query_init(item: WorkItem, group: u32, row_block: u32, first_word: u32) {
}

// Products of a key word with each row of the block.
fn query_dot(item: WorkItem, group: u32, row_block: u32, i: u32, word: u32, key: array<vec4<f32>, VECS_PER_WORD>) -> Rows {
    let in_state = word < KEY_WORDS;
    let first = select(NOPE_DIM / 4u + (word - KEY_WORDS) * VECS_PER_WORD, word * VECS_PER_WORD, in_state);
    let end = select(Q_DIM, NOPE_DIM, in_state) / 4u;
    var wide = vec4<f32>(0.0);
    // unroll
    for (var j = 0u; j < ROWS_PER_BLOCK; j++) {
        let row = item.row_first + row_block * ROWS_PER_BLOCK + j;
        // A row past the end repeats the last one; its results are never written.
        let at = query_row(item, group, min(row, item.q_len * HEADS_PER_GROUP - 1u)) * (Q_DIM / 4u);
        // unroll
        for (var v = 0u; v < VECS_PER_WORD; v++) {
            if (first + v < end) {
                wide[j] += dot(q[at + first + v], key[v]);
            }
        }
    }
    return rows_narrow(wide * params.scale_log2);
}
