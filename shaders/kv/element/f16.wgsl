// Cache and weight words of 8 f16 elements. Works without the shader-f16 feature. Slot: kv/element.

fn unpack_word(raw: vec4<u32>) -> array<vec4<f32>, 2> {
    return array<vec4<f32>, 2>(
        vec4<f32>(unpack2x16float(raw.x), unpack2x16float(raw.y)),
        vec4<f32>(unpack2x16float(raw.z), unpack2x16float(raw.w)),
    );
}
