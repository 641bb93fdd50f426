// The input of a linear, where its width, offset and strides are multiples of 4.
// x: (rows, heads, in_dim) f32 through x_offset, x_row_stride and x_head_stride
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
// gain: (in_dim) f32; any buffer where the input is not normed
@group(0) @binding(GAIN_BINDING) var<storage, read> gain: array<vec4<f32>>;

// Elements 4 quad .. 4 quad + 3 of the row that begins at element `base`; 0 past in_dim, whatever lies there.
fn input_quad(base: u32, quad: u32) -> vec4<f32> {
    return select(vec4<f32>(), x[base / 4u + quad], WHOLE == 1u || 4u * quad < params.in_dim);
}

fn input_element(at: u32) -> f32 {
    return x[at / 4u][at % 4u];
}

fn gain_quad(quad: u32) -> vec4<f32> {
    return select(vec4<f32>(), gain[quad], WHOLE == 1u || 4u * quad < params.in_dim);
}
