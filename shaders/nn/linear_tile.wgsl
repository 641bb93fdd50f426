// y[r, h, o] (+)= sum_i W[h, o, i] x[r, h, i] + b[h, o]     for many rows: tiles in workgroup memory.
// The slots add to it: weights with scales, a norm before, SwiGLU or rotated elements after; rows gathered by expert.
//
// Grid: (ceil(outputs / (8 * OUTPUTS)), ceil(rows / TILE_ROWS), heads). 64 lanes as 8 x 8; each holds a micro-tile of
// MICRO_ROWS x MICRO_OUT sums, rows and outputs 8 apart, so that neighbouring lanes read neighbouring tile rows.
// The next tile is on its way, in registers, while the present one is multiplied.
// Constants: MICRO_ROWS, MICRO_OUT, OUT_LANES = 8, VECS_PER_WORD, TILE_WORDS = MICRO_OUT / VECS_PER_WORD (words of
// weights that a lane fetches), OUTPUTS = MICRO_OUT / SUMS_PER_OUTPUT, NORMS (1 with a norm, else 0).
// Parts: linear_params and linear_io, or experts_io with experts_listed; and one each of nn/input/*, kv/element/*,
// nn/weights/*, nn/gain/*, nn/output/*, nn/tail/*.

const TILE_ROWS = 8u * MICRO_ROWS;
const TILE_OUT = 8u * MICRO_OUT;
const DEPTH = 8u; // quads of input per step
const WORDS = DEPTH / VECS_PER_WORD; // words of a matrix row per step
const STRIDE = DEPTH + 1u; // odd, against bank conflicts
var<workgroup> x_tile: array<vec4<f32>, TILE_ROWS * STRIDE>;
var<workgroup> w_tile: array<vec4<f32>, TILE_OUT * STRIDE>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = product_group(workgroup);
    let head = group.z;
    let first_row = group.y * TILE_ROWS;
    if (is_empty(first_row)) {
        return;
    }
    let first_out = group.x * OUTPUTS * 8u;
    let lane_row = lane / 8u;
    let lane_out = lane % 8u;
    var x_base: array<u32, MICRO_ROWS>;
    // unroll
    for (var m = 0u; m < MICRO_ROWS; m++) {
        x_base[m] = input_base(first_row + lane_row + 8u * m, head);
    }
    // This lane's words of the weight tile: tile rows 8 n + out_lane hold the n-th matrix row of out_lane.
    var w_base: array<u32, TILE_WORDS>;
    // unroll
    for (var i = 0u; i < TILE_WORDS; i++) {
        let tile_row = (lane + 64u * i) / WORDS;
        w_base[i] = weight_base(head, matrix_row(first_out, tile_row / 8u, tile_row % 8u));
    }
    var sums: array<array<f32, MICRO_OUT>, MICRO_ROWS>;
    var squares: array<f32, MICRO_ROWS>;
    var raw: array<vec4<f32>, MICRO_ROWS>;
    var packed: array<Packed, TILE_WORDS>;
    // unroll
    for (var m = 0u; m < MICRO_ROWS; m++) {
        raw[m] = input_quad(x_base[m], lane_out);
    }
    // unroll
    for (var i = 0u; i < TILE_WORDS; i++) {
        packed[i] = load_word(w_base[i] + min((lane + 64u * i) % WORDS, params.row_words - 1u));
    }
    for (var k = 0u; k < params.row_words; k += WORDS) {
        let gains = input_gain(k * VECS_PER_WORD + lane_out);
        // unroll
        for (var m = 0u; m < MICRO_ROWS; m++) {
            x_tile[(lane_row + 8u * m) * STRIDE + lane_out] = raw[m] * gains;
            // unroll
            for (var n = 0u; n < NORMS; n++) {
                squares[m] += dot(raw[m], raw[m]);
            }
        }
        // unroll
        for (var i = 0u; i < TILE_WORDS; i++) {
            let t = lane + 64u * i;
            // unroll
            for (var q = 0u; q < VECS_PER_WORD; q++) {
                w_tile[t / WORDS * STRIDE + t % WORDS * VECS_PER_WORD + q] = unpack_packed(packed[i])[q];
            }
        }
        workgroupBarrier();
        // Past the row's end any of its own words will do: the input is 0 there.
        // unroll
        for (var m = 0u; m < MICRO_ROWS; m++) {
            raw[m] = input_quad(x_base[m], (k + WORDS) * VECS_PER_WORD + lane_out);
        }
        // unroll
        for (var i = 0u; i < TILE_WORDS; i++) {
            packed[i] = load_word(w_base[i] + min(k + WORDS + (lane + 64u * i) % WORDS, params.row_words - 1u));
        }
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
    // A row's squares are with the 8 lanes that fetched it.
    // unroll
    for (var n = 0u; n < NORMS; n++) {
        // unroll
        for (var m = 0u; m < MICRO_ROWS; m++) {
            x_tile[(lane_row + 8u * m) * STRIDE + lane_out].x = squares[m];
        }
        workgroupBarrier();
    }
    // unroll
    for (var m = 0u; m < MICRO_ROWS; m++) {
        var factor = 1.0;
        // unroll
        for (var n = 0u; n < NORMS; n++) {
            var square = 0.0;
            // unroll
            for (var i = 0u; i < 8u; i++) {
                square += x_tile[(lane_row + 8u * m) * STRIDE + i].x;
            }
            factor = input_factor(square);
        }
        // unroll
        for (var n = 0u; n < OUTPUTS; n++) {
            const a = n * SUMS_PER_OUTPUT;
            const b = a + SUMS_PER_OUTPUT - 1u;
            let first = with_bias(head, matrix_row(first_out, a, lane_out), sums[m][a] * factor);
            let last = with_bias(head, matrix_row(first_out, b, lane_out), sums[m][b] * factor);
            store(first_row + lane_row + 8u * m, head, first_out + 8u * n + lane_out, joined(first, last));
        }
    }
}
