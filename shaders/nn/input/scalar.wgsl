// The input of a linear, of any width, offset and strides.
// x: (rows, heads, in_dim) f32 through x_offset, x_row_stride and x_head_stride
@group(0) @binding(2) var<storage, read> x: array<f32>;
// gain: (in_dim) f32; any buffer where the input is not normed
@group(0) @binding(GAIN_BINDING) var<storage, read> gain: array<f32>;

// Elements 4 quad .. 4 quad + 3 of the row that begins at element `base`; 0 past in_dim, whatever lies there.
fn input_quad(base: u32, quad: u32) -> vec4<f32> {
    let i = 4u * quad + vec4<u32>(0u, 1u, 2u, 3u);
    let at = base + i;
    return select(vec4<f32>(), vec4<f32>(x[at.x], x[at.y], x[at.z], x[at.w]), i < vec4<u32>(params.in_dim));
}

fn input_element(at: u32) -> f32 {
    return x[at];
}

fn gain_quad(quad: u32) -> vec4<f32> {
    let i = 4u * quad + vec4<u32>(0u, 1u, 2u, 3u);
    return select(vec4<f32>(), vec4<f32>(gain[i.x], gain[i.y], gain[i.z], gain[i.w]), i < vec4<u32>(params.in_dim));
}
