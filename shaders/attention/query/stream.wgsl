// Query words read when they are needed: they do not fit in registers, but stay in the nearest cache.
// NOPE_DIM and ROPE_DIM are multiples of 4 here. Slot: attention/query.

// (query tokens, Q_HEADS, Q_DIM) f32
@group(0) @binding(2) var<storage, read> q: array<vec4<f32>>;

var<private> q_slice: array<Rows, ELEMS_PER_WORD>;
// Element e of the word last loaded, for each row of the block, is q_slice[i * Q_WORD_STRIDE + e].
const Q_WORD_STRIDE = 0u;

fn query_init(item: WorkItem, group: u32, row_block: u32, first_word: u32) {
}

// Makes key word `word` of the row block ready.
fn query_load(item: WorkItem, group: u32, row_block: u32, word: u32) {
    let in_state = word < KEY_WORDS;
    let first = select(NOPE_DIM / 4u + (word - KEY_WORDS) * VECS_PER_WORD, word * VECS_PER_WORD, in_state);
    let end = select(Q_DIM, NOPE_DIM, in_state) / 4u;
    var wide: array<vec4<f32>, ELEMS_PER_WORD>;
    // unroll
    for (var j = 0u; j < ROWS_PER_BLOCK; j++) {
        let row = item.row_first + row_block * ROWS_PER_BLOCK + j;
        // A row past the end repeats the last one; its results are never written.
        let at = query_row(item, group, min(row, item.q_len * HEADS_PER_GROUP - 1u)) * (Q_DIM / 4u);
        // unroll
        for (var v = 0u; v < VECS_PER_WORD; v++) {
            var part = vec4<f32>(0.0);
            if (first + v < end) {
                part = q[at + first + v] * params.scale_log2;
            }
            // unroll
            for (var c = 0u; c < 4u; c++) {
                wide[v * 4u + c][j] = part[c];
            }
        }
    }
    // unroll
    for (var e = 0u; e < ELEMS_PER_WORD; e++) {
        q_slice[e] = rows_narrow(wide[e]);
    }
}
