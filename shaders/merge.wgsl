// Merge: combines the partial results of rows whose tokens were split, in ascending token order.
//
//   M = max_s LSE_s;  w_s = exp(LSE_s - M);  O = sum_s w_s O_s / sum_s w_s;  LSE = M + ln sum_s w_s
//
// (The merge of FlashDecoding and of FlashInfer's attention states.) A split without a visible token has
// LSE NEGATIVE and weight 0; a row with none at all becomes zeros and -inf. A sink takes its share here, once.
//
// Grid: x = group * ROW_TILE + row of the tile, y (and z, folded) = merge item of the class; lanes over V_DIM.
// Constants: GROUPS HEADS_PER_GROUP Q_HEADS V_DIM ROW_TILE. Parts: plan, softmax, sink_*.

struct Params {
    class_index: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// (GROUPS, partial rows, V_DIM) f32, then (GROUPS, partial rows) f32 LSE in log2 units
@group(0) @binding(1) var<storage, read> partials: array<f32>;
// (query tokens, Q_HEADS, V_DIM) f32
@group(0) @binding(2) var<storage, read_write> out: array<f32>;
// (query tokens, Q_HEADS) f32 bits, natural log
@group(0) @binding(4) var<storage, read_write> lse: array<u32>;

const LANES = 64u;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = workgroup.z * grid.y + workgroup.y;
    let group = workgroup.x / ROW_TILE;
    let tile_row = workgroup.x % ROW_TILE;
    if (index >= merge_item_count(params.class_index)) {
        return;
    }
    let item = merge_item(params.class_index, index);
    if (tile_row >= item.rows) {
        return;
    }
    let first = group * partial_rows() + item.partial_first + tile_row;
    let lse_first = GROUPS * partial_rows() * V_DIM;
    var top = NEGATIVE;
    for (var s = 0u; s < item.partial_count; s++) {
        top = max(top, partials[lse_first + first + s * ROW_TILE]);
    }
    let row = item.row_first + tile_row;
    let head = group * HEADS_PER_GROUP + row % HEADS_PER_GROUP;
    let q_row = (item.q_token_first + row / HEADS_PER_GROUP) * Q_HEADS + head;
    for (var v = lane; v < V_DIM; v += LANES) {
        var sum = 0.0;
        var total = 0.0;
        for (var s = 0u; s < item.partial_count; s++) {
            let at = first + s * ROW_TILE;
            let part = partials[lse_first + at];
            let weight = select(0.0, exp2(part - top), part > 0.5 * NEGATIVE);
            total += weight;
            sum += weight * partials[at * V_DIM + v];
        }
        let finished = softmax_finish(top, total, head);
        out[q_row * V_DIM + v] = sum * finished.factor;
        if (v == 0u) {
            lse[q_row] = softmax_lse_bits(finished.lse2);
        }
    }
}
