// The same as nn/sums/pieces.wgsl by dot products of bytes: a lane rounds eight elements of its input at a time to 8 bits, under the
// largest of them, so each is off by at most 1/254 of that. Four codes are then one instruction. Slot: nn/sums.

fn eighths(values: vec4<f32>, inverse: f32) -> u32 {
    return pack4xI8(vec4<i32>(round(values * inverse)));
}

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
            let first = word * 8u + piece;
            let first_gains = input_gain(first);
            let last_gains = input_gain(first + 4u);
            var codes: array<vec2<u32>, OUTS>;
            var scales: array<vec4<f32>, OUTS>;
            // unroll
            for (var j = 0u; j < OUTS; j++) {
                let here = loaded[s * OUTS + j];
                codes[j] = vec2<u32>(
                    code_integers(piece_bytes(here, piece, 0u)),
                    code_integers(piece_bytes(here, piece, 1u)),
                );
                let header = headers[s * OUTS + j];
                scales[j] = vec4<f32>(run_scale(header, w_base[j] + held, 0u), run_scale(header, w_base[j] + held, 1u));
            }
            // unroll
            for (var r = 0u; r < ROWS; r++) {
                let raw_first = input_quad(x_base[r], first);
                let raw_last = input_quad(x_base[r], first + 4u);
                let values_first = raw_first * first_gains;
                let values_last = raw_last * last_gains;
                let tops = max(abs(values_first), abs(values_last));
                let top = max(max(tops.x, tops.y), max(tops.z, tops.w));
                let unit = top / 127.0;
                let inverse = select(0.0, 127.0 / top, top > 0.0);
                let rounded = vec2<u32>(eighths(values_first, inverse), eighths(values_last, inverse));
                let whole = vec2<i32>(dot4I8Packed(rounded.x, 0x01010101u), dot4I8Packed(rounded.y, 0x01010101u));
                let zeros = CODE_ZERO * whole;
                // Offsets multiply what the codes do, not the input itself: so the result is that of the rounded input.
                let inputs = vec2<f32>(whole) * unit;
                // unroll
                for (var j = 0u; j < OUTS; j++) {
                    let products = vec2<f32>(
                        vec2<i32>(dot4I8Packed(codes[j].x, rounded.x), dot4I8Packed(codes[j].y, rounded.y)) - zeros,
                    ) * unit;
                    sums[r * OUTS + j] += scaled_sum(products.x, inputs.x, scales[j].xy)
                        + scaled_sum(products.y, inputs.y, scales[j].zw);
                }
                // unroll
                for (var n = 0u; n < NORMS; n++) {
                    sums[ROWS * OUTS + r + n] += dot(raw_first, raw_first) + dot(raw_last, raw_last);
                }
            }
        }
    }
    return sums;
}
