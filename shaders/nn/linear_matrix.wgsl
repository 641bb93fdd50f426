// y[r, h, o] (+)= sum_i W[h, o, i] x[r, h, i] + b[h, o]     for many rows, by cooperative matrices of 16 x 16.
// The slots add to it: weights with scales, SwiGLU or rotated elements after; a norm before is in linear_pack.
//
// Factors are f16, sums f32. The input comes from linear_pack: f16, each row with a factor of its own. int8 weights are
// exact in f16, and their scales multiply the sums. A workgroup makes ROWS x 16 OUT_TILES OUT_GROUPS sums, each subgroup
// ROW_TILES x OUT_TILES matrices of them, which stay in registers. Words of the next AHEAD steps are on their way, in
// registers, while the present one is multiplied.
//
// Written out in main: with functions for its parts it is 4% slower (2,048 rows of 2,048 x 11,264 on an H200: 493 us, 513).
//
// What bounds it: in workgroup memory a subgroup reads 1 / OUT_TILES + 1 / ROW_TILES matrices per product, and from the
// cache or the memory behind it a workgroup reads 1 / ROWS + 1 / MATRIX_ROWS halves per multiply-add, STEP_WORDS words of a
// row at a time: on an H100 runs of 4 words take 1.4 times as long as runs of 8.
//
// Grid: (ceil(rows / ROWS), ceil(outputs / workgroup's outputs), heads). Neighbours in time share their weights: the input of
// all rows is the smaller part and stays in the cache, so that the weights come from memory once.
// Constants: nn/linear_matrix.rs, MatrixTile. Parts: linear_params, linear_io, nn/packed_input/*, half_word, and one
// each of kv/element/*, nn/weights/*, nn/output/*, nn/tail/*.

const ROWS = 16u * ROW_TILES * ROW_GROUPS;
const MATRIX_ROWS = 16u * OUT_TILES * OUT_GROUPS;
const W_STEP_WORDS = STEP_WORDS / HALVES_PER_WORD;
// Rows are an odd number of 16 bytes apart, against bank conflicts.
const STRIDE = STEP_WORDS | 1u;

// A step of ROWS rows of input, and of MATRIX_ROWS rows of weights.
var<workgroup> x_tile: array<Word, ROWS * STRIDE>;
var<workgroup> w_tile: array<Word, MATRIX_ROWS * STRIDE>;
// 16 x 16 sums of each subgroup.
var<workgroup> scratch: array<vec4<f32>, 64u * ROW_GROUPS * OUT_GROUPS>;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
) {
    let lane = subgroup * 32u + subgroup_lane;
    let group = product_group(workgroup);
    let head = group.z;
    let first_row = group.x * ROWS;
    let first_out = group.y * (MATRIX_ROWS / SUMS_PER_OUTPUT);
    let row_words = (params.in_dim + 8u * ROW_ALIGN - 1u) / (8u * ROW_ALIGN) * ROW_ALIGN;

    // This lane's words of the two tiles. Row 16 n + i of the weights' is the n-th matrix row of output lane i.
    var x_base: array<u32, X_FETCHES>;
    // unroll
    for (var i = 0u; i < X_FETCHES; i++) {
        let row = min(first_row + (lane + THREADS * i) / STEP_WORDS, params.rows - 1u);
        x_base[i] = (row * grid.z + head) * row_words + (lane + THREADS * i) % STEP_WORDS;
    }
    var w_base: array<u32, W_FETCHES>;
    // unroll
    for (var i = 0u; i < W_FETCHES; i++) {
        let tile_row = (lane + THREADS * i) / W_STEP_WORDS;
        w_base[i] = weight_base(head, matrix_row(first_out, tile_row / 16u, tile_row % 16u));
    }
    var sums: array<coop_mat16x16<f32, C>, SUM_MATRICES>;
    // unroll
    for (var i = 0u; i < SUM_MATRICES; i++) {
        sums[i] = coop_mat16x16<f32, C>();
    }
    let x_first = subgroup / OUT_GROUPS * (16u * ROW_TILES * STRIDE);
    let w_first = subgroup % OUT_GROUPS * (16u * OUT_TILES * STRIDE);

    // Steps to come; past a matrix row's end any of its own words will do, since the input is 0 there, and past the last
    // step nothing is multiplied, so it is fetched again.
    var x_words: array<vec4<u32>, X_HELD>;
    var w_words: array<Packed, W_HELD>;
    // unroll
    for (var u = 0u; u < AHEAD; u++) {
        // unroll
        for (var i = 0u; i < X_FETCHES; i++) {
            x_words[u * X_FETCHES + i] = halves[x_base[i] + u * STEP_WORDS];
        }
        // unroll
        for (var i = 0u; i < W_FETCHES; i++) {
            let word = u * W_STEP_WORDS + (lane + THREADS * i) % W_STEP_WORDS;
            w_words[u * W_FETCHES + i] = load_word(w_base[i] + min(word, params.row_words - 1u));
        }
    }
    for (var k = 0u; k < row_words; k += AHEAD * STEP_WORDS) {
        // unroll
        for (var u = 0u; u < AHEAD; u++) {
            workgroupBarrier();
            // unroll
            for (var i = 0u; i < X_FETCHES; i++) {
                let t = lane + THREADS * i;
                x_tile[t / STEP_WORDS * STRIDE + t % STEP_WORDS] = half_word(x_words[u * X_FETCHES + i]);
            }
            // unroll
            for (var i = 0u; i < W_FETCHES; i++) {
                let t = lane + THREADS * i;
                let at = t / W_STEP_WORDS * STRIDE + t % W_STEP_WORDS * HALVES_PER_WORD;
                let quads = unpack_packed(w_words[u * W_FETCHES + i]);
                // unroll
                for (var q = 0u; q < HALVES_PER_WORD; q++) {
                    w_tile[at + q] = Word(vec4<f16>(quads[2u * q]), vec4<f16>(quads[2u * q + 1u]));
                }
            }
            workgroupBarrier();
            let next = min(k + (u + AHEAD) * STEP_WORDS, row_words - STEP_WORDS);
            // unroll
            for (var i = 0u; i < X_FETCHES; i++) {
                x_words[u * X_FETCHES + i] = halves[x_base[i] + next];
            }
            // unroll
            for (var i = 0u; i < W_FETCHES; i++) {
                let word = next / HALVES_PER_WORD + (lane + THREADS * i) % W_STEP_WORDS;
                w_words[u * W_FETCHES + i] = load_word(w_base[i] + min(word, params.row_words - 1u));
            }
            // unroll
            for (var d = 0u; d < STEP_MATRICES; d++) {
                var w: array<coop_mat16x16<f16, B>, OUT_TILES>;
                // unroll
                for (var n = 0u; n < OUT_TILES; n++) {
                    let at = w_first + n * 16u * STRIDE + d * 2u;
                    w[n] = coopLoad<coop_mat16x16<f16, B>>(&w_tile[at][0], 2u * STRIDE);
                }
                // unroll
                for (var m = 0u; m < ROW_TILES; m++) {
                    let at = x_first + m * 16u * STRIDE + d * 2u;
                    let rows = coopLoadT<coop_mat16x16<f16, A>>(&x_tile[at][0], 2u * STRIDE);
                    // unroll
                    for (var n = 0u; n < OUT_TILES; n++) {
                        sums[m * OUT_TILES + n] = coopMultiplyAdd(rows, w[n], sums[m * OUT_TILES + n]);
                    }
                }
            }
        }
    }

    // The elements of a matrix cannot be reached, so sums go through workgroup memory, 16 x 16 at a time.
    let own = subgroup * 64u;
    let out_tile = subgroup % OUT_GROUPS * OUT_TILES;
    // unroll
    for (var m = 0u; m < ROW_TILES; m++) {
        let tile_row = first_row + (subgroup / OUT_GROUPS * ROW_TILES + m) * 16u;
        var factors: array<f32, 8>;
        // unroll
        for (var i = 0u; i < 8u; i++) {
            let row = min(tile_row + (subgroup_lane + 32u * i) / 16u, params.rows - 1u);
            factors[i] = bitcast<f32>(halves[params.rows * grid.z * row_words + row * grid.z + head].x);
        }
        // unroll
        for (var n = 0u; n < OUTPUTS; n++) {
            var parts: array<array<f32, 8>, SUMS>;
            // unroll
            for (var s = 0u; s < SUMS; s++) {
                coopStoreT(sums[m * OUT_TILES + n * SUMS + s], &scratch[own], 4u);
                workgroupBarrier();
                // unroll
                for (var i = 0u; i < 8u; i++) {
                    let at = subgroup_lane + 32u * i;
                    let matrix = matrix_row(first_out, out_tile + n * SUMS + s, at % 16u);
                    parts[s][i] = with_bias(head, matrix, scratch[own + at / 4u][at % 4u] * factors[i]);
                }
                workgroupBarrier();
            }
            // unroll
            for (var i = 0u; i < 8u; i++) {
                let at = subgroup_lane + 32u * i;
                let out = first_out + (out_tile / SUMS + n) * 16u + at % 16u;
                store(tile_row + at / 16u, head, out, joined(parts[0][i], parts[SUMS - 1u][i]));
            }
        }
    }
}
