// Scores of a row come from several subgroups, and their softmax is shared out anew among all lanes. Slot: attention/matrix_step
// of decode_matrix. Constants: GROUP_TILES TOKENS_PER_LANE LANES_PER_ROW_LOG2. Parts: decode_matrix.

// As wide as a Word, and for the same reason.
alias Weights = array<f16, 8>;
var<workgroup> weights: array<Weights, WEIGHT_WORDS>;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
) {
    let lane = subgroup * 32u + subgroup_lane;
    if (lane == 0u) {
        items = vec4<u32>(plan[5u + 4u * params.class_index]);
        atomicStore(&raised[0], 0u);
    }
    // The same for all by its kind, which matrices need.
    let item_count = workgroupUniformLoad(&items).x;
    let index = params.item_first + workgroup.z * grid.y + workgroup.y;
    if (index >= item_count) {
        return;
    }
    let item = work_item(params.class_index, index);
    let group = workgroup.x;

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
    let clear = clear_tokens(visible);
    let unit = exp2(query_exponent(item, group, lane));
    if (softmax_lane == 0u) {
        row_factor[softmax_row] = unit;
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

    let fetching = fetching_lane(group, lane);
    var next_page = 0u;
    if (item.token_first < item.token_last) {
        fetch(item, fetching, item.token_first, step_page(item, fetching, item.token_first));
        next_page = step_page(item, fetching, item.token_first + TOKENS);
    }
    for (var first = item.token_first; first < item.token_last; first += TOKENS) {
        store(lane);
        workgroupBarrier();
        fetch(item, fetching, first + TOKENS, next_page);
        next_page = step_page(item, fetching, first + 2u * TOKENS);

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
        // unroll
        for (var t = 0u; t < TOKENS_PER_LANE; t++) {
            let token = softmax_lane + t * LANES_PER_ROW;
            var sum = 0.0;
            // unroll
            for (var k = 0u; k < KEY_SPLITS; k++) {
                sum += scores[(k * ROWS + softmax_row) * SCORE_STRIDE + token / 4u][token % 4u];
            }
            score[t] = score_transform(sum * unit);
        }
        if (first < clear.x || first + TOKENS > clear.y) {
            // unroll
            for (var t = 0u; t < TOKENS_PER_LANE; t++) {
                score[t] = select(NEGATIVE, score[t], sees(visible, first + softmax_lane + t * LANES_PER_ROW));
            }
        }
        var share = 0.0;
        // unroll
        for (var t = 0u; t < TOKENS_PER_LANE; t++) {
            let weight = softmax_weight(score[t], top);
            share += weight;
            let token = softmax_lane + t * LANES_PER_ROW;
            weights[softmax_row * WEIGHT_STRIDE + token / 8u][token % 8u] = f16(weight);
        }
        if (share > LARGEST_SHARE) {
            atomicStore(&raised[0], 1u);
        }
        workgroupBarrier();
        // Uniform, since all read the same word, which is written again only behind the next barrier.
        if (atomicLoad(&raised[0]) != 0u) {
            var largest = score[0];
            // unroll
            for (var t = 0u; t < TOKENS_PER_LANE; t++) {
                largest = max(largest, score[t]);
            }
            // unroll
            for (var j = 0u; j < LANES_PER_ROW_LOG2; j++) {
                largest = max(largest, subgroupShuffleXor(largest, 1u << j));
            }
            let next_top = max(top, largest);
            let shrink = softmax_shrink(top, next_top);
            top = next_top;
            total *= shrink;
            if (softmax_lane == 0u) {
                row_factor[softmax_row] = shrink;
            }
            share = 0.0;
            // unroll
            for (var t = 0u; t < TOKENS_PER_LANE; t++) {
                let weight = softmax_weight(score[t], top);
                share += weight;
                let token = softmax_lane + t * LANES_PER_ROW;
                weights[softmax_row * WEIGHT_STRIDE + token / 8u][token % 8u] = f16(weight);
            }
            workgroupBarrier();
            if (lane == 0u) {
                atomicStore(&raised[0], 0u);
            }
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
        total += share;
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
