// y[r, h, o] (+)= sum_i W[h, o, i] x[r, h, i] + b[h, o]     for few rows: each weight is read once per ROWS rows.
//
// Grid: (ceil(out_dim / (OUTS * OUT_LANES)), ceil(rows / ROWS), heads).
// IN_LANES lanes go along the input together, 16 bytes of weights each; every lane does OUTS outputs of ROWS rows.
// A row's sums are formed in the same order whatever ROWS is and whatever the other rows hold.
// Constants: ROWS, OUTS, IN_LANES, OUT_LANES, LANES = IN_LANES * OUT_LANES, VECS_PER_WORD.
// Bindings: parts/linear_io.wgsl, parts/input_*.wgsl. Parts: those and parts/elements_*.wgsl.

const PARTIAL_STRIDE = LANES + 1u; // odd, against bank conflicts
var<workgroup> partials: array<f32, ROWS * OUTS * PARTIAL_STRIDE>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = group.z;
    let first_row = group.y * ROWS;
    let in_lane = lane % IN_LANES;
    let first_out = group.x * OUTS * OUT_LANES;
    var x_base: array<u32, ROWS>;
    // unroll
    for (var r = 0u; r < ROWS; r++) {
        x_base[r] = input_base(first_row + r, head);
    }
    var w_base: array<u32, OUTS>;
    // unroll
    for (var j = 0u; j < OUTS; j++) {
        w_base[j] = weight_base(head, first_out + j * OUT_LANES + lane / IN_LANES);
    }
    var sums: array<array<f32, OUTS>, ROWS>;
    for (var k = in_lane; k < params.row_vec4; k += IN_LANES) {
        var packed: array<vec4<u32>, OUTS>;
        // unroll
        for (var j = 0u; j < OUTS; j++) {
            packed[j] = weights[w_base[j] + k];
        }
        // unroll
        for (var q = 0u; q < VECS_PER_WORD; q++) {
            var w: array<vec4<f32>, OUTS>;
            // unroll
            for (var j = 0u; j < OUTS; j++) {
                w[j] = unpack_word(packed[j])[q];
            }
            // unroll
            for (var r = 0u; r < ROWS; r++) {
                let values = input_quad(x_base[r], k * VECS_PER_WORD + q);
                // unroll
                for (var j = 0u; j < OUTS; j++) {
                    sums[r][j] += dot(w[j], values);
                }
            }
        }
    }
    // unroll
    for (var r = 0u; r < ROWS; r++) {
        // unroll
        for (var j = 0u; j < OUTS; j++) {
            partials[(r * OUTS + j) * PARTIAL_STRIDE + lane] = sums[r][j];
        }
    }
    workgroupBarrier();
    for (var t = lane; t < ROWS * OUTS * OUT_LANES; t += LANES) {
        let pair = t / OUT_LANES; // row * OUTS + j
        let first = pair * PARTIAL_STRIDE + (t % OUT_LANES) * IN_LANES;
        var sum = 0.0;
        // unroll
        for (var i = 0u; i < IN_LANES; i++) {
            sum += partials[first + i];
        }
        store(first_row + pair / OUTS, head, first_out + (pair % OUTS) * OUT_LANES + t % OUT_LANES, sum);
    }
}
