// Cache words of 16 signed bytes, to be multiplied by a scale. Slot: kv/element.

// Whole numbers below 2^23 in an f32's mantissa, under the exponent of 2^23; bytes with 128 added, so that none is
// negative. Two operations an element: conversions of integers are slow on many GPUs. Exact, rounded or not.
fn unpack_bytes(raw: u32) -> vec4<f32> {
    let biased = raw ^ 0x80808080u;
    let bytes = vec2<u32>(biased, biased >> 16u).xxyy & vec4<u32>(0xffu, 0xff00u, 0xffu, 0xff00u);
    let numbers = bitcast<vec4<f32>>(bytes | vec4<u32>(0x4b000000u));
    let units = vec4<f32>(1.0, 0.00390625, 1.0, 0.00390625);
    return fma(numbers, units, vec4<f32>(-8388736.0, -32896.0, -8388736.0, -32896.0));
}

fn unpack_word(raw: vec4<u32>) -> array<vec4<f32>, 4> {
    return array<vec4<f32>, 4>(unpack_bytes(raw.x), unpack_bytes(raw.y), unpack_bytes(raw.z), unpack_bytes(raw.w));
}
