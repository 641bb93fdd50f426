// y[r, h, o] (+)= sum_i W[h, o, i] x[r, h, i] + b[h, o]     for many rows: tiles in workgroup memory.
//
// Grid: (ceil(out_dim / TILE_OUT), ceil(rows / TILE_ROWS), heads). 64 lanes as 8 x 8; each holds a micro-tile of
// MICRO_ROWS x MICRO_OUT sums, rows and outputs 8 apart, so that neighbouring lanes read neighbouring tile rows.
// Constants: MICRO_ROWS, MICRO_OUT, VECS_PER_WORD.
// Bindings: parts/linear_io.wgsl, parts/input_*.wgsl. Parts: those and parts/elements_*.wgsl.

const TILE_ROWS = 8u * MICRO_ROWS;
const TILE_OUT = 8u * MICRO_OUT;
const DEPTH = 8u; // quads of input per step
const STRIDE = DEPTH + 1u; // odd, against bank conflicts
var<workgroup> x_tile: array<vec4<f32>, TILE_ROWS * STRIDE>;
var<workgroup> w_tile: array<vec4<f32>, TILE_OUT * STRIDE>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = group.z;
    let first_row = group.y * TILE_ROWS;
    let first_out = group.x * TILE_OUT;
    let lane_row = lane / 8u;
    let lane_out = lane % 8u;
    var sums: array<array<f32, MICRO_OUT>, MICRO_ROWS>;
    for (var k = 0u; k < params.row_vec4; k += DEPTH / VECS_PER_WORD) {
        // unroll
        for (var m = 0u; m < MICRO_ROWS; m++) {
            let row = lane_row + 8u * m;
            x_tile[row * STRIDE + lane_out] = input_quad(input_base(first_row + row, head), k * VECS_PER_WORD + lane_out);
        }
        for (var t = lane; t < TILE_OUT * DEPTH / VECS_PER_WORD; t += 64u) {
            let out = t / (DEPTH / VECS_PER_WORD);
            let at = t % (DEPTH / VECS_PER_WORD);
            var packed = vec4<u32>();
            if (k + at < params.row_vec4) {
                packed = weights[weight_base(head, first_out + out) + k + at];
            }
            // unroll
            for (var q = 0u; q < VECS_PER_WORD; q++) {
                w_tile[out * STRIDE + at * VECS_PER_WORD + q] = unpack_word(packed)[q];
            }
        }
        workgroupBarrier();
        for (var d = 0u; d < DEPTH; d++) {
            var w: array<vec4<f32>, MICRO_OUT>;
            // unroll
            for (var n = 0u; n < MICRO_OUT; n++) {
                w[n] = w_tile[(lane_out + 8u * n) * STRIDE + d];
            }
            // unroll
            for (var m = 0u; m < MICRO_ROWS; m++) {
                let values = x_tile[(lane_row + 8u * m) * STRIDE + d];
                // unroll
                for (var n = 0u; n < MICRO_OUT; n++) {
                    sums[m][n] += dot(w[n], values);
                }
            }
        }
        workgroupBarrier();
    }
    // unroll
    for (var m = 0u; m < MICRO_ROWS; m++) {
        // unroll
        for (var n = 0u; n < MICRO_OUT; n++) {
            store(first_row + lane_row + 8u * m, head, first_out + lane_out + 8u * n, sums[m][n]);
        }
    }
}
