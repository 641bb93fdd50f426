// y[r, h, ..] = [ rotated x[r, h, ..key_dim] | for each group its wide_dim wide channels of that, zeros where h is of another ]
// The queries of a cache whose keys have wide channels (kv/wide/channels.wgsl).
//
// Grid: (ceil(heads * (key_dim + groups * wide_dim) / 64), rows); one lane per element.
// Parts: rope/half.wgsl or rope/interleaved.wgsl.

struct Params {
    heads: u32,
    heads_per_group: u32,
    key_dim: u32,
    wide_dim: u32,
    groups: u32,
    rotated: u32, // key_dim, or 0 for none
    x_offset: u32,
    x_row_stride: u32,
    x_head_stride: u32,
    y_offset: u32,
    y_row_stride: u32,
    y_head_stride: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
// x: (rows, heads, key_dim) f32 through x_offset, x_row_stride and x_head_stride
@group(0) @binding(1) var<storage, read> x: array<f32>;
// cos_sin: (rows, rotated / 2) vec2<f32>
@group(0) @binding(2) var<storage, read> cos_sin: array<vec2<f32>>;
// wide: (groups, key_dim + wide_dim), the channels of a group last
@group(0) @binding(3) var<storage, read> wide: array<u32>;
// y: (rows, heads, key_dim + groups * wide_dim) f32 through y_offset, y_row_stride and y_head_stride
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let width = params.key_dim + params.groups * params.wide_dim;
    if (id.x >= params.heads * width) {
        return;
    }
    let head = id.x / width;
    let i = id.x % width;
    var channel = i;
    var held = true;
    if (i >= params.key_dim) {
        let group = (i - params.key_dim) / params.wide_dim;
        let place = (i - params.key_dim) % params.wide_dim;
        held = group == head / params.heads_per_group;
        channel = min(wide[group * (params.key_dim + params.wide_dim) + params.key_dim + place], params.key_dim - 1u);
    }
    let first = params.x_offset + id.y * params.x_row_stride + head * params.x_head_stride;
    var value = x[first + channel];
    if (channel < params.rotated) {
        let angle = cos_sin[id.y * (params.rotated / 2u) + rope_angle(channel, params.rotated)];
        let partner = x[first + rope_partner(channel, params.rotated)];
        value = value * angle.x + rope_sign(channel, params.rotated) * partner * angle.y;
    }
    y[params.y_offset + id.y * params.y_row_stride + head * params.y_head_stride + i] = select(0.0, value, held);
}
