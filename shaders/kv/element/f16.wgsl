// Cache and weight words of 8 f16 elements. Works without the shader-f16 feature. Slot: kv/element.

fn unpack_word(raw: vec4<u32>) -> array<vec4<f32>, 2> {
    return array<vec4<f32>, 2>(
        vec4<f32>(unpack2x16float(raw.x), unpack2x16float(raw.y)),
        vec4<f32>(unpack2x16float(raw.z), unpack2x16float(raw.w)),
    );
}

// Values beyond f16's range become its largest; WGSL leaves their packing undefined.
fn pack_elements(values: array<f32, 2>) -> u32 {
    return pack2x16float(clamp(vec2<f32>(values[0], values[1]), vec2<f32>(-65504.0), vec2<f32>(65504.0)));
}
