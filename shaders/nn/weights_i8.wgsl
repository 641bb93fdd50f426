// Weight words of 16 signed bytes, with a scale per row of the matrix. Slots: elements_* and weights_*.

fn unpack_bytes(raw: u32) -> vec4<f32> {
    return vec4<f32>(bitcast<vec4<i32>>(vec4<u32>(raw) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
}

fn unpack_word(raw: vec4<u32>) -> array<vec4<f32>, 4> {
    return array<vec4<f32>, 4>(
        unpack_bytes(raw.x),
        unpack_bytes(raw.y),
        unpack_bytes(raw.z),
        unpack_bytes(raw.w),
    );
}

fn row_scale(at: u32) -> f32 {
    return scales[at];
}
