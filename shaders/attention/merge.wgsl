// Merge: combines the partial results of rows whose tokens were split, in a fixed order.
//
//   M = max_s LSE_s;  w_s = exp(LSE_s - M);  O = sum_s w_s O_s / sum_s w_s;  LSE = M + ln sum_s w_s
//
// (The merge of FlashDecoding and of FlashInfer's attention states.) A split without a visible token has LSE NEGATIVE
// and weight 0; a row with none at all becomes zeros and -inf. A sink takes its share here, once.
//
// A long sequence alone on a large GPU has hundreds of partials, and then what takes time is one load after the other:
// so SPLIT_LANES lanes share them, each takes several at once, and their results are merged at the end.
//
// Grid: x = (group * ROW_TILE + row of the tile) * V_BLOCKS + block of V_BLOCK value dimensions,
// y (and z, folded) = merge item of the class.
// Constants: GROUPS HEADS_PER_GROUP Q_HEADS V_DIM V_BLOCKS ROW_TILE V_LANES SPLIT_LANES, and AT_ONCE: partials that a lane
// loads before it uses the first. Parts: plan, softmax, sink/*.

struct Params {
    class_index: u32,
    item_first: u32, // of the dispatch, among the class's items
}

@group(0) @binding(0) var<uniform> params: Params;
// (GROUPS, partial rows, V_DIM) f32, then (GROUPS, partial rows) f32 LSE in log2 units
@group(0) @binding(1) var<storage, read> partials: array<f32>;
// (query tokens, Q_HEADS, V_DIM) f32
@group(0) @binding(2) var<storage, read_write> out: array<f32>;
// (query tokens, Q_HEADS) f32 bits, natural log
@group(0) @binding(4) var<storage, read_write> lse: array<u32>;

const V_BLOCK = 4u * V_LANES;

// Of each lane: weighted sums of its four dimensions; running maximum and total of its split lane.
var<workgroup> lane_sums: array<vec4<f32>, V_LANES * SPLIT_LANES>;
var<workgroup> lane_tops: array<f32, SPLIT_LANES>;
var<workgroup> lane_totals: array<f32, SPLIT_LANES>;

@compute @workgroup_size(V_LANES * SPLIT_LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = params.item_first + workgroup.z * grid.y + workgroup.y;
    let v_first = workgroup.x % V_BLOCKS * V_BLOCK + lane % V_LANES;
    let tile_row = workgroup.x / V_BLOCKS % ROW_TILE;
    let group = workgroup.x / (V_BLOCKS * ROW_TILE);
    if (index >= merge_item_count(params.class_index)) {
        return;
    }
    let item = merge_item(params.class_index, index);
    if (tile_row >= item.rows) {
        return;
    }
    let first = group * partial_rows() + item.partial_first + tile_row;
    let lse_first = GROUPS * partial_rows() * V_DIM;
    let split_lane = lane / V_LANES;

    var top = NEGATIVE;
    var total = 0.0;
    var sums = vec4<f32>(0.0);
    for (var s = split_lane; s < item.partial_count; s += SPLIT_LANES * AT_ONCE) {
        var part: array<f32, AT_ONCE>;
        var values: array<vec4<f32>, AT_ONCE>;
        // unroll
        for (var i = 0u; i < AT_ONCE; i++) {
            // Past the last one that one stands in, with weight 0.
            let at = first + min(s + i * SPLIT_LANES, item.partial_count - 1u) * ROW_TILE;
            part[i] = partials[lse_first + at];
            // unroll
            for (var k = 0u; k < 4u; k++) {
                values[i][k] = partials[at * V_DIM + min(v_first + k * V_LANES, V_DIM - 1u)];
            }
        }
        var next = top;
        // unroll
        for (var i = 0u; i < AT_ONCE; i++) {
            part[i] = select(NEGATIVE, part[i], s + i * SPLIT_LANES < item.partial_count);
            next = max(next, part[i]);
        }
        let shrink = softmax_shrink(top, next);
        total *= shrink;
        sums *= shrink;
        // unroll
        for (var i = 0u; i < AT_ONCE; i++) {
            let weight = softmax_share(part[i], next);
            total += weight;
            sums = fma(vec4<f32>(weight), values[i], sums);
        }
        top = next;
    }
    lane_sums[lane] = sums;
    if (lane % V_LANES == 0u) {
        lane_tops[split_lane] = top;
        lane_totals[split_lane] = total;
    }
    workgroupBarrier();
    if (split_lane != 0u) {
        return;
    }
    // unroll
    for (var k = 0u; k < SPLIT_LANES; k++) {
        top = max(top, lane_tops[k]);
    }
    sums = vec4<f32>(0.0);
    total = 0.0;
    // unroll
    for (var k = 0u; k < SPLIT_LANES; k++) {
        let weight = softmax_weight(lane_tops[k], top);
        total += weight * lane_totals[k];
        sums += weight * lane_sums[k * V_LANES + lane];
    }
    let row = item.row_first + tile_row;
    let head = group * HEADS_PER_GROUP + row % HEADS_PER_GROUP;
    let q_row = (item.q_token_first + row / HEADS_PER_GROUP) * Q_HEADS + head;
    let finished = softmax_finish(top, total, head);
    // unroll
    for (var k = 0u; k < 4u; k++) {
        let v = v_first + k * V_LANES;
        if (v < V_DIM) {
            out[q_row * V_DIM + v] = sums[k] * finished.factor;
        }
        if (v == 0u) {
            lse[q_row] = softmax_lse_bits(finished.lse2);
        }
    }
}
