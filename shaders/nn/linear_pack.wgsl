// The input of linear_matrix in f16, with a norm's gain if there is one:
//
//   halves[r, h, i] = f16(2^n x[r, h, i] gain[i]),   factor[r, h] = 2^-n, with a norm times 1 / sqrt(mean_i x^2 + eps)
//
// 2^n brings the largest element of each row into [2^14, 2^15), so that nothing exceeds f16, whatever the row's size, and
// that what is down to 2^-28 of the largest keeps f16's 11 bits. Rows are padded with zeros to ROW_ALIGN words.
//
// Grid: (rows, 1, heads), a workgroup per row. It reads its row twice, the second time from the cache.
// Constants: LANES, STEPS (words of a lane at a time), ROW_ALIGN, GAIN_BINDING. Parts: linear_params, nn/input/*, nn/gain/*.

// halves: (rows, heads, padded words) vec4<u32> of 8 f16, then (rows, heads) of factors, an f32's bits in the first word
@group(0) @binding(1) var<storage, read_write> halves: array<vec4<u32>>;

var<workgroup> largest: array<f32, LANES>;
var<workgroup> squares: array<f32, LANES>;

fn packed_quad(quad: vec4<f32>) -> vec2<u32> {
    return vec2<u32>(pack2x16float(quad.xy), pack2x16float(quad.zw));
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row_words = (params.in_dim + 8u * ROW_ALIGN - 1u) / (8u * ROW_ALIGN) * ROW_ALIGN;
    let row = group.x * grid.z + group.z;
    let base = input_base(group.x, group.z);
    var top = vec4<f32>();
    var square = 0.0;
    for (var first = lane; first < row_words; first += LANES * STEPS) {
        // unroll
        for (var s = 0u; s < STEPS; s++) {
            // Past the row's end the input is 0.
            let quad = 2u * (first + s * LANES);
            let low = input_quad(base, quad);
            let high = input_quad(base, quad + 1u);
            top = max(top, max(abs(low * input_gain(quad)), abs(high * input_gain(quad + 1u))));
            square += dot(low, low) + dot(high, high);
        }
    }
    largest[lane] = max(max(top.x, top.y), max(top.z, top.w));
    squares[lane] = square;
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        if (lane < half) {
            largest[lane] = max(largest[lane], largest[lane + half]);
            squares[lane] += squares[lane + half];
        }
        workgroupBarrier();
    }
    // The exponent field of an f32 with 127 added: of the largest element, then of 2^n and 2^-n.
    let exponent = clamp(bitcast<u32>(largest[0]) >> 23u, 15u, 254u);
    let scale = bitcast<f32>((268u - exponent) << 23u);
    for (var first = lane; first < row_words; first += LANES * STEPS) {
        // unroll
        for (var s = 0u; s < STEPS; s++) {
            let word = first + s * LANES;
            let low = input_quad(base, 2u * word) * input_gain(2u * word) * scale;
            let high = input_quad(base, 2u * word + 1u) * input_gain(2u * word + 1u) * scale;
            if (word < row_words) {
                halves[row * row_words + word] = vec4<u32>(packed_quad(low), packed_quad(high));
            }
        }
    }
    if (lane == 0u) {
        let factor = bitcast<f32>((exponent - 14u) << 23u) * input_factor(squares[0]);
        halves[grid.x * grid.z * row_words + row] = vec4<u32>(bitcast<u32>(factor), 0u, 0u, 0u);
    }
}
