// One vec4<u32> of packed weights holds WEIGHT_QUADS vec4<f32>: 4 f32 elements by bitcast.

fn weight_quad(packed: vec4<u32>, quad: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(packed);
}
