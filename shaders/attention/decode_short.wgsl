// Decode for few items of few tokens: as `decode`. A device that has little to do waits for each workgroup, and a workgroup for its
// code, its loads and its barriers, one after the other; so there is little code, which is fetched, too, and all loads of a kind are
// under way at once. A workgroup takes ROWS rows of an item, others take its other rows.
//
//   1. queries and the tile's pages go to workgroup memory
//   2. scores: TEAM lanes share a token, THREADS / TEAM tokens at a time, the next ones loaded ahead
//   3. softmax: a lane has a token
//   4. values: VALUE_LANES lanes share a token, a word each, AT_ONCE tokens under way
//   5. the sums of lanes with the same word are added in workgroup memory
//
// Zadouri et al., arXiv 2505.21487, §3.3; online softmax over tiles of THREADS tokens.
// Grid: x = ROW_PARTS parts of each group; y (and z, folded past 65,535) = work item of the class.
// Constants: attention/kernels/short.rs, ShortShape. TEAM is never more than a subgroup, SUBGROUPS is as many as there may be.
// Parts: decode_io, plan, softmax, page, kv/element/*, attention/row_scales/*, attention/block/*, attention/score/*,
// attention/mask/*, attention/sink/*.

// (query tokens, Q_HEADS, Q_DIM) f32
@group(0) @binding(2) var<storage, read> q: array<f32>;

const TEAMS = THREADS / TEAM;
const SLICES = THREADS / VALUE_LANES;
// Words of the key and of the rope key, up to whole steps of a team.
const KEY_STRIDE = KEY_SLOTS * TEAM;
const ROPE_STRIDE = ROPE_SLOTS * TEAM;
const ROPE_FIRST = KEY_STRIDE * ELEMS_PER_WORD;
const ROPE_LAST = max(ROPE_WORDS, 1u) - 1u;

// The rows' queries, element after element of the words, so that lanes side by side read side by side; then the slices' sums.
var<workgroup> area: array<Rows, AREA>;
// Scores of the tile's tokens, then their weights.
var<workgroup> weights: array<Rows, THREADS>;
var<workgroup> pages: array<u32, THREADS>;
var<workgroup> stage: array<Rows, SUBGROUPS>;
// The lane's word of the value, element by element.
var<private> sums: array<Rows, ELEMS_PER_WORD>;

// An element of the rows' queries, scaled; 0 for rows past the last.
fn query_element(item: WorkItem, group: u32, dim: u32) -> Rows {
    var wide = vec4<f32>(0.0);
    // unroll
    for (var j = 0u; j < ROWS; j++) {
        let row = item.row_first + j;
        if (row < item.q_len * HEADS_PER_GROUP) {
            wide[j] = q[query_row(item, group, row) * Q_DIM + dim] * params.scale_log2;
        }
    }
    return rows_narrow(wide);
}

fn load_query(item: WorkItem, group: u32, thread: u32) {
    for (var i = thread; i < ROPE_FIRST; i += THREADS) {
        var value = Rows(0.0);
        if (i < NOPE_DIM) {
            value = query_element(item, group, i);
        }
        area[i % ELEMS_PER_WORD * KEY_STRIDE + i / ELEMS_PER_WORD] = value;
    }
    for (var i = thread; i < ROPE_STRIDE * ROPE_ELEMS; i += THREADS) {
        var value = Rows(0.0);
        if (NOPE_DIM + i < Q_DIM) {
            value = query_element(item, group, NOPE_DIM + i);
        }
        area[ROPE_FIRST + i % ROPE_ELEMS * ROPE_STRIDE + i / ROPE_ELEMS] = value;
    }
}

// Where a token of the tile lies: first word of its state, rope key and scales. `at` counts from the tile's first.
fn token_base(group: u32, first: u32, at: u32) -> vec3<u32> {
    let page_size = 1u << params.page_shift;
    let offset = (first + at) & (page_size - 1u);
    let page = pages[at];
    return vec3<u32>(
        page_state(page, page_size, offset, group),
        page_rope(page, page_size, offset),
        page_scales(page, page_size, offset),
    );
}

struct Fetched {
    words: array<PoolWord, SLOTS>,
    scales: Scales,
}

// The lane's words of a token of the tile.
fn fetch(group: u32, first: u32, at: u32, lane: u32) -> Fetched {
    let base = token_base(group, first, at);
    var fetched: Fetched;
    // unroll
    for (var i = 0u; i < KEY_SLOTS; i++) {
        // A lane past the last word repeats it: its query is 0.
        fetched.words[i] = pool_word(base.x + min(lane + i * TEAM, KEY_WORDS - 1u));
    }
    // unroll
    for (var i = 0u; i < ROPE_SLOTS; i++) {
        fetched.words[KEY_SLOTS + i] = pool_word(base.y + min(lane + i * TEAM, ROPE_LAST));
    }
    fetched.scales = token_scales(base.z, group);
    return fetched;
}

// The scores of a token, in every lane of its team.
fn score(fetched: Fetched, lane: u32) -> Rows {
    var sum = Rows(0.0);
    // unroll
    for (var i = 0u; i < KEY_SLOTS; i++) {
        let key = unpack_word(fetched.words[i]);
        // unroll
        for (var e = 0u; e < ELEMS_PER_WORD; e++) {
            sum = fma(area[e * KEY_STRIDE + lane + i * TEAM], Rows(key[e / 4u][e % 4u]), sum);
        }
    }
    sum = scale_key(sum, fetched.scales);
    // unroll
    for (var i = 0u; i < ROPE_SLOTS; i++) {
        let key = unpack_rope_word(fetched.words[KEY_SLOTS + i]);
        // unroll
        for (var e = 0u; e < ROPE_ELEMS; e++) {
            sum = fma(area[ROPE_FIRST + e * ROPE_STRIDE + lane + i * TEAM], Rows(key[e / 4u][e % 4u]), sum);
        }
    }
    // unroll
    for (var j = 0u; j < TEAM_LOG2; j++) {
        sum += subgroupShuffleXor(sum, 1u << j);
    }
    return sum;
}

// Scores of the tile's `count` tokens, masked.
fn score_tile(item: WorkItem, group: u32, first: u32, count: u32, thread: u32) {
    let lane = thread % TEAM;
    let team = thread / TEAM;
    var fetched = fetch(group, first, min(team, count - 1u), lane);
    for (var done = 0u; done < count; done += TEAMS) {
        let at = done + team;
        let next = fetch(group, first, min(at + TEAMS, count - 1u), lane);
        let sum = score(fetched, lane);
        if (lane == 0u && at < count) {
            var wide = vec4<f32>(NEGATIVE);
            // unroll
            for (var j = 0u; j < ROWS; j++) {
                if (sees(visible_to(item, item.row_first + j), first + at)) {
                    wide[j] = score_transform(rows_get(sum, j));
                }
            }
            weights[at] = rows_narrow(wide);
        }
        fetched = next;
    }
}

// Adds the values of the tile's `count` tokens.
fn add_values(group: u32, first: u32, count: u32, thread: u32) {
    let word = VALUE_FIRST + min(thread % VALUE_LANES, VALUE_WORDS - 1u);
    for (var t = thread / VALUE_LANES; t < count; t += SLICES * AT_ONCE) {
        var words: array<PoolWord, AT_ONCE>;
        // unroll
        for (var k = 0u; k < AT_ONCE; k++) {
            words[k] = pool_word(token_base(group, first, min(t + k * SLICES, count - 1u)).x + word);
        }
        // unroll
        for (var k = 0u; k < AT_ONCE; k++) {
            let at = t + k * SLICES;
            let weight = select(Rows(0.0), weights[min(at, count - 1u)], at < count);
            let value = unpack_word(words[k]);
            // unroll
            for (var e = 0u; e < ELEMS_PER_WORD; e++) {
                sums[e] = fma(weight, Rows(value[e / 4u][e % 4u]), sums[e]);
            }
        }
    }
}

// Adds the sums of the slices, four elements at a time; those of the first slice are then whole.
fn join_slices(thread: u32) {
    // unroll
    for (var p = 0u; p < ELEM_QUADS; p++) {
        for (var half = SLICES / 2u; half > 0u; half /= 2u) {
            workgroupBarrier();
            let slice = thread / VALUE_LANES;
            if (slice >= half && slice < 2u * half) {
                // unroll
                for (var e = 0u; e < 4u; e++) {
                    area[e * (THREADS / 2u) + thread - half * VALUE_LANES] = sums[4u * p + e];
                }
            }
            workgroupBarrier();
            if (slice < half) {
                // unroll
                for (var e = 0u; e < 4u; e++) {
                    sums[4u * p + e] += area[e * (THREADS / 2u) + thread];
                }
            }
        }
    }
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) subgroup_width: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
    @builtin(num_subgroups) subgroups: u32,
) {
    let index = params.item_first + workgroup.z * grid.y + workgroup.y;
    if (index >= work_item_count(params.class_index)) {
        return;
    }
    var item = work_item(params.class_index, index);
    let group = workgroup.x / ROW_PARTS;
    let row_first = workgroup.x % ROW_PARTS * ROWS;
    item.row_first += row_first;
    if (item.row_first >= item.q_len * HEADS_PER_GROUP) {
        return;
    }
    if (item.partial_row != NO_PARTIAL) {
        item.partial_row += row_first;
    }
    let thread = subgroup * subgroup_width + subgroup_lane;
    load_query(item, group, thread);
    var row_max = Rows(FLOOR);
    var total = Rows(0.0); // of the weights of the lane's own tokens
    for (var first = item.token_first; first < item.token_last; first += THREADS) {
        let count = min(THREADS, item.token_last - first);
        if (thread < count) {
            pages[thread] = page_of(item, first + thread);
        }
        workgroupBarrier();
        score_tile(item, group, first, count, thread);
        workgroupBarrier();
        let own = min(thread, count - 1u);
        let scores = select(Rows(NEGATIVE), weights[own], thread < count);
        let best = subgroupMax(scores);
        if (subgroup_lane == 0u) {
            stage[subgroup] = best;
        }
        workgroupBarrier();
        var top = row_max;
        for (var k = 0u; k < subgroups; k++) {
            top = max(top, stage[k]);
        }
        let shrink = softmax_shrink(row_max, top);
        row_max = top;
        let weight = softmax_weights(scores, top);
        total = total * shrink + weight;
        if (thread < count) {
            weights[thread] = scale_value(weight, token_scales(token_base(group, first, own).z, group));
        }
        // unroll
        for (var e = 0u; e < ELEMS_PER_WORD; e++) {
            sums[e] *= shrink;
        }
        workgroupBarrier();
        add_values(group, first, count, thread);
        workgroupBarrier();
    }
    let part = subgroupAdd(total);
    if (subgroup_lane == 0u) {
        stage[subgroup] = part;
    }
    join_slices(thread);
    workgroupBarrier();
    total = Rows(0.0);
    for (var k = 0u; k < subgroups; k++) {
        total += stage[k];
    }
    // unroll
    for (var j = 0u; j < ROWS; j++) {
        let row = item.row_first + j;
        if (row < item.q_len * HEADS_PER_GROUP) {
            let finished = finish_row(item, group, row, rows_get(row_max, j), rows_get(total, j));
            if (thread < VALUE_WORDS) {
                var to = query_row(item, group, row) * V_DIM;
                if (item.partial_row != NO_PARTIAL) {
                    to = partial_of(item, group, j) * V_DIM;
                }
                // unroll
                for (var e = 0u; e < ELEMS_PER_WORD; e++) {
                    let dim = thread * ELEMS_PER_WORD + e;
                    let value = rows_get(sums[e], j) * finished.factor;
                    if (dim < V_DIM && item.partial_row != NO_PARTIAL) {
                        partials[to + dim] = value;
                    } else if (dim < V_DIM) {
                        out[to + dim] = value;
                    }
                }
            }
            if (thread == 0u) {
                write_lse(item, group, j, finished.lse2);
            }
        }
    }
}
