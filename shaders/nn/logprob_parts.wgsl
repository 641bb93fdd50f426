// Of each PART logits of a row: the largest, its lowest index, and the sum of exp(logit - largest).
//
// Grid: (parts, rows).
// Constants: LANES, PART. Parts: top.

struct Params {
    vocab: u32,
    row_stride: u32,
    count: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
// logits: (rows, vocab) f32, row_stride elements apart
@group(0) @binding(1) var<storage, read> logits: array<f32>;
// (rows, parts) vec4<u32>: bits of the value, the index (NO_TOKEN or SPOILED as in top), bits of the sum, unused
@group(0) @binding(2) var<storage, read_write> parts: array<vec4<u32>>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = group.y * params.row_stride;
    let end = min((group.x + 1u) * PART, params.vocab);
    var best = Top(0.0, NO_TOKEN);
    for (var i = group.x * PART + lane; i < end; i += LANES) {
        best = top_with(best, logits[first + i], i);
    }
    best = top_of_lanes(best, lane, LANES);
    var own = 0.0;
    for (var i = group.x * PART + lane; i < end; i += LANES) {
        // Below exp(-80) nothing is added: no exponent of -infinity.
        let exponent = logits[first + i] - best.value;
        own += select(0.0, exp(max(exponent, -80.0)), exponent > -80.0);
    }
    lane_value[lane] = own;
    workgroupBarrier();
    if (lane == 0u) {
        var sum = 0.0;
        for (var i = 0u; i < LANES; i++) {
            sum += lane_value[i];
        }
        parts[group.y * grid.x + group.x] = vec4<u32>(bitcast<u32>(best.value), best.index, bitcast<u32>(sum), 0u);
    }
}
