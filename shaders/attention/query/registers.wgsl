// The lane's slice of its query rows, held in registers for the whole work item. Any dimensions. Slot: attention/query.

// (query tokens, Q_HEADS, Q_DIM) f32
@group(0) @binding(2) var<storage, read> q: array<f32>;

var<private> q_slice: array<Rows, WORDS_PER_SPLIT * ELEMS_PER_WORD>;
// Element e of the lane's key word number i, for each row of the block, is q_slice[i * Q_WORD_STRIDE + e].
const Q_WORD_STRIDE = ELEMS_PER_WORD;

// Loads the slice of row block `row_block` whose key words are first_word + i * KEY_SPLITS.
fn query_init(item: WorkItem, group: u32, row_block: u32, first_word: u32) {
    // unroll
    for (var i = 0u; i < WORDS_PER_SPLIT; i++) {
        let word = first_word + i * KEY_SPLITS;
        // unroll
        for (var e = 0u; e < ELEMS_PER_WORD; e++) {
            let in_state = word < KEY_WORDS;
            let dim = select(NOPE_DIM + (word - KEY_WORDS) * ELEMS_PER_WORD, word * ELEMS_PER_WORD, in_state) + e;
            let held = dim < select(Q_DIM, NOPE_DIM, in_state);
            var wide = vec4<f32>(0.0);
            // unroll
            for (var j = 0u; j < ROWS_PER_BLOCK; j++) {
                let row = item.row_first + row_block * ROWS_PER_BLOCK + j;
                if (held && row < item.q_len * HEADS_PER_GROUP) {
                    wide[j] = q[query_row(item, group, row) * Q_DIM + dim] * params.scale_log2;
                }
            }
            q_slice[i * ELEMS_PER_WORD + e] = rows_narrow(wide);
        }
    }
}

// Makes key word `word` of the row block ready.
fn query_load(item: WorkItem, group: u32, row_block: u32, word: u32) {
}
