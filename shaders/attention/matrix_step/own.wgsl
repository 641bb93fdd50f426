// A subgroup's scores are one tile of 16 rows and 16 tokens, and their softmax is its own: nobody is waited for between the first
// product and the weights. For KEY_SPLITS 1 and ROW_GROUPS = ROW_TILES. Slot: attention/matrix_step of decode_matrix.
// Constants: MORE_TOKEN_TILES. Parts: decode_matrix.

var<workgroup> weights: array<Word, WEIGHT_WORDS>;
// By token tile and row: largest score of a step (rare), at the end the sum of weights.
var<workgroup> row_share: array<f32, TOKEN_TILES * ROW_COUNT>;

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

    // First product: 16 rows and 16 tokens of the subgroup.
    let token_tile = subgroup % TOKEN_TILES;
    let row_group = subgroup / TOKEN_TILES;
    let key_at = token_tile * 16u * TILE_STRIDE;
    let own_scores = subgroup * 16u * SCORE_STRIDE;
    // Softmax: two lanes a row; of 16 tokens the first has 0..3 and 8..11.
    let half = subgroup_lane % 2u;
    let softmax_row = row_group * 16u + subgroup_lane / 2u;
    let softmax_score = own_scores + subgroup_lane / 2u * SCORE_STRIDE + half;
    let softmax_weight = softmax_row * WEIGHT_STRIDE + token_tile * 2u;
    let softmax_token = token_tile * 16u + 4u * half;
    let visible = visible_to(item, item.row_first + softmax_row);
    let clear = clear_tokens(visible);
    let row_unit = exp2(query_exponent(item, group, lane));
    if (lane % LANES_PER_ROW == 0u) {
        row_factor[lane / LANES_PER_ROW] = row_unit;
    }
    workgroupBarrier();
    let unit = row_factor[softmax_row];
    var queries: array<coop_mat16x16<f16, A>, QUERY_MATRICES>;
    // unroll
    for (var stage = 0u; stage < STAGES; stage++) {
        stage_queries(item, group, lane, stage * STAGE_STEPS);
        workgroupBarrier();
        // unroll
        for (var i = 0u; i < STAGE_STEPS; i++) {
            let at = row_group * 16u * STAGE_STRIDE + i * 2u;
            queries[stage * STAGE_STEPS + i] = coopLoadT<coop_mat16x16<f16, A>>(&tile[at][0], 2u * STAGE_STRIDE);
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

        var products = coop_mat16x16<f32, C>();
        // unroll
        for (var i = 0u; i < KEY_STEPS; i++) {
            let keys = coopLoad<coop_mat16x16<f16, B>>(&tile[key_at + i * 2u][0], 2u * TILE_STRIDE);
            products = coopMultiplyAdd(queries[i], keys, products);
        }
        coopStoreT(products, &scores[own_scores], SCORE_STRIDE);
        subgroupBarrier();

        var score: array<vec4<f32>, 2>;
        // unroll
        for (var v = 0u; v < 2u; v++) {
            let sum = scores[softmax_score + 2u * v] * unit;
            // unroll
            for (var c = 0u; c < 4u; c++) {
                score[v][c] = score_transform(sum[c]);
            }
        }
        if (first < clear.x || first + TOKENS > clear.y) {
            // unroll
            for (var v = 0u; v < 2u; v++) {
                // unroll
                for (var c = 0u; c < 4u; c++) {
                    score[v][c] = select(NEGATIVE, score[v][c], sees(visible, first + softmax_token + 8u * v + c));
                }
            }
        }
        var weight0 = exp2(score[0] - top);
        var weight1 = exp2(score[1] - top);
        weights[softmax_weight][half] = vec4<f16>(weight0);
        weights[softmax_weight + 1u][half] = vec4<f16>(weight1);
        var share4 = weight0 + weight1;
        if ((share4.x + share4.y) + (share4.z + share4.w) > LARGEST_SHARE) {
            atomicStore(&raised[0], 1u);
        }
        workgroupBarrier();
        // Uniform, since all read the same word, which is written again only behind the next barrier.
        if (atomicLoad(&raised[0]) != 0u) {
            let largest4 = max(score[0], score[1]);
            var largest = max(max(largest4.x, largest4.y), max(largest4.z, largest4.w));
            largest = max(largest, subgroupShuffleXor(largest, 1u));
            if (half == 0u) {
                row_share[token_tile * ROWS + softmax_row] = largest;
            }
            workgroupBarrier();
            if (lane == 0u) {
                atomicStore(&raised[0], 0u);
            }
            // unroll
            for (var t = 0u; t < TOKEN_TILES; t++) {
                largest = max(largest, row_share[t * ROWS + softmax_row]);
            }
            let next_top = max(top, largest);
            let shrink = softmax_shrink(top, next_top);
            top = next_top;
            total *= shrink;
            if (half == 0u && token_tile == 0u) {
                row_factor[softmax_row] = shrink;
            }
            weight0 = exp2(score[0] - top);
            weight1 = exp2(score[1] - top);
            weights[softmax_weight][half] = vec4<f16>(weight0);
            weights[softmax_weight + 1u][half] = vec4<f16>(weight1);
            share4 = weight0 + weight1;
            workgroupBarrier();
            // unroll
            for (var i = 0u; i < SUM_MATRICES; i++) {
                coopStoreT(sums[i], &scores[own_scores], 4u);
                workgroupBarrier();
                // A lane takes half of a row.
                let factor = row_factor[i / COLUMN_TILES * 16u + subgroup_lane / 2u];
                scores[own_scores + subgroup_lane * 2u] *= factor;
                scores[own_scores + subgroup_lane * 2u + 1u] *= factor;
                workgroupBarrier();
                sums[i] = coopLoadT<coop_mat16x16<f32, C>>(&scores[own_scores], 4u);
                workgroupBarrier();
            }
        }
        total += (share4.x + share4.y) + (share4.z + share4.w);
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
                let rows = coopLoadT<coop_mat16x16<f16, A>>(&weights[at_rows][0], 2u * WEIGHT_STRIDE);
                // unroll
                for (var c = 0u; c < COLUMN_TILES; c++) {
                    let at = r * COLUMN_TILES + c;
                    sums[at] = coopMultiplyAdd(rows, columns[c], sums[at]);
                }
            }
        }
        workgroupBarrier();
    }
    total += subgroupShuffleXor(total, 1u);
    if (half == 0u) {
        row_share[token_tile * ROWS + softmax_row] = total;
    }
    workgroupBarrier();
    if (half == 0u && token_tile == 0u) {
        // unroll
        for (var t = 0u; t < MORE_TOKEN_TILES; t++) {
            total += row_share[(t + 1u) * ROWS + softmax_row];
        }
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
        coopStoreT(sums[i], &scores[own_scores], 4u);
        workgroupBarrier();
        write_sums(item, group, own_scores, subgroup_lane, i / COLUMN_TILES, column_first + i % COLUMN_TILES);
        workgroupBarrier();
    }
}
