// The same as nn/sums/blocks.wgsl where lanes go along the input together: four of them share a word, so that lanes side by side
// read runs of 64 bytes of the input. A lane with a word of its own reads 16 bytes, 128 from its neighbour's, and the cache then gives
// a line for each of them: on an H200 that was the time. IN_LANES is a multiple of 4. Slot: nn/sums.

fn row_sums(x_base: array<u32, ROWS>, w_base: array<u32, OUTS>, in_lane: u32) -> array<f32, PADDED> {
    var sums: array<f32, PADDED>;
    let piece = in_lane % 4u;
    for (var k = in_lane / 4u; k < params.row_words; k += STEPS * (IN_LANES / 4u)) {
        var loaded: array<Piece, STEP_WORDS>;
        var headers: array<Header, STEP_WORDS>;
        // unroll
        for (var s = 0u; s < STEPS; s++) {
            // Past the row's end any of its own words will do: the input is 0 there.
            let at = k + s * (IN_LANES / 4u);
            let word = select(min(at, params.row_words - 1u), at, WHOLE == 1u);
            // unroll
            for (var j = 0u; j < OUTS; j++) {
                loaded[s * OUTS + j] = load_piece(w_base[j] + word, piece);
                headers[s * OUTS + j] = load_header(w_base[j] + word);
            }
        }
        // unroll
        for (var s = 0u; s < STEPS; s++) {
            let word = k + s * (IN_LANES / 4u);
            let held = select(min(word, params.row_words - 1u), word, WHOLE == 1u);
            // unroll
            for (var run = 0u; run < 2u; run++) {
                let quad = word * 8u + 4u * run + piece;
                let gains = input_gain(quad);
                var codes: array<vec4<f32>, OUTS>;
                var scales: array<vec2<f32>, OUTS>;
                // unroll
                for (var j = 0u; j < OUTS; j++) {
                    codes[j] = code_values(piece_bytes(loaded[s * OUTS + j], piece, run));
                    scales[j] = run_scale(headers[s * OUTS + j], w_base[j] + held, run);
                }
                // unroll
                for (var r = 0u; r < ROWS; r++) {
                    let raw = input_quad(x_base[r], quad);
                    let values = raw * gains;
                    let inputs = dot(values, vec4<f32>(1.0));
                    // unroll
                    for (var j = 0u; j < OUTS; j++) {
                        sums[r * OUTS + j] += scaled_sum(dot(codes[j], values), inputs, scales[j]);
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
