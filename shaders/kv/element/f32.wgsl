// Cache and weight words of 4 f32 elements. Slot: kv/element.

fn unpack_word(raw: vec4<u32>) -> array<vec4<f32>, 1> {
    return array<vec4<f32>, 1>(bitcast<vec4<f32>>(raw));
}
