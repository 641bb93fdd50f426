// The logits of each part of a shaped row in the order of their buckets, and of each part and bucket: where it begins, the sum of
// probabilities relative to the top's, and the sum of these times their places.
//
// Grid: (parts, rows).
// Constants: LANES, PART; LANES is BUCKETS. Parts: top, row_top/parts, sampled_rows, sampled_places.

struct Params {
    vocab: u32,
    row_stride: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
// (rows, vocab) bits of f32
@group(0) @binding(2) var<storage, read> shaped: array<u32>;
// (rows, parts, BUCKETS) vec4<u32>: first place in the part, bits of both sums, unused
@group(0) @binding(3) var<storage, read_write> buckets: array<vec4<u32>>;
// (rows, vocab) f32: each part's own, by bucket, then by index
@group(0) @binding(5) var<storage, read_write> sorted: array<f32>;

var<workgroup> part_value: array<f32, PART>;
var<workgroup> part_bucket: array<u32, PART>;
var<workgroup> bucket_count: array<u32, BUCKETS>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.y;
    let temperature = head_number(row, TEMPERATURE);
    if (temperature <= 0.0) {
        return;
    }
    let best = row_top(0u, row, lane);
    let first = group.x * PART;
    let count = min(PART, params.vocab - first);
    for (var i = lane; i < count; i += LANES) {
        let bits = shaped[row * params.vocab + first + i];
        part_bucket[i] = DEAD;
        part_value[i] = 0.0;
        if (bits != MINUS_INFINITY_BITS) {
            part_value[i] = bitcast<f32>(bits);
            part_bucket[i] = bucket_of(place(part_value[i], best.value, temperature));
        }
    }
    workgroupBarrier();
    var own = 0u;
    var mass = 0.0;
    var moment = 0.0;
    for (var i = 0u; i < count; i++) {
        if (part_bucket[i] == lane) {
            let x = place(part_value[i], best.value, temperature);
            let p = exp(-x);
            own += 1u;
            mass += p;
            moment += p * x;
        }
    }
    bucket_count[lane] = own;
    workgroupBarrier();
    var to = 0u;
    for (var i = 0u; i < lane; i++) {
        to += bucket_count[i];
    }
    let entry = (row * grid.x + group.x) * BUCKETS + lane;
    buckets[entry] = vec4<u32>(to, bitcast<u32>(mass), bitcast<u32>(moment), 0u);
    for (var i = 0u; i < count; i++) {
        if (part_bucket[i] == lane) {
            sorted[row * params.vocab + first + to] = part_value[i];
            to += 1u;
        }
    }
}
