// Decode for few query rows: as `decode`, by teams of lanes that each hold a token's state in registers.
//
//   S[r][t] = scale * ( q_nope[r] . state[t][..NOPE_DIM] + q_rope[r] . rope_key[t] )
//   O[r]    = sum_t softmax(S[r])[t] * state[t][v_offset ..],   LSE[r] = ln sum_t exp(S[r][t])
//
// Zadouri et al., arXiv 2505.21487, §3.3; online softmax as in FlashAttention. All rows of a tile are in every lane of a
// team: lane l of TEAM holds every TEAM-th word of a state, of the queries and of the sums. Scores are added up by
// shuffles inside the team, so there is no workgroup memory and no barrier: at each exchange a lane passes on half of the
// scores that it has parts of, so that in the end each has OWNED of the step's SCORES whole, and the softmax of a score is
// worked out by one lane, not by all. A state that is key and value is loaded and
// unpacked once. Each team takes every TEAMS-th token, TOKENS of them a step, and the loads of the next step are under
// way during this one. At the end the teams join their sums by shuffles. The teams that fit a subgroup are a squad. Where there
// are few items for the device, SQUADS of them share a group's tokens, step by step, and join in workgroup memory.
//
// Grid: x = block of GROUPS_PER_WORKGROUP groups, whose loads of the shared rope key meet in the multiprocessor's cache;
// y (and z, folded past 65,535) = work item of the class.
// Constants: attention/kernels/rows.rs, RowShape. A squad, TEAMS * TEAM lanes, is never more than a subgroup.
// Parts: decode_io, plan, softmax, page, kv/element/*, attention/row_scales/*, attention/block/*, score_shares,
// attention/pages/*, attention/score/*, attention/mask/*, attention/sink/*,
// attention/row_end/*.

// (query tokens, Q_HEADS, Q_DIM) f32
@group(0) @binding(2) var<storage, read> q: array<f32>;

// Tokens of all squads of a group in one step.
const ROUND = SQUADS * STEP;
const ROPE_LAST = max(ROPE_WORDS, 1u) - 1u;

// The lane's query words: KEY_SLOTS of the key without position, then ROPE_SLOTS of the rope key.
var<private> query: array<Rows, QUERY_ELEMS>;
// Two steps' words, turn about: per token STATE_SLOTS words of the state, then ROPE_SLOTS of the rope key.
var<private> words: array<PoolWord, FETCHED_WORDS>;
// And their scales.
var<private> scales: array<Scales, 2u * TOKENS>;
var<private> sums: array<Rows, SUM_ELEMS>;
var<private> row_max: array<Rows, ROW_BLOCKS>;
// Of the lane's own scores: their rows' maxima, and the totals of their weights.
var<private> own_max: array<f32, OWNED>;
var<private> own_total: array<f32, OWNED>;
// Each row's total, once the tokens are done.
var<private> totals: array<Rows, ROW_BLOCKS>;

// The element of each row's query, scaled; 0 for rows past the last and for dimensions past the key.
fn query_element(item: WorkItem, group: u32, row_block: u32, dim: u32, held: bool) -> Rows {
    var wide = vec4<f32>(0.0);
    // unroll
    for (var j = 0u; j < ROWS_PER_BLOCK; j++) {
        let row = item.row_first + row_block * ROWS_PER_BLOCK + j;
        if (held && row < item.q_len * HEADS_PER_GROUP) {
            wide[j] = q[query_row(item, group, row) * Q_DIM + dim] * params.scale_log2;
        }
    }
    return rows_narrow(wide);
}

fn load_query(item: WorkItem, group: u32, lane: u32) {
    // unroll
    for (var i = 0u; i < KEY_SLOTS; i++) {
        // unroll
        for (var e = 0u; e < ELEMS_PER_WORD; e++) {
            let dim = (lane + i * TEAM) * ELEMS_PER_WORD + e;
            // unroll
            for (var b = 0u; b < ROW_BLOCKS; b++) {
                query[(i * ELEMS_PER_WORD + e) * ROW_BLOCKS + b] = query_element(item, group, b, dim, dim < NOPE_DIM);
            }
        }
    }
    // unroll
    for (var i = 0u; i < ROPE_SLOTS; i++) {
        // unroll
        for (var e = 0u; e < ROPE_ELEMS; e++) {
            let dim = NOPE_DIM + (lane + i * TEAM) * ROPE_ELEMS + e;
            // unroll
            for (var b = 0u; b < ROW_BLOCKS; b++) {
                query[(KEY_SLOTS * ELEMS_PER_WORD + i * ROPE_ELEMS + e) * ROW_BLOCKS + b] =
                    query_element(item, group, b, dim, dim < Q_DIM);
            }
        }
    }
}

// The tokens that every row sees; outside them the rows are masked one by one.
fn clear_of(item: WorkItem) -> vec2<u32> {
    var clear = vec2<u32>(0u, item.token_last);
    // unroll
    for (var r = 0u; r < ROWS; r++) {
        if (item.row_first + r < item.q_len * HEADS_PER_GROUP) {
            let seen = clear_tokens(visible_to(item, item.row_first + r));
            clear = vec2<u32>(max(clear.x, seen.x), min(clear.y, seen.y));
        }
    }
    return clear;
}

// Begins to load the lane's words of the step of `first`, whose pages are known, into one half, and looks up the next pages.
fn fetch_step(item: WorkItem, group: u32, lane: u32, team: u32, first: u32, half: u32) {
    let bases = step_bases(item, group, first, team);
    // unroll
    for (var u = 0u; u < TOKENS; u++) {
        let base = token_base(item, group, first, team, bases, u);
        // unroll
        for (var i = 0u; i < STATE_SLOTS; i++) {
            // A lane past the last word repeats it: its query is 0 and its sum is not written.
            words[(half * TOKENS + u) * SLOTS + i] = pool_word(base.x + min(lane + i * TEAM, STATE_WORDS - 1u));
        }
        // unroll
        for (var i = 0u; i < ROPE_SLOTS; i++) {
            words[(half * TOKENS + u) * SLOTS + STATE_SLOTS + i] = pool_word(base.y + min(lane + i * TEAM, ROPE_LAST));
        }
        scales[half * TOKENS + u] = token_scales(base.z, group);
    }
    fetch_pages(item, first + ROUND, team);
}

// The lane's parts of the scores of one half's tokens.
fn score_step(half: u32) -> array<Rows, SCORE_BLOCKS> {
    var scores: array<Rows, SCORE_BLOCKS>;
    // unroll
    for (var s = 0u; s < SCORE_BLOCKS; s++) {
        scores[s] = Rows(0.0);
    }
    // unroll
    for (var u = 0u; u < TOKENS; u++) {
        // unroll
        for (var i = 0u; i < KEY_SLOTS; i++) {
            let key = unpack_word(words[(half * TOKENS + u) * SLOTS + i]);
            // unroll
            for (var e = 0u; e < ELEMS_PER_WORD; e++) {
                // unroll
                for (var b = 0u; b < ROW_BLOCKS; b++) {
                    scores[u * ROW_BLOCKS + b] = fma(
                        query[(i * ELEMS_PER_WORD + e) * ROW_BLOCKS + b],
                        Rows(key[e / 4u][e % 4u]),
                        scores[u * ROW_BLOCKS + b],
                    );
                }
            }
        }
        // unroll
        for (var b = 0u; b < ROW_BLOCKS; b++) {
            scores[u * ROW_BLOCKS + b] = scale_key(scores[u * ROW_BLOCKS + b], scales[half * TOKENS + u]);
        }
        // unroll
        for (var i = 0u; i < ROPE_SLOTS; i++) {
            let key = unpack_rope_word(words[(half * TOKENS + u) * SLOTS + STATE_SLOTS + i]);
            // unroll
            for (var e = 0u; e < ROPE_ELEMS; e++) {
                // unroll
                for (var b = 0u; b < ROW_BLOCKS; b++) {
                    scores[u * ROW_BLOCKS + b] = fma(
                        query[(KEY_SLOTS * ELEMS_PER_WORD + i * ROPE_ELEMS + e) * ROW_BLOCKS + b],
                        Rows(key[e / 4u][e % 4u]),
                        scores[u * ROW_BLOCKS + b],
                    );
                }
            }
        }
    }
    return scores;
}

// Raises the rows' maxima to the step's scores, and shrinks what was summed against the old ones.
fn raise(own: array<f32, OWNED>, own_row: array<u32, OWNED>, first_lane: u32) {
    let all = gather(own, first_lane);
    // unroll
    for (var b = 0u; b < ROW_BLOCKS; b++) {
        var top = row_max[b];
        // unroll
        for (var u = 0u; u < TOKENS; u++) {
            top = max(top, all[u * ROW_BLOCKS + b]);
        }
        let factor = softmax_shrink(row_max[b], top);
        row_max[b] = top;
        // unroll
        for (var i = 0u; i < SUM_WIDTH; i++) {
            sums[i * ROW_BLOCKS + b] *= factor;
        }
        // unroll
        for (var k = 0u; k < ROWS_PER_BLOCK; k++) {
            // unroll
            for (var i = 0u; i < OWNED; i++) {
                if (own_row[i] == b * ROWS_PER_BLOCK + k) {
                    own_max[i] = rows_get(top, k);
                    own_total[i] *= rows_get(factor, k);
                }
            }
        }
    }
}

// Adds one half's tokens to the sums.
fn add_values(weights: array<Rows, SCORE_BLOCKS>, half: u32) {
    // unroll
    for (var u = 0u; u < TOKENS; u++) {
        // unroll
        for (var i = 0u; i < VALUE_SLOTS; i++) {
            let value = unpack_word(words[(half * TOKENS + u) * SLOTS + VALUE_SLOT_FIRST + i]);
            // unroll
            for (var e = 0u; e < ELEMS_PER_WORD; e++) {
                // unroll
                for (var b = 0u; b < ROW_BLOCKS; b++) {
                    let at = (i * ELEMS_PER_WORD + e) * ROW_BLOCKS + b;
                    sums[at] = fma(weights[u * ROW_BLOCKS + b], Rows(value[e / 4u][e % 4u]), sums[at]);
                }
            }
        }
    }
}

// Each row's total, in every lane of the team: of scores that several lanes have the first one's.
fn add_totals(own_row: array<u32, OWNED>, lane: u32) {
    // unroll
    for (var b = 0u; b < ROW_BLOCKS; b++) {
        var wide = vec4<f32>(0.0);
        // unroll
        for (var k = 0u; k < ROWS_PER_BLOCK; k++) {
            // unroll
            for (var i = 0u; i < OWNED; i++) {
                wide[k] += select(0.0, own_total[i], own_row[i] == b * ROWS_PER_BLOCK + k && (lane >> HALVINGS) == 0u);
            }
        }
        // unroll
        for (var j = 0u; j < TEAM_LOG2; j++) {
            wide += subgroupShuffleXor(wide, 1u << j);
        }
        totals[b] = rows_narrow(wide);
    }
}

// Joins the teams, in the same order on every device of one subgroup size.
fn join_teams() {
    // unroll
    for (var j = 0u; j < TEAMS_LOG2; j++) {
        // unroll
        for (var b = 0u; b < ROW_BLOCKS; b++) {
            let top = max(row_max[b], subgroupShuffleXor(row_max[b], TEAM << j));
            let factor = softmax_shrink(row_max[b], top);
            row_max[b] = top;
            let total = totals[b] * factor;
            totals[b] = total + subgroupShuffleXor(total, TEAM << j);
            // unroll
            for (var i = 0u; i < SUM_WIDTH; i++) {
                let sum = sums[i * ROW_BLOCKS + b] * factor;
                sums[i * ROW_BLOCKS + b] = sum + subgroupShuffleXor(sum, TEAM << j);
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
) {
    let index = params.item_first + workgroup.z * grid.y + workgroup.y;
    if (index >= work_item_count(params.class_index)) {
        return;
    }
    let item = work_item(params.class_index, index);
    let thread = subgroup * subgroup_width + subgroup_lane;
    let lane = thread % TEAM;
    let team = thread / TEAM % TEAMS;
    let squad = thread / (TEAM * TEAMS) % SQUADS;
    let group = workgroup.x * GROUPS_PER_WORKGROUP + thread / (TEAM * TEAMS * SQUADS);

    load_query(item, group, lane);
    let clear = clear_of(item);
    // unroll
    for (var b = 0u; b < ROW_BLOCKS; b++) {
        row_max[b] = Rows(FLOOR);
    }
    // unroll
    for (var i = 0u; i < SUM_ELEMS; i++) {
        sums[i] = Rows(0.0);
    }
    // Of the lane's own scores: row of the tile, and token of the step less the team's first.
    let first_lane = subgroup_lane - lane;
    var own_row: array<u32, OWNED>;
    var own_token: array<u32, OWNED>;
    // unroll
    for (var i = 0u; i < OWNED; i++) {
        let score = own_first(lane) + i;
        own_row[i] = score % ROWS;
        own_token[i] = score / ROWS * TEAMS;
        own_max[i] = FLOOR;
        own_total[i] = 0.0;
    }

    if (item.token_first < item.token_last) {
        fetch_pages(item, item.token_first + squad * STEP, team);
        fetch_step(item, group, lane, team, item.token_first + squad * STEP, 0u);
    }
    // All squads turn as often, those that have no token left masked.
    for (var first = item.token_first; first < item.token_last; first += 2u * ROUND) {
        // unroll
        for (var half = 0u; half < 2u; half++) {
            let now = first + half * ROUND + squad * STEP;
            fetch_step(item, group, lane, team, now + ROUND, 1u - half);

            var own = share_out(score_step(half), lane);
            // The last tokens, which not every row sees, and with a window the first, are masked; the same for all lanes.
            let masked = now < clear.x || now + STEP > clear.y;
            var exceeds = false;
            // unroll
            for (var i = 0u; i < OWNED; i++) {
                own[i] = score_transform(own[i]);
                if (masked) {
                    let token = now + team + own_token[i];
                    let visible = visible_to(item, item.row_first + own_row[i]);
                    own[i] = select(NEGATIVE, own[i], token < item.token_last && sees(visible, token));
                }
                exceeds = exceeds || softmax_exceeds(own[i], own_max[i]);
            }
            if (HALVINGS > 0u) {
                exceeds = subgroupAny(exceeds);
            }
            if (exceeds) {
                raise(own, own_row, first_lane);
            }
            // unroll
            for (var i = 0u; i < OWNED; i++) {
                own[i] = softmax_weight(own[i], own_max[i]);
                own_total[i] += own[i];
            }
            var weights = gather(own, first_lane);
            // unroll
            for (var s = 0u; s < SCORE_BLOCKS; s++) {
                weights[s] = scale_value(weights[s], scales[half * TOKENS + s / ROW_BLOCKS]);
            }
            add_values(weights, half);
        }
    }

    add_totals(own_row, lane);
    join_teams();
    finish_tile(item, group, lane, team, thread);
}
