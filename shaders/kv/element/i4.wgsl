// Cache words of 16 signed numbers of 4 bits, to be multiplied by a scale; decode's words of them are 8 bytes. Slot: kv/element.

// As kv/element/i8: numbers below 2^23 in an f32's mantissa, under the exponent of 2^23, then back to their size and to their
// sign by one product and sum. Four of them lie below bit 16 and need no shift. Exact, rounded or not.
fn unpack_low(biased: u32) -> vec4<f32> {
    let nibbles = vec4<u32>(biased) & vec4<u32>(0xfu, 0xf0u, 0xf00u, 0xf000u);
    let numbers = bitcast<vec4<f32>>(nibbles | vec4<u32>(0x4b000000u));
    let units = vec4<f32>(1.0, 0.0625, 0.00390625, 0.000244140625);
    // -(2^23 units + 8)
    return fma(numbers, units, vec4<f32>(-8388616.0, -524296.0, -32776.0, -2056.0));
}

fn unpack_word(raw: vec2<u32>) -> array<vec4<f32>, 4> {
    // 8 added to each, so that none is negative.
    let biased = raw ^ vec2<u32>(0x88888888u);
    let upper = biased >> vec2<u32>(16u);
    return array<vec4<f32>, 4>(unpack_low(biased.x), unpack_low(upper.x), unpack_low(biased.y), unpack_low(upper.y));
}
