// One vec4<u32> of packed weights holds WEIGHT_QUADS vec4<f32>: 8 f16 elements, low half first.

fn weight_quad(packed: vec4<u32>, quad: u32) -> vec4<f32> {
    let pair = select(packed.xy, packed.zw, quad == 1u);
    return vec4<f32>(unpack2x16float(pair.x), unpack2x16float(pair.y));
}
