// Products of each row with the matrices of the experts it goes to. The slot says what becomes of them:
//   up    y[r, s, o] = shares[r, s] joined(W[e, o] x[r] + b[e, o], W[e, o'] x[r] + b[e, o']),  e = ids[r, s], o' = out_dim / 2 + o
//   down  y[r, o] += sum_s W[e, o] x[r, s] + shares[r, s] b[e, o]
// One row's matrices are read for that row alone, so the time is that of the memory for few rows.
//
// Grid: (ceil(outputs / OUT_LANES), slots or 1, rows); IN_LANES lanes go along the input together.
// Constants: LANES = IN_LANES * OUT_LANES, IN_LANES, OUT_LANES, VECS_PER_WORD, TOP.
// Parts: kv/element/*, nn/weights/*, nn/expert_bias/*, nn/expert_side/up with one of nn/output/*, or nn/expert_side/down.

struct Params {
    out_dim: u32, // rows of a matrix
    in_dim: u32,
    row_words: u32, // words per row of a matrix
    experts: u32,
    x_row_stride: u32,
    y_row_stride: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
// weights: (experts, out_dim, row_words) words as nn/weights has them, rows padded with zeros
@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;
// x: up (rows, in_dim), down (rows, TOP, in_dim) f32, rows x_row_stride elements apart
@group(0) @binding(3) var<storage, read> x: array<f32>;
// ids: (rows, TOP) u32
@group(0) @binding(4) var<storage, read> ids: array<u32>;
// shares: (rows, TOP) f32, what each slot counts
@group(0) @binding(5) var<storage, read> shares: array<f32>;
// y: up (rows, TOP, out_dim / 2), down (rows, out_dim) f32, rows y_row_stride elements apart
@group(0) @binding(6) var<storage, read_write> y: array<f32>;

var<workgroup> partials: array<vec2<f32>, LANES>;

// The number of matrix row `out` of expert `e`.
fn row_of(e: u32, out: u32) -> u32 {
    return min(e, params.experts - 1u) * params.out_dim + min(out, params.out_dim - 1u);
}

// A lane's part of the product of matrix row `at` with the input from element `x_first`.
fn part_of(at: u32, x_first: u32, in_lane: u32) -> f32 {
    var sum = 0.0;
    for (var k = in_lane; k < params.row_words; k += IN_LANES) {
        let packed = load_word(at * params.row_words + k);
        // unroll
        for (var q = 0u; q < VECS_PER_WORD; q++) {
            let i = (k * VECS_PER_WORD + q) * 4u;
            var values = vec4<f32>(0.0);
            // unroll
            for (var n = 0u; n < 4u; n++) {
                // Past the row's end the weights are 0, so any of its own elements will do, but no other's.
                values[n] = x[x_first + min(i + n, params.in_dim - 1u)];
            }
            sum += dot(unpack_packed(packed)[q], values);
        }
    }
    return sum * row_scale(at);
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let out = group.x * OUT_LANES + lane / IN_LANES;
    partials[lane] = parts_of(group.z, group.y, out, lane % IN_LANES);
    workgroupBarrier();
    if (lane >= OUT_LANES) {
        return;
    }
    var sum = vec2<f32>(0.0);
    for (var i = 0u; i < IN_LANES; i++) {
        sum += partials[lane * IN_LANES + i];
    }
    store(group.z, group.y, group.x * OUT_LANES + lane, sum);
}
