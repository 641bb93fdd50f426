// y[r, h, ..] = [ x[r, h, ..copy_dim] | rotated x[r, h, copy_dim .. copy_dim + rope_dim] ]
// with angles from a table made on the host, whose sines are exact at any position.
//
// Grid: (ceil(heads * (copy_dim + rope_dim) / 64), rows); one lane per element.
// Parts: rope/half.wgsl or rope/interleaved.wgsl.

struct Params {
    heads: u32,
    copy_dim: u32,
    rope_dim: u32,
    x_offset: u32,
    x_row_stride: u32,
    x_head_stride: u32,
    y_offset: u32,
    y_row_stride: u32,
    y_head_stride: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
// x: (rows, heads, copy_dim + rope_dim) f32 through x_offset, x_row_stride and x_head_stride
@group(0) @binding(1) var<storage, read> x: array<f32>;
// cos_sin: (rows, rope_dim / 2) vec2<f32>
@group(0) @binding(2) var<storage, read> cos_sin: array<vec2<f32>>;
// y: (rows, heads, copy_dim + rope_dim) f32 through y_offset, y_row_stride and y_head_stride
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let width = params.copy_dim + params.rope_dim;
    if (id.x >= params.heads * width) {
        return;
    }
    let head = id.x / width;
    let i = id.x % width;
    let x_first = params.x_offset + id.y * params.x_row_stride + head * params.x_head_stride;
    var value = x[x_first + i];
    if (i >= params.copy_dim) {
        let r = i - params.copy_dim;
        let angle = cos_sin[id.y * (params.rope_dim / 2u) + rope_angle(r, params.rope_dim)];
        let partner = x[x_first + params.copy_dim + rope_partner(r, params.rope_dim)];
        value = value * angle.x + rope_sign(r, params.rope_dim) * partner * angle.y;
    }
    y[params.y_offset + id.y * params.y_row_stride + head * params.y_head_stride + i] = value;
}
