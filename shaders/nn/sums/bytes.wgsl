// The same as nn/sums/words.wgsl of signed bytes, by dot products of bytes: a lane rounds the sixteen elements of its input that
// belong to a word to 8 bits, under the largest of them, so each is off by at most 1/254 of that. Four weights are then one
// instruction. Slot: nn/sums.

fn row_sums(x_base: array<u32, ROWS>, w_base: array<u32, OUTS>, in_lane: u32) -> array<f32, PADDED> {
    var sums: array<f32, PADDED>;
    for (var k = in_lane; k < params.row_words; k += STEPS * IN_LANES) {
        var packed: array<Packed, STEP_WORDS>;
        // unroll
        for (var s = 0u; s < STEPS; s++) {
            // Past the row's end any of its own words will do: the input is 0 there.
            let word = select(min(k + s * IN_LANES, params.row_words - 1u), k + s * IN_LANES, WHOLE == 1u);
            // unroll
            for (var j = 0u; j < OUTS; j++) {
                packed[s * OUTS + j] = load_word(w_base[j] + word);
            }
        }
        // unroll
        for (var s = 0u; s < STEPS; s++) {
            let first = (k + s * IN_LANES) * 4u;
            var gains: array<vec4<f32>, 4>;
            // unroll
            for (var q = 0u; q < 4u; q++) {
                gains[q] = input_gain(first + q);
            }
            // unroll
            for (var r = 0u; r < ROWS; r++) {
                var values: array<vec4<f32>, 4>;
                var tops = vec4<f32>();
                // unroll
                for (var q = 0u; q < 4u; q++) {
                    let raw = input_quad(x_base[r], first + q);
                    values[q] = raw * gains[q];
                    tops = max(tops, abs(values[q]));
                    // unroll
                    for (var n = 0u; n < NORMS; n++) {
                        sums[ROWS * OUTS + r + n] += dot(raw, raw);
                    }
                }
                let top = max(max(tops.x, tops.y), max(tops.z, tops.w));
                let inverse = select(0.0, 127.0 / top, top > 0.0);
                var rounded: array<u32, 4>;
                // unroll
                for (var q = 0u; q < 4u; q++) {
                    rounded[q] = pack4xI8(vec4<i32>(round(values[q] * inverse)));
                }
                // unroll
                for (var j = 0u; j < OUTS; j++) {
                    var product = 0i;
                    // unroll
                    for (var q = 0u; q < 4u; q++) {
                        product += dot4I8Packed(packed[s * OUTS + j][q], rounded[q]);
                    }
                    sums[r * OUTS + j] += f32(product) * (top / 127.0);
                }
            }
        }
    }
    return sums;
}
