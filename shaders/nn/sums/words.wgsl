// A lane's part of the sums of linear_rows: ROWS * OUTS of the products, then ROWS * NORMS of the squares. Slot: nn/sums.

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
            // unroll
            for (var q = 0u; q < VECS_PER_WORD; q++) {
                let quad = (k + s * IN_LANES) * VECS_PER_WORD + q;
                let gains = input_gain(quad);
                var w: array<vec4<f32>, OUTS>;
                // unroll
                for (var j = 0u; j < OUTS; j++) {
                    w[j] = unpack_packed(packed[s * OUTS + j])[q];
                }
                // unroll
                for (var r = 0u; r < ROWS; r++) {
                    let raw = input_quad(x_base[r], quad);
                    let values = raw * gains;
                    // unroll
                    for (var j = 0u; j < OUTS; j++) {
                        sums[r * OUTS + j] += dot(w[j], values);
                    }
                    // unroll
                    for (var n = 0u; n < NORMS; n++) {
                        sums[ROWS * OUTS + r + n] += dot(raw, raw);
                    }
                }
            }
        }
    }
    return sums;
}
