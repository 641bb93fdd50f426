// tops[r][p] = the largest logit of the p-th PART logits of row r, and its lowest index: a large vocabulary by many workgroups,
// before `sample` takes the top of them.
//
// Grid: (parts, rows).
// Constants: LANES, PART. Parts: top.

struct Params {
    vocab: u32,
    row_stride: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
// logits: (rows, vocab) f32, row_stride elements apart
@group(0) @binding(1) var<storage, read> logits: array<f32>;
// (rows, parts) vec2<u32>: bits of the value, and the index, NO_TOKEN or SPOILED
@group(0) @binding(2) var<storage, read_write> tops: array<vec2<u32>>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let end = min((group.x + 1u) * PART, params.vocab);
    var best = Top(0.0, NO_TOKEN);
    for (var i = group.x * PART + lane; i < end; i += LANES) {
        best = top_with(best, logits[group.y * params.row_stride + i], i);
    }
    best = top_of_lanes(best, lane, LANES);
    if (lane == 0u) {
        tops[group.y * grid.x + group.x] = vec2<u32>(bitcast<u32>(best.value), best.index);
    }
}
