// Cache words of 16 signed bytes, to be multiplied by a scale. Slot: elements_*.

fn unpack_bytes(raw: u32) -> vec4<f32> {
    let bits = bitcast<i32>(raw);
    return vec4<f32>(vec4<i32>(
        extractBits(bits, 0u, 8u), extractBits(bits, 8u, 8u), extractBits(bits, 16u, 8u), extractBits(bits, 24u, 8u),
    ));
}

fn unpack_word(raw: vec4<u32>) -> array<vec4<f32>, 4> {
    return array<vec4<f32>, 4>(unpack_bytes(raw.x), unpack_bytes(raw.y), unpack_bytes(raw.z), unpack_bytes(raw.w));
}

// Two f16 words as one word's elements: an i8 cache holds rope keys in f16.
fn unpack_rope(first: vec4<u32>, second: vec4<u32>) -> array<vec4<f32>, 4> {
    return array<vec4<f32>, 4>(
        vec4<f32>(unpack2x16float(first.x), unpack2x16float(first.y)),
        vec4<f32>(unpack2x16float(first.z), unpack2x16float(first.w)),
        vec4<f32>(unpack2x16float(second.x), unpack2x16float(second.y)),
        vec4<f32>(unpack2x16float(second.z), unpack2x16float(second.w)),
    );
}

// Whole numbers of -127 to 127.
fn pack_elements(values: array<f32, 4>) -> u32 {
    var packed = 0u;
    for (var i = 0u; i < 4u; i++) {
        packed |= (u32(i32(values[i])) & 0xffu) << (8u * i);
    }
    return packed;
}

fn pack_rope(values: vec2<f32>) -> u32 {
    return pack2x16float(clamp(values, vec2<f32>(-65504.0), vec2<f32>(65504.0)));
}
