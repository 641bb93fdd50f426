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
//   2. scores: a lane takes ROWS_PER_BLOCK rows x every KEY_SPLITS-th key word x every SCORE_LANES-th token
//   3. softmax: a lane takes ROWS_PER_BLOCK rows x 1 token
//   4. output: a lane takes ROWS_PER_BLOCK rows x 1 value word x every TOKEN_SPLITS-th token, sums in registers
//
// Grid: x = group, y (and z, folded past 65,535) = work item of the class.
// Constants: attention/shape.rs, DecodeShape. Parts: decode_io, plan, softmax, page,
// kv/element/*, attention/scales/*, attention/block/*, attention/query/*, attention/tile/*, attention/score/*, attention/mask/*, attention/sink/*.

const TILE_WORDS = STATE_WORDS + ROPE_WORDS;
// Odd, so that lanes reading one word of neighbouring tokens meet different banks.
const TILE_STRIDE = TILE_WORDS | 1u;
const ROWS = ROW_BLOCKS * ROWS_PER_BLOCK;
const BLOCK_TOKENS = ROW_BLOCKS * TOKENS;
const VALUE_UNITS = ROW_BLOCKS * VALUE_WORDS;
// Odd, against bank conflicts.
const SPLIT_STRIDE = KEY_SPLITS | 1u;
// A width to divide by where there is no rope key.
const ROPE_STRIDE = max(ROPE_WORDS, 1u);

// Indexed by token * ROW_BLOCKS + row block where not said otherwise; each element is written whole by one lane.
var<workgroup> tile: array<PoolWord, TILE_LENGTH>;
var<workgroup> split_scores: array<Rows, SPLIT_SCORES>;
var<workgroup> scores: array<Rows, BLOCK_TOKENS>;
var<workgroup> weights: array<Rows, BLOCK_TOKENS>;
var<workgroup> rescale: array<Rows, ROW_BLOCKS>; // by row block
var<workgroup> row_max: array<Rows, ROW_BLOCKS>; // by row block

// Where each token of the next tile lies in the pool: its state's first word, then, TOKENS later, its rope key's.
var<workgroup> token_base: array<u32, 2u * TOKENS>;

const NOWHERE = 0xffffffffu;

var<private> fetched: array<PoolWord, STATE_FETCHES + ROPE_FETCHES>;

// Softmax: what the rows of the lane's block see, and their maxima. Lanes below BLOCK_TOKENS each own a token of the tile
// and a block of rows.
var<private> visible: array<Visible, ROWS_PER_BLOCK>;
var<private> running_max: Rows;
// Output: of the lane's units, each a block of rows and a word of the value, the weighted sums and the totals of weights.
var<private> sums: array<Rows, UNITS_PER_LANE * ELEMS_PER_WORD>;
var<private> totals: array<Rows, UNITS_PER_LANE>;

// Where there are fewer units than lanes, the lanes of a unit share the tokens.
fn token_split_of(lane: u32) -> u32 {
    return select(lane / VALUE_UNITS, 0u, TOKEN_SPLITS == 1u);
}

fn first_unit_of(lane: u32) -> u32 {
    return select(lane % VALUE_UNITS, lane, TOKEN_SPLITS == 1u);
}

// Tells all lanes where `token` lies. Past the item's last token is nowhere: that memory is somebody else's.
fn publish_base(item: WorkItem, group: u32, token: u32, page: u32, lane: u32) {
    if (lane < TOKENS) {
        let page_size = 1u << params.page_shift;
        let offset = token & (page_size - 1u);
        let held = token < item.token_last;
        token_base[lane] = select(NOWHERE, page_state(page, page_size, offset, group), held);
        token_base[TOKENS + lane] = select(NOWHERE, page_rope(page, page_size, offset), held);
        scales_publish(select(NOWHERE, page_scales(page, page_size, offset), held));
    }
}

fn held_word(base: u32, word: u32) -> PoolWord {
    if (base == NOWHERE) {
        return PoolWord(0u);
    }
    return pool_word(base + word);
}

// A lane's i-th word of a plane: where the plane's width divides the lanes, its word is the same in every step.
fn plane_token(lane: u32, i: u32, width: u32) -> u32 {
    if (THREADS % width == 0u) {
        return lane / width + i * (THREADS / width);
    }
    return (lane + i * THREADS) / width;
}

fn plane_word(lane: u32, i: u32, width: u32) -> u32 {
    if (THREADS % width == 0u) {
        return lane % width;
    }
    return (lane + i * THREADS) % width;
}

// The lane's words of the tile whose bases are published; zero where there is no token.
fn fetch_tile(group: u32, lane: u32) {
    scales_fetch(group, lane);
    // unroll
    for (var i = 0u; i < STATE_FETCHES; i++) {
        let token = plane_token(lane, i, STATE_WORDS);
        if (token < TOKENS) {
            fetched[i] = held_word(token_base[token], plane_word(lane, i, STATE_WORDS));
        }
    }
    // unroll
    for (var i = 0u; i < ROPE_FETCHES; i++) {
        let token = plane_token(lane, i, ROPE_STRIDE);
        if (token < TOKENS) {
            fetched[STATE_FETCHES + i] = held_word(token_base[TOKENS + token], plane_word(lane, i, ROPE_STRIDE));
        }
    }
}

// Order of words in the tile: key, rope key, rest of the state; so key word i of a query is word i of the tile.
fn tile_word(state_word: u32) -> u32 {
    return select(state_word + ROPE_WORDS, state_word, state_word < KEY_WORDS);
}

fn store_tile(lane: u32) {
    scales_store(lane);
    // unroll
    for (var i = 0u; i < STATE_FETCHES; i++) {
        let token = plane_token(lane, i, STATE_WORDS);
        if (token < TOKENS) {
            tile[token * TILE_STRIDE + tile_word(plane_word(lane, i, STATE_WORDS))] = fetched[i];
        }
    }
    // unroll
    for (var i = 0u; i < ROPE_FETCHES; i++) {
        let token = plane_token(lane, i, ROPE_STRIDE);
        if (token < TOKENS) {
            tile[token * TILE_STRIDE + KEY_WORDS + plane_word(lane, i, ROPE_STRIDE)] = fetched[STATE_FETCHES + i];
        }
    }
}

// Partial scores of the lane's row block, key words and tokens.
fn score_tile(item: WorkItem, group: u32, lane: u32) {
    let split = lane % KEY_SPLITS;
    let row_block = lane / KEY_SPLITS % ROW_BLOCKS;
    let token_lane = lane / (KEY_SPLITS * ROW_BLOCKS);
    if (token_lane >= SCORE_LANES) {
        return;
    }
    var parts: array<Rows, TOKENS_PER_LANE>;
    // unroll
    for (var t = 0u; t < TOKENS_PER_LANE; t++) {
        parts[t] = Rows(0.0);
    }
    // unroll
    for (var i = 0u; i < WORDS_PER_SPLIT; i++) {
        let word = split + i * KEY_SPLITS;
        if (word < QUERY_WORDS) {
            query_load(item, group, row_block, word);
            // unroll
            for (var t = 0u; t < TOKENS_PER_LANE; t++) {
                let key = key_word(token_lane + t * SCORE_LANES, word);
                var products = score_start(parts[t]);
                // unroll
                for (var e = 0u; e < ELEMS_PER_WORD; e++) {
                    // Indexed in place: a function's index would not be a constant, and the array would leave the registers.
                    products = fma(q_slice[i * Q_WORD_STRIDE + e], Rows(key[e / 4u][e % 4u]), products);
                }
                parts[t] = score_join(parts[t], products, token_lane + t * SCORE_LANES, word);
            }
        }
    }
    // unroll
    for (var t = 0u; t < TOKENS_PER_LANE; t++) {
        let block_token = (token_lane + t * SCORE_LANES) * ROW_BLOCKS + row_block;
        split_scores[block_token * SPLIT_STRIDE + split] = parts[t];
    }
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

// The lane's scores of the tile that begins at token `first`; NEGATIVE where its rows do not see the token.
fn finish_scores(lane: u32, first: u32) -> Rows {
    let token = lane / ROW_BLOCKS;
    var wide = rows_widen(score_finish(reduce_splits(lane), token));
    // unroll
    for (var j = 0u; j < ROWS_PER_BLOCK; j++) {
        wide[j] = select(NEGATIVE, score_transform(wide[j]), sees(visible[j], first + token));
    }
    return rows_narrow(wide);
}

// Raises the maxima of the lane's rows to the tile's scores, and makes weights of its own.
fn weigh(lane: u32, first: u32, score: Rows) {
    let block = lane % ROW_BLOCKS;
    let token = lane / ROW_BLOCKS;
    var top = running_max;
    // unroll
    for (var t = 0u; t < TOKENS; t++) {
        top = max(top, scores[t * ROW_BLOCKS + block]);
    }
    var wide = rows_widen(softmax_weights(score, top));
    // unroll
    for (var j = 0u; j < ROWS_PER_BLOCK; j++) {
        wide[j] = select(0.0, wide[j], sees(visible[j], first + token));
    }
    weights[lane] = rows_narrow(wide);
    if (token == 0u) {
        rescale[block] = softmax_shrink(running_max, top);
        row_max[block] = top;
    }
    running_max = top;
}

// Adds the lane's tokens of the tile to its units.
fn add_values(lane: u32) {
    let token_split = token_split_of(lane);
    // unroll
    for (var u = 0u; u < UNITS_PER_LANE; u++) {
        let unit = first_unit_of(lane) + u * THREADS;
        if (unit < VALUE_UNITS && token_split < TOKEN_SPLITS) {
            let row_block = unit / VALUE_WORDS;
            let word = tile_word(VALUE_FIRST + unit % VALUE_WORDS);
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
                    let share = value_weight(weight, token);
                    // unroll
                    for (var e = 0u; e < ELEMS_PER_WORD; e++) {
                        let at = u * ELEMS_PER_WORD + e;
                        sums[at] = fma(share, Rows(value[e / 4u][e % 4u]), sums[at]);
                    }
                }
            }
        }
    }
}

// Adds up the token splits, in order, one element at a time through the tile's memory.
fn add_splits(lane: u32) {
    // unroll
    for (var e = 0u; e < ELEMS_PER_WORD_AND_TOTAL; e++) {
        if (e < ELEMS_PER_WORD) {
            tile_put(lane, rows_widen(sums[min(e, ELEMS_PER_WORD - 1u)]));
        } else {
            tile_put(lane, rows_widen(totals[0]));
        }
        workgroupBarrier();
        if (lane < VALUE_UNITS) {
            var sum = Rows(0.0);
            for (var s = 0u; s < TOKEN_SPLITS; s++) {
                sum += rows_narrow(tile_get(lane + s * VALUE_UNITS));
            }
            if (e < ELEMS_PER_WORD) {
                sums[min(e, ELEMS_PER_WORD - 1u)] = sum;
            } else {
                totals[0] = sum;
            }
        }
        workgroupBarrier();
    }
}

// Writes a row's word of the value: `u` the lane's unit, `j` the row of its block. Final, or a partial result if the tokens
// of the tile are split.
fn write_word(item: WorkItem, group: u32, unit: u32, u: u32, j: u32) {
    let row_block = unit / VALUE_WORDS;
    let first_dim = unit % VALUE_WORDS * ELEMS_PER_WORD;
    let tile_row = row_block * ROWS_PER_BLOCK + j;
    let row = item.row_first + tile_row;
    if (row >= item.q_len * HEADS_PER_GROUP) {
        return;
    }
    let split = item.partial_row != NO_PARTIAL;
    let finished = finish_row(item, group, row, rows_get(row_max[row_block], j), rows_get(totals[u], j));
    let partial = partial_of(item, group, tile_row);
    let final_row = query_row(item, group, row);
    // unroll
    for (var e = 0u; e < ELEMS_PER_WORD; e++) {
        if (first_dim + e < V_DIM) {
            let value = rows_get(sums[u * ELEMS_PER_WORD + e], j) * finished.factor;
            if (split) {
                partials[partial * V_DIM + first_dim + e] = value;
            } else {
                out[final_row * V_DIM + first_dim + e] = value;
            }
        }
    }
    if (first_dim == 0u) {
        write_lse(item, group, tile_row, finished.lse2);
    }
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = params.item_first + workgroup.z * grid.y + workgroup.y;
    if (index >= work_item_count(params.class_index)) {
        return;
    }
    let item = work_item(params.class_index, index);
    let group = workgroup.x;
    query_init(item, group, lane / KEY_SPLITS % ROW_BLOCKS, lane % KEY_SPLITS);

    // unroll
    for (var j = 0u; j < ROWS_PER_BLOCK; j++) {
        visible[j] = visible_to(item, item.row_first + lane % ROW_BLOCKS * ROWS_PER_BLOCK + j);
    }
    running_max = Rows(NEGATIVE);
    if (lane < ROW_BLOCKS) {
        row_max[lane] = running_max;
    }
    // unroll
    for (var u = 0u; u < UNITS_PER_LANE; u++) {
        totals[u] = Rows(0.0);
        // unroll
        for (var e = 0u; e < ELEMS_PER_WORD; e++) {
            sums[u * ELEMS_PER_WORD + e] = Rows(0.0);
        }
    }

    publish_base(item, group, item.token_first + lane, page_of(item, item.token_first + lane), lane);
    workgroupBarrier();
    fetch_tile(group, lane);
    var next_page = page_of(item, item.token_first + TOKENS + lane);
    workgroupBarrier();
    for (var first = item.token_first; first < item.token_last; first += TOKENS) {
        store_tile(lane);
        publish_base(item, group, first + TOKENS + lane, next_page, lane);
        workgroupBarrier();
        fetch_tile(group, lane);
        next_page = page_of(item, first + 2u * TOKENS + lane);
        score_tile(item, group, lane);
        workgroupBarrier();
        var score = Rows(0.0);
        if (lane < BLOCK_TOKENS) {
            score = finish_scores(lane, first);
            scores[lane] = score;
        }
        workgroupBarrier();
        if (lane < BLOCK_TOKENS) {
            weigh(lane, first, score);
        }
        workgroupBarrier();
        add_values(lane);
        workgroupBarrier();
    }
    if (TOKEN_SPLITS > 1u) {
        add_splits(lane);
    } else {
        // row_max of an item without tokens.
        workgroupBarrier();
    }
    // unroll
    for (var u = 0u; u < UNITS_PER_LANE; u++) {
        let unit = first_unit_of(lane) + u * THREADS;
        if (unit < VALUE_UNITS && token_split_of(lane) == 0u) {
            // unroll
            for (var j = 0u; j < ROWS_PER_BLOCK; j++) {
                write_word(item, group, unit, u, j);
            }
        }
    }
}
