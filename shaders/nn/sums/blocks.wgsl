// The same of weights in blocks: integers are multiplied, and the scale of 16 of them multiplies their sum; an offset multiplies
// the sum of 16 elements of the input, which is one for all matrix rows. Slot: nn/sums.

fn row_sums(x_base: array<u32, ROWS>, w_base: array<u32, OUTS>, in_lane: u32) -> array<f32, PADDED> {
    var sums: array<f32, PADDED>;
    for (var k = in_lane; k < params.row_words; k += STEPS * IN_LANES) {
        var packed: array<Packed, STEP_WORDS>;
        // unroll
        for (var s = 0u; s < STEPS; s++) {
            // Past the row's end any of its own words will do: the input is 0 there.
            let word = min(k + s * IN_LANES, params.row_words - 1u);
            // unroll
            for (var j = 0u; j < OUTS; j++) {
                packed[s * OUTS + j] = load_word(w_base[j] + word);
            }
        }
        // unroll
        for (var s = 0u; s < STEPS; s++) {
            // unroll
            for (var run = 0u; run < 2u; run++) {
                var products = array<f32, PRODUCTS>();
                var inputs = array<f32, ROWS>();
                // unroll
                for (var q = 0u; q < 4u; q++) {
                    let quad = (k + s * IN_LANES) * 8u + 4u * run + q;
                    let gains = input_gain(quad);
                    var codes: array<vec4<f32>, OUTS>;
                    // unroll
                    for (var j = 0u; j < OUTS; j++) {
                        codes[j] = code_values(code_bytes(packed[s * OUTS + j].codes, 4u * run + q));
                    }
                    // unroll
                    for (var r = 0u; r < ROWS; r++) {
                        let raw = input_quad(x_base[r], quad);
                        let values = raw * gains;
                        inputs[r] += dot(values, vec4<f32>(1.0));
                        // unroll
                        for (var j = 0u; j < OUTS; j++) {
                            products[r * OUTS + j] += dot(codes[j], values);
                        }
                        // unroll
                        for (var n = 0u; n < NORMS; n++) {
                            sums[ROWS * OUTS + r + n] += dot(raw, raw);
                        }
                    }
                }
                // unroll
                for (var j = 0u; j < OUTS; j++) {
                    let scale = run_scale(packed[s * OUTS + j].header, packed[s * OUTS + j].at, run);
                    // unroll
                    for (var r = 0u; r < ROWS; r++) {
                        sums[r * OUTS + j] += scaled_sum(products[r * OUTS + j], inputs[r], scale);
                    }
                }
            }
        }
    }
    return sums;
}
