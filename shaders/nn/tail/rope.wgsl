// Behind the outputs of a linear: the tail_dim elements behind its input, rotated. For absorbed queries, [nope | rope] to
// [W nope | rotated rope]. Parts: rope/half.wgsl or rope/interleaved.wgsl. Slot: nn/tail.
// cos_sin: (rows, tail_dim / 2) vec2<f32>
@group(0) @binding(7) var<storage, read> cos_sin: array<vec2<f32>>;

fn tail(row: u32, head: u32, i: u32) -> f32 {
    let first = input_base(row, head) + params.in_dim;
    let angle = cos_sin[row * (params.tail_dim / 2u) + rope_angle(i, params.tail_dim)];
    let partner = input_element(first + rope_partner(i, params.tail_dim));
    return input_element(first + i) * angle.x + rope_sign(i, params.tail_dim) * partner * angle.y;
}
