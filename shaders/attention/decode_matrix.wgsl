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
//   3. softmax; weights to workgroup memory
//   4. second product
// `main` is the slot attention/matrix_step: who takes which scores in 3. A step is written out there, the softmax too: with
// functions in their place the driver's code is slower, whatever they hold (GLA-2 of 64 rows on an H200: 409 us, 515 to 523 with
// parts of the step in functions).
// The elements of a matrix cannot be reached, so scores and weights go through workgroup memory, and O must be rescaled
// through it: which is rare, since weights are taken against a reference maximum that is raised only when a weight exceeds it
// by 2^SLACK. So a step takes its weights as if none did, and begins them again if one did.
//
// Grid: x = group, y (and z, folded past 65,535) = work item of the class.
// Constants: attention/kernels/matrix.rs, MatrixShape. Parts: decode_io, plan, softmax, page, attention/pool/ordered, half_word, and
// one each of attention/score/*, attention/mask/*, attention/sink/*, attention/matrix_step/*.

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
// A lane's sum of weights from which on one of them may be past 2^SLACK. Halves hold 2^16.
const LARGEST_SHARE = 256.0;

// All of these begin and end at multiples of 16 bytes, as matrices must: drivers align arrays no more than their elements.
// TOKENS rows of key, rope key, rest of the state; before the first step, rows of queries.
var<workgroup> tile: array<Word, TILE_WORD_COUNT>;
// Of the first product; also 16 x 16 for each subgroup when sums are rescaled or written.
var<workgroup> scores: array<vec4<f32>, SCORE_VEC4S>;
var<workgroup> row_factor: array<f32, ROW_COUNT>;
// First word: whether a lane's sum of weights is past LARGEST_SHARE in this step.
var<workgroup> raised: array<atomic<u32>, 4>;
// First word: items of the class.
var<workgroup> items: vec4<u32>;

var<private> fetched: array<vec4<u32>, FETCHES>;

// What a lane's fetches have in common.
struct Lane {
    token: u32, // of the step
    page_token: u32, // whose page is looked up: the step's first where a page holds whole steps
    state: u32, // the lane's first word of the group's state of a page's first token
    rope: u32, // and of its rope key
}

fn fetching_lane(group: u32, lane: u32) -> Lane {
    let page_size = 1u << params.page_shift;
    let token = lane / LANES_PER_TOKEN;
    let sub = lane % LANES_PER_TOKEN;
    return Lane(
        token,
        select(token, 0u, page_size >= TOKENS),
        group * page_size * STATE_WORDS + min(sub, STATE_WORDS - 1u),
        GROUPS * STATE_WORDS * page_size + min(sub, max(ROPE_WORDS, 1u) - 1u),
    );
}

// First word of the page of the lane's token of a step that begins at `step`.
fn step_page(item: WorkItem, own: Lane, step: u32) -> u32 {
    return page_first(page_of(item, step + own.page_token), (1u << params.page_shift) * TOKEN_WORDS);
}

// The lane's words of its token of a step, whose page begins at word `page_at`. Words past the state's or rope key's last are
// whatever follows, and are not stored.
fn fetch(item: WorkItem, own: Lane, step: u32, page_at: u32) {
    let offset = min(step + own.token, item.token_last - 1u) & ((1u << params.page_shift) - 1u);
    let state = page_at + own.state + offset * STATE_WORDS;
    let rope = page_at + own.rope + offset * ROPE_WORDS;
    // unroll
    for (var i = 0u; i < STATE_FETCHES; i++) {
        fetched[i] = pool_word(state + i * LANES_PER_TOKEN);
    }
    // unroll
    for (var i = 0u; i < ROPE_FETCHES; i++) {
        fetched[STATE_FETCHES + i] = pool_word(rope + i * LANES_PER_TOKEN);
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
