// Decode: attention of a tile of query rows over one chunk of one sequence's cached tokens, for one group.
//
//   S[r][t] = scale * ( q_nope[r] . state[t][..NOPE_DIM] + q_rope[r] . rope_key[t] )
//   O[r]    = sum_t softmax(S[r])[t] * state[t][v_offset ..],   LSE[r] = ln sum_t exp(S[r][t])
//
// Zadouri et al., arXiv 2505.21487, §3.3 (one state per group serves as key and value), online softmax as in
// FlashAttention. Rows are (query token, head of the group), head fastest: every state is read from memory once for
// all of a tile's rows, so once per query group and never once per query head.
//
// Per step TOKENS tokens go through workgroup memory:
//   1. store the tile fetched during the last step; fetch the next one into registers
//   2. scores: a lane takes ROWS_PER_BLOCK rows x 1 token x every KEY_SPLITS-th key word
//   3. softmax: a lane takes ROWS_PER_BLOCK rows x 1 token
//   4. output: a lane takes ROWS_PER_BLOCK rows x 1 value word x every TOKEN_SPLITS-th token, sums in registers
//
// Grid: x = group, y (and z, folded past 65,535) = work item of the class.
// Constants: attention/decode.rs, DecodeShape. Parts: plan, softmax, elements_*, rows_*, query_*.

struct Params {
    scale_log2: f32, // softmax_scale * log2(e)
    page_count: u32,
    page_shift: u32, // log2 of the tokens per page
    class_index: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// one layer's pages: per group [page_size][STATE_WORDS], then [page_size][ROPE_WORDS], vec4 words of elements
@group(0) @binding(1) var<storage, read> pool: array<vec4<u32>>;
// (query tokens, Q_HEADS, V_DIM) f32
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
// (query tokens, Q_HEADS) f32 bits, natural log
@group(0) @binding(5) var<storage, read_write> lse: array<u32>;
// (GROUPS, partial rows, V_DIM) f32, then (GROUPS, partial rows) f32 LSE in log2 units
@group(0) @binding(6) var<storage, read_write> partials: array<f32>;

const TILE_WORDS = STATE_WORDS + ROPE_WORDS;
// Odd, so that lanes reading one word of neighbouring tokens meet different banks.
const TILE_STRIDE = TILE_WORDS | 1u;
const ROWS = ROW_BLOCKS * ROWS_PER_BLOCK;
const BLOCK_TOKENS = ROW_BLOCKS * TOKENS;
const VALUE_UNITS = ROW_BLOCKS * VALUE_WORDS;
// One block of padding per pair, against bank conflicts.
const SPLIT_STRIDE = KEY_SPLITS + 1u;

// Indexed by token * ROW_BLOCKS + row block where not said otherwise; each element is written whole by one lane.
var<workgroup> tile: array<vec4<u32>, TILE_VEC4S>;
var<workgroup> split_scores: array<Rows, SPLIT_SCORES>;
var<workgroup> scores: array<Rows, BLOCK_TOKENS>;
var<workgroup> weights: array<Rows, BLOCK_TOKENS>;
var<workgroup> rescale: array<Rows, ROW_BLOCKS>; // by row block
var<workgroup> row_max: array<Rows, ROW_BLOCKS>; // by row block

// What a lane fetches of every tile: word i of tile token fetch_token[i], at page + offset * stride + plane.
var<private> fetched: array<vec4<u32>, FETCHES_PER_LANE>;
var<private> fetch_page: array<u32, FETCHES_PER_LANE>;
var<private> fetch_token: array<u32, FETCHES_PER_LANE>;
var<private> fetch_stride: array<u32, FETCHES_PER_LANE>;
var<private> fetch_plane: array<u32, FETCHES_PER_LANE>;

// Row of q, out and lse of a tile row.
fn query_row(item: WorkItem, group: u32, row: u32) -> u32 {
    return (item.q_token_first + row / HEADS_PER_GROUP) * Q_HEADS + group * HEADS_PER_GROUP + row % HEADS_PER_GROUP;
}

// One past the last token of the item that a row may see: causal, aligned to the end; none for a row past the last.
fn visible_tokens(item: WorkItem, row: u32) -> u32 {
    let visible = item.kv_len + row / HEADS_PER_GROUP + 1u - item.q_len;
    return select(0u, min(visible, item.token_last), row < item.q_len * HEADS_PER_GROUP);
}

fn fetch_init(group: u32, lane: u32) {
    let page_size = 1u << params.page_shift;
    // unroll
    for (var i = 0u; i < FETCHES_PER_LANE; i++) {
        let index = lane + i * THREADS;
        let word = index % TILE_WORDS;
        let in_state = word < STATE_WORDS;
        // A lane without an i-th word gets a token that no tile has.
        fetch_token[i] = select(0x40000000u, index / TILE_WORDS, index < TOKENS * TILE_WORDS);
        fetch_stride[i] = select(ROPE_WORDS, STATE_WORDS, in_state);
        let rope_plane = GROUPS * page_size * STATE_WORDS + word - STATE_WORDS;
        fetch_plane[i] = select(rope_plane, group * page_size * STATE_WORDS + word, in_state);
    }
}

// Page ids of the tile at `token_first`, one step before its words are fetched.
fn fetch_pages(item: WorkItem, token_first: u32) {
    // unroll
    for (var i = 0u; i < FETCHES_PER_LANE; i++) {
        let token = min(token_first + fetch_token[i], max(item.token_last, 1u) - 1u);
        // The host has checked the page table; the clamp keeps a corrupted one inside the pool.
        fetch_page[i] = min(plan[item.page_table_first + (token >> params.page_shift)], params.page_count - 1u);
    }
}

// Words of the tile at `token_first`. Tokens past the item's last are zero: their memory is somebody else's.
fn fetch_tile(item: WorkItem, token_first: u32) {
    let page_words = (GROUPS * STATE_WORDS + ROPE_WORDS) << params.page_shift;
    let offset_mask = (1u << params.page_shift) - 1u;
    // unroll
    for (var i = 0u; i < FETCHES_PER_LANE; i++) {
        let token = token_first + fetch_token[i];
        var raw = vec4<u32>(0u);
        if (token < item.token_last) {
            raw = pool[fetch_page[i] * page_words + (token & offset_mask) * fetch_stride[i] + fetch_plane[i]];
        }
        fetched[i] = raw;
    }
}

fn store_tile(lane: u32) {
    // unroll
    for (var i = 0u; i < FETCHES_PER_LANE; i++) {
        let index = lane + i * THREADS;
        if (index < TOKENS * TILE_WORDS) {
            tile[index / TILE_WORDS * TILE_STRIDE + index % TILE_WORDS] = fetched[i];
        }
    }
}

// Scores of the lane's row block and token over its key words; complete where KEY_SPLITS is 1.
fn score_tile(item: WorkItem, group: u32, lane: u32) -> Rows {
    let split = lane % KEY_SPLITS;
    let block_token = lane / KEY_SPLITS;
    let row_block = block_token % ROW_BLOCKS;
    let token = min(block_token / ROW_BLOCKS, TOKENS - 1u);
    var sum = Rows(0.0);
    // unroll
    for (var i = 0u; i < WORDS_PER_SPLIT; i++) {
        let word = split + i * KEY_SPLITS;
        if (word < KEY_WORDS + ROPE_WORDS) {
            let at = select(STATE_WORDS + word - KEY_WORDS, word, word < KEY_WORDS);
            sum += query_dot(item, group, row_block, i, word, unpack_word(tile[token * TILE_STRIDE + at]));
        }
    }
    return sum;
}

// Adds up the key splits of a block and token in a fixed order.
fn reduce_splits(block_token: u32) -> Rows {
    var sum = Rows(0.0);
    // unroll
    for (var s = 0u; s < KEY_SPLITS; s++) {
        sum += split_scores[block_token * SPLIT_STRIDE + s];
    }
    return sum;
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = workgroup.z * grid.y + workgroup.y;
    if (index >= work_item_count(params.class_index)) {
        return;
    }
    let item = work_item(params.class_index, index);
    let group = workgroup.x;
    query_init(item, group, lane / KEY_SPLITS % ROW_BLOCKS, lane % KEY_SPLITS);

    // Softmax: lanes below BLOCK_TOKENS each own a token of the tile and a block of rows.
    let softmax_block = lane % ROW_BLOCKS;
    let softmax_token = lane / ROW_BLOCKS;
    var visible: array<u32, ROWS_PER_BLOCK>;
    // unroll
    for (var j = 0u; j < ROWS_PER_BLOCK; j++) {
        visible[j] = visible_tokens(item, item.row_first + softmax_block * ROWS_PER_BLOCK + j);
    }
    var running_max = Rows(NEGATIVE);
    if (lane < ROW_BLOCKS) {
        row_max[lane] = running_max;
    }

    // Output: the lane's value units and, where there are fewer units than lanes, its share of the tokens.
    let token_split = select(lane / VALUE_UNITS, 0u, TOKEN_SPLITS == 1u);
    let unit_first = select(lane % VALUE_UNITS, lane, TOKEN_SPLITS == 1u);
    var sums: array<Rows, UNITS_PER_LANE * ELEMS_PER_WORD>;
    var totals: array<Rows, UNITS_PER_LANE>;
    // unroll
    for (var u = 0u; u < UNITS_PER_LANE; u++) {
        totals[u] = Rows(0.0);
        // unroll
        for (var e = 0u; e < ELEMS_PER_WORD; e++) {
            sums[u * ELEMS_PER_WORD + e] = Rows(0.0);
        }
    }

    fetch_init(group, lane);
    fetch_pages(item, item.token_first);
    fetch_tile(item, item.token_first);
    fetch_pages(item, item.token_first + TOKENS);
    for (var first = item.token_first; first < item.token_last; first += TOKENS) {
        store_tile(lane);
        workgroupBarrier();
        fetch_tile(item, first + TOKENS);
        fetch_pages(item, first + 2u * TOKENS);

        var score = score_tile(item, group, lane);
        if (KEY_SPLITS > 1u) {
            if (lane < BLOCK_TOKENS * KEY_SPLITS) {
                split_scores[lane / KEY_SPLITS * SPLIT_STRIDE + lane % KEY_SPLITS] = score;
            }
            workgroupBarrier();
            score = reduce_splits(min(lane, BLOCK_TOKENS - 1u));
        }
        if (lane < BLOCK_TOKENS) {
            var wide = rows_widen(score);
            // unroll
            for (var j = 0u; j < ROWS_PER_BLOCK; j++) {
                wide[j] = select(NEGATIVE, wide[j], first + softmax_token < visible[j]);
            }
            score = rows_narrow(wide);
            scores[lane] = score;
        }
        workgroupBarrier();

        if (lane < BLOCK_TOKENS) {
            var top = running_max;
            // unroll
            for (var t = 0u; t < TOKENS; t++) {
                top = max(top, scores[t * ROW_BLOCKS + softmax_block]);
            }
            var wide = rows_widen(exp2(score - top));
            // unroll
            for (var j = 0u; j < ROWS_PER_BLOCK; j++) {
                wide[j] = select(0.0, wide[j], first + softmax_token < visible[j]);
            }
            weights[lane] = rows_narrow(wide);
            if (softmax_token == 0u) {
                rescale[softmax_block] = exp2(running_max - top);
                row_max[softmax_block] = top;
            }
            running_max = top;
        }
        workgroupBarrier();

        // unroll
        for (var u = 0u; u < UNITS_PER_LANE; u++) {
            let unit = unit_first + u * THREADS;
            if (unit < VALUE_UNITS && token_split < TOKEN_SPLITS) {
                let row_block = unit / VALUE_WORDS;
                let word = VALUE_FIRST + unit % VALUE_WORDS;
                let factor = rescale[row_block];
                // Rare after the first few tiles; the same for all lanes of a block.
                if (any(rows_widen(factor) != rows_widen(Rows(1.0)))) {
                    totals[u] *= factor;
                    // unroll
                    for (var e = 0u; e < ELEMS_PER_WORD; e++) {
                        sums[u * ELEMS_PER_WORD + e] *= factor;
                    }
                }
                for (var k = 0u; k < TOKENS_PER_SPLIT; k += TOKENS_UNROLLED) {
                    // unroll
                    for (var n = 0u; n < TOKENS_UNROLLED; n++) {
                        let token = token_split + (k + n) * TOKEN_SPLITS;
                        let weight = weights[token * ROW_BLOCKS + row_block];
                        let value = unpack_word(tile[token * TILE_STRIDE + word]);
                        totals[u] += weight;
                        // unroll
                        for (var e = 0u; e < ELEMS_PER_WORD; e++) {
                            sums[u * ELEMS_PER_WORD + e] += weight * value[e / 4u][e % 4u];
                        }
                    }
                }
            }
        }
        workgroupBarrier();
    }

    // Add up the token splits, in order, one element at a time through the tile's memory.
    if (TOKEN_SPLITS > 1u) {
        // unroll
        for (var e = 0u; e < ELEMS_PER_WORD_AND_TOTAL; e++) {
            if (e < ELEMS_PER_WORD) {
                tile[lane] = bitcast<vec4<u32>>(rows_widen(sums[min(e, ELEMS_PER_WORD - 1u)]));
            } else {
                tile[lane] = bitcast<vec4<u32>>(rows_widen(totals[0]));
            }
            workgroupBarrier();
            if (lane < VALUE_UNITS) {
                var sum = Rows(0.0);
                for (var s = 0u; s < TOKEN_SPLITS; s++) {
                    sum += rows_narrow(bitcast<vec4<f32>>(tile[lane + s * VALUE_UNITS]));
                }
                if (e < ELEMS_PER_WORD) {
                    sums[min(e, ELEMS_PER_WORD - 1u)] = sum;
                } else {
                    totals[0] = sum;
                }
            }
            workgroupBarrier();
        }
    } else {
        // row_max of an item without tokens.
        workgroupBarrier();
    }

    // unroll
    for (var u = 0u; u < UNITS_PER_LANE; u++) {
        let unit = unit_first + u * THREADS;
        if (unit < VALUE_UNITS && token_split == 0u) {
            let row_block = unit / VALUE_WORDS;
            let first_dim = unit % VALUE_WORDS * ELEMS_PER_WORD;
            // unroll
            for (var j = 0u; j < ROWS_PER_BLOCK; j++) {
                let tile_row = row_block * ROWS_PER_BLOCK + j;
                let row = item.row_first + tile_row;
                if (row < item.q_len * HEADS_PER_GROUP) {
                    let total = rows_get(totals[u], j);
                    let lse2 = softmax_lse2(rows_get(row_max[row_block], j), total);
                    let split = item.partial_row != NO_PARTIAL;
                    let partial = group * partial_rows() + item.partial_row + tile_row;
                    let final_row = query_row(item, group, row);
                    // unroll
                    for (var e = 0u; e < ELEMS_PER_WORD; e++) {
                        if (first_dim + e < V_DIM) {
                            let value = rows_get(sums[u * ELEMS_PER_WORD + e], j) * softmax_inverse(total);
                            if (split) {
                                partials[partial * V_DIM + first_dim + e] = value;
                            } else {
                                out[final_row * V_DIM + first_dim + e] = value;
                            }
                        }
                    }
                    if (first_dim == 0u && split) {
                        partials[GROUPS * partial_rows() * V_DIM + partial] = lse2;
                    } else if (first_dim == 0u) {
                        lse[final_row] = softmax_lse_bits(lse2);
                    }
                }
            }
        }
    }
}
