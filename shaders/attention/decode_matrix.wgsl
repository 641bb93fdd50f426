// Decode for many query rows: as `decode`, its two products by cooperative matrices of 16 x 16.
//
//   S[r][t] = scale * ( q_nope[r] . state[t][..NOPE_DIM] + q_rope[r] . rope_key[t] )
//   O[r]    = sum_t softmax(S[r])[t] * state[t][v_offset ..],   LSE[r] = ln sum_t exp(S[r][t])
//
// Zadouri et al., arXiv 2505.21487, §3.3; online softmax as in FlashAttention. Factors are f16, sums f32. Queries stay in
// registers as matrices, and so do the sums O. A subgroup of the first product takes 16 tokens, ROW_TILES / ROW_GROUPS
// row tiles and one of KEY_SPLITS parts of the key; of the second, COLUMN_TILES columns of all rows.
//
// Per step TOKENS tokens go through workgroup memory:
//   1. store the tile fetched during the last step; fetch the next one into registers
//   2. first product; its scores to workgroup memory
//   3. softmax: a lane takes TOKENS_PER_LANE tokens of a row; weights to workgroup memory
//   4. second product
// Its step is written out in main, the softmax too: with functions in their place the driver's code is slower, whatever they hold
// (GLA-2 of 64 rows on an H200: 409 us, 515 to 523 with parts of the step in functions).
// The elements of a matrix cannot be reached, so scores and weights go through workgroup memory, and O must be rescaled
// through it: which is rare, since weights are taken against a reference maximum that is raised only when a score exceeds
// it by SLACK.
//
// Grid: x = group, y (and z, folded past 65,535) = work item of the class.
// Constants: attention/matrix.rs, MatrixShape. Parts: decode_io, plan, softmax, page, pool_ordered,
// half_word, attention/score/*, attention/mask/*, attention/sink/*.

// (query tokens, Q_HEADS, Q_DIM) f32
@group(0) @binding(2) var<storage, read> q: array<f32>;

const ROWS = 16u * ROW_TILES;
const TOKENS = 16u * TOKEN_TILES;
// Rows are an odd number of 16 bytes apart, against bank conflicts.
const TILE_STRIDE = (STATE_WORDS + ROPE_WORDS) | 1u; // words
const STAGE_STRIDE = (2u * KEY_SPLITS * STAGE_STEPS) | 1u; // words
const STAGE_QUADS = 4u * KEY_SPLITS * STAGE_STEPS; // of a row
const WEIGHT_STRIDE = TOKENS / 8u + 1u; // words
const LANES_PER_TOKEN = THREADS / TOKENS;
const LANES_PER_ROW = THREADS / ROWS;

// As wide as a Word, and for the same reason.
alias Weights = array<f16, 8>;
// TOKENS rows of key, rope key, rest of the state; before the first step, rows of queries.
var<workgroup> tile: array<Word, TILE_WORD_COUNT>;
// KEY_SPLITS x ROWS x SCORE_STRIDE; also 16 x 16 for each subgroup when sums are rescaled or written.
var<workgroup> scores: array<vec4<f32>, SCORE_VEC4S>;
var<workgroup> weights: array<Weights, WEIGHT_WORDS>;
var<workgroup> row_factor: array<f32, ROW_COUNT>;
// By subgroup: whether one of its rows raised its maximum in this step.
var<workgroup> raised: array<vec4<u32>, 2>;

var<private> fetched: array<vec4<u32>, FETCHES>;

// The lane's words of its token.
fn fetch(item: WorkItem, group: u32, lane: u32, first: u32, page: u32) {
    let page_size = 1u << params.page_shift;
    let offset = min(first, item.token_last - 1u) & (page_size - 1u);
    let state = page_state(page, page_size, offset, group);
    let rope = page_rope(page, page_size, offset);
    let sub = lane % LANES_PER_TOKEN;
    // unroll
    for (var i = 0u; i < STATE_FETCHES; i++) {
        fetched[i] = pool_word(state + min(sub + i * LANES_PER_TOKEN, STATE_WORDS - 1u));
    }
    // unroll
    for (var i = 0u; i < ROPE_FETCHES; i++) {
        fetched[STATE_FETCHES + i] = pool_word(rope + min(sub + i * LANES_PER_TOKEN, max(ROPE_WORDS, 1u) - 1u));
    }
}

// Word of a tile's row that holds a word of the state: the rope key stands between the key and the rest.
fn tile_word(state_word: u32) -> u32 {
    return select(state_word + ROPE_WORDS, state_word, state_word < KEY_WORDS);
}

fn store(lane: u32) {
    let row = lane / LANES_PER_TOKEN * TILE_STRIDE;
    let sub = lane % LANES_PER_TOKEN;
    // unroll
    for (var i = 0u; i < STATE_FETCHES; i++) {
        let word = sub + i * LANES_PER_TOKEN;
        if (word < STATE_WORDS) {
            tile[row + tile_word(word)] = half_word(fetched[i]);
        }
    }
    // unroll
    for (var i = 0u; i < ROPE_FETCHES; i++) {
        let word = sub + i * LANES_PER_TOKEN;
        if (word < ROPE_WORDS) {
            tile[row + KEY_WORDS + word] = half_word(fetched[STATE_FETCHES + i]);
        }
    }
}

// The power of two that queries of a lane's row are divided by, so that all are at most 1: nothing is rounded by it.
fn query_exponent(item: WorkItem, group: u32, lane: u32) -> f32 {
    let row = item.row_first + lane / LANES_PER_ROW;
    let first = select(0u, query_row(item, group, row) * Q_DIM, row < item.q_len * HEADS_PER_GROUP);
    var largest = 0.0;
    for (var d = lane % LANES_PER_ROW; d < Q_DIM; d += LANES_PER_ROW) {
        largest = max(largest, abs(q[first + d] * params.scale_log2));
    }
    // unroll
    for (var j = 0u; j < LANES_PER_ROW_LOG2; j++) {
        largest = max(largest, subgroupShuffleXor(largest, 1u << j));
    }
    return clamp(ceil(log2(max(largest, 1.0e-30))), -100.0, 100.0);
}

// Puts STAGE_STEPS matrices of every part of the key, of all rows, into the tiles' memory; those from `step` on.
fn stage_queries(item: WorkItem, group: u32, lane: u32, step: u32) {
    for (var i = lane; i < ROWS * STAGE_QUADS; i += THREADS) {
        let tile_row = i / STAGE_QUADS;
        let quad = i % STAGE_QUADS;
        let row = item.row_first + tile_row;
        let held = row < item.q_len * HEADS_PER_GROUP;
        let key = (quad / (4u * STAGE_STEPS) * KEY_STEPS + step) * 4u + quad % (4u * STAGE_STEPS);
        let at = select(0u, query_row(item, group, row) * Q_DIM, held) + 4u * key;
        let factor = select(0.0, params.scale_log2 / row_factor[tile_row], held);
        let values = vec4<f32>(q[at], q[at + 1u], q[at + 2u], q[at + 3u]);
        tile[tile_row * STAGE_STRIDE + quad / 2u][quad % 2u] = vec4<f16>(values * factor);
    }
}

// Writes 16 x 16 finished sums that lie in the subgroup's scratch, or partial results where the tile is split.
fn write_sums(item: WorkItem, group: u32, scratch: u32, lane: u32, row_tile: u32, column: u32) {
    // unroll
    for (var i = 0u; i < 8u; i++) {
        let at = lane + i * 32u;
        let tile_row = row_tile * 16u + at / 16u;
        let row = item.row_first + tile_row;
        if (row < item.q_len * HEADS_PER_GROUP) {
            let value = scores[scratch + at / 4u][at % 4u] * row_factor[tile_row];
            let dim = column * 16u + at % 16u;
            if (item.partial_row != NO_PARTIAL) {
                partials[partial_of(item, group, tile_row) * V_DIM + dim] = value;
            } else {
                out[query_row(item, group, row) * V_DIM + dim] = value;
            }
        }
    }
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
) {
    let index = params.item_first + workgroup.z * grid.y + workgroup.y;
    // Not by work_item_count: naga takes what a function makes of its arguments for non-uniform, and matrices need uniform
    // control flow.
    if (index >= plan[5u + 4u * params.class_index]) {
        return;
    }
    let item = work_item(params.class_index, index);
    let group = workgroup.x;
    let lane = subgroup * 32u + subgroup_lane;

    // First product: the subgroup's part of the key, tokens and row tiles.
    let key_split = subgroup % KEY_SPLITS;
    let token_tile = subgroup / KEY_SPLITS % TOKEN_TILES;
    let row_group = subgroup / (KEY_SPLITS * TOKEN_TILES);
    let key_at = token_tile * 16u * TILE_STRIDE + key_split * KEY_STEPS * 2u;
    let score_at = (key_split * ROWS + row_group * 16u) * SCORE_STRIDE + token_tile * 4u;
    // Softmax: the lane's row, of which it takes every LANES_PER_ROW-th token.
    let softmax_row = lane / LANES_PER_ROW;
    let softmax_lane = lane % LANES_PER_ROW;
    let visible = visible_to(item, item.row_first + softmax_row);
    let unit = exp2(query_exponent(item, group, lane));
    if (softmax_lane == 0u) {
        row_factor[softmax_row] = unit;
    }
    if (lane < 2u) {
        raised[lane] = vec4<u32>(0u);
    }
    workgroupBarrier();
    var queries: array<coop_mat16x16<f16, A>, QUERY_MATRICES>;
    // unroll
    for (var stage = 0u; stage < STAGES; stage++) {
        stage_queries(item, group, lane, stage * STAGE_STEPS);
        workgroupBarrier();
        // unroll
        for (var i = 0u; i < STAGE_STEPS; i++) {
            // unroll
            for (var j = 0u; j < GROUP_TILES; j++) {
                // Row tiles row_group, row_group + ROW_GROUPS ..
                let at = (j * ROW_GROUPS + row_group) * 16u * STAGE_STRIDE + (key_split * STAGE_STEPS + i) * 2u;
                let matrix = (stage * STAGE_STEPS + i) * GROUP_TILES + j;
                queries[matrix] = coopLoadT<coop_mat16x16<f16, A>>(&tile[at][0], 2u * STAGE_STRIDE);
            }
        }
        workgroupBarrier();
    }

    var top = FLOOR;
    var total = 0.0;
    // Second product: the subgroup's columns.
    let column_first = subgroup * COLUMN_TILES;
    var sums: array<coop_mat16x16<f32, C>, SUM_MATRICES>;
    // unroll
    for (var i = 0u; i < SUM_MATRICES; i++) {
        sums[i] = coop_mat16x16<f32, C>();
    }

    let own = item.token_first + lane / LANES_PER_TOKEN;
    var next_page = 0u;
    if (item.token_first < item.token_last) {
        fetch(item, group, lane, own, page_of(item, own));
        next_page = page_of(item, own + TOKENS);
    }
    for (var first = item.token_first; first < item.token_last; first += TOKENS) {
        store(lane);
        workgroupBarrier();
        let next = first + TOKENS + lane / LANES_PER_TOKEN;
        fetch(item, group, lane, next, next_page);
        next_page = page_of(item, next + TOKENS);

        var products: array<coop_mat16x16<f32, C>, GROUP_TILES>;
        // unroll
        for (var j = 0u; j < GROUP_TILES; j++) {
            products[j] = coop_mat16x16<f32, C>();
        }
        // unroll
        for (var i = 0u; i < KEY_STEPS; i++) {
            let keys = coopLoad<coop_mat16x16<f16, B>>(&tile[key_at + i * 2u][0], 2u * TILE_STRIDE);
            // unroll
            for (var j = 0u; j < GROUP_TILES; j++) {
                products[j] = coopMultiplyAdd(queries[i * GROUP_TILES + j], keys, products[j]);
            }
        }
        // unroll
        for (var j = 0u; j < GROUP_TILES; j++) {
            coopStoreT(products[j], &scores[score_at + j * ROW_GROUPS * 16u * SCORE_STRIDE], SCORE_STRIDE);
        }
        workgroupBarrier();

        var score: array<f32, TOKENS_PER_LANE>;
        var largest = NEGATIVE;
        // unroll
        for (var t = 0u; t < TOKENS_PER_LANE; t++) {
            let token = softmax_lane + t * LANES_PER_ROW;
            var sum = 0.0;
            // unroll
            for (var k = 0u; k < KEY_SPLITS; k++) {
                sum += scores[(k * ROWS + softmax_row) * SCORE_STRIDE + token / 4u][token % 4u];
            }
            score[t] = select(NEGATIVE, score_transform(sum * unit), sees(visible, first + token));
            largest = max(largest, score[t]);
        }
        // unroll
        for (var j = 0u; j < LANES_PER_ROW_LOG2; j++) {
            largest = max(largest, subgroupShuffleXor(largest, 1u << j));
        }
        let raise = largest > top + SLACK;
        let next_top = select(top, largest, raise);
        let shrink = exp2(top - next_top);
        top = next_top;
        total *= shrink;
        if (softmax_lane == 0u) {
            row_factor[softmax_row] = shrink;
        }
        // In the first step there is no sum yet that would have to shrink.
        let any_raise = subgroupAny(raise && first > item.token_first);
        if (subgroup_lane == 0u) {
            raised[subgroup / 4u][subgroup % 4u] = select(0u, 1u, any_raise);
        }
        // unroll
        for (var t = 0u; t < TOKENS_PER_LANE; t++) {
            let weight = f16(exp2(score[t] - top));
            // The sum is of what is multiplied, rounding included.
            total += f32(weight);
            let token = softmax_lane + t * LANES_PER_ROW;
            weights[softmax_row * WEIGHT_STRIDE + token / 8u][token % 8u] = weight;
        }
        // A barrier, too.
        let subgroups_raised = workgroupUniformLoad(&raised);
        if (any(subgroups_raised[0] + subgroups_raised[1] != vec4<u32>(0u))) {
            // unroll
            for (var i = 0u; i < SUM_MATRICES; i++) {
                coopStoreT(sums[i], &scores[subgroup * 64u], 4u);
                workgroupBarrier();
                // A lane takes half of a row.
                let factor = row_factor[i / COLUMN_TILES * 16u + subgroup_lane / 2u];
                scores[subgroup * 64u + subgroup_lane * 2u] *= factor;
                scores[subgroup * 64u + subgroup_lane * 2u + 1u] *= factor;
                workgroupBarrier();
                sums[i] = coopLoadT<coop_mat16x16<f32, C>>(&scores[subgroup * 64u], 4u);
                workgroupBarrier();
            }
        }
        // unroll
        for (var t = 0u; t < TOKEN_TILES; t++) {
            var columns: array<coop_mat16x16<f16, B>, COLUMN_TILES>;
            // unroll
            for (var c = 0u; c < COLUMN_TILES; c++) {
                let at = t * 16u * TILE_STRIDE + tile_word(VALUE_FIRST + (column_first + c) * 2u);
                columns[c] = coopLoadT<coop_mat16x16<f16, B>>(&tile[at][0], 2u * TILE_STRIDE);
            }
            // unroll
            for (var r = 0u; r < ROW_TILES; r++) {
                let at_rows = r * 16u * WEIGHT_STRIDE + t * 2u;
                let rows = coopLoadT<coop_mat16x16<f16, A>>(&weights[at_rows][0], 8u * WEIGHT_STRIDE);
                // unroll
                for (var c = 0u; c < COLUMN_TILES; c++) {
                    let at = r * COLUMN_TILES + c;
                    sums[at] = coopMultiplyAdd(rows, columns[c], sums[at]);
                }
            }
        }
        workgroupBarrier();
    }
    // unroll
    for (var j = 0u; j < LANES_PER_ROW_LOG2; j++) {
        total += subgroupShuffleXor(total, 1u << j);
    }
    // Every lane has read its row's factor before it is written anew: a barrier ends each step, and one the queries.
    if (softmax_lane == 0u) {
        let row = item.row_first + softmax_row;
        let finished = finish_row(item, group, row, top, total);
        row_factor[softmax_row] = finished.factor;
        if (row < item.q_len * HEADS_PER_GROUP) {
            write_lse(item, group, softmax_row, finished.lse2);
        }
    }
    workgroupBarrier();
    // unroll
    for (var i = 0u; i < SUM_MATRICES; i++) {
        coopStoreT(sums[i], &scores[subgroup * 64u], 4u);
        workgroupBarrier();
        write_sums(item, group, subgroup * 64u, subgroup_lane, i / COLUMN_TILES, column_first + i % COLUMN_TILES);
        workgroupBarrier();
    }
}
