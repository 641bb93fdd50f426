// Codes that are whole numbers, ZERO of them below 0. Slot: nn/codes.

// As kv/element/i8.wgsl does it: bytes in an f32's mantissa, under the exponent of 2^23. Exact, rounded or not.
fn code_values(bytes: u32) -> vec4<f32> {
    let placed = vec2<u32>(bytes, bytes >> 16u).xxyy & vec4<u32>(0xffu, 0xff00u, 0xffu, 0xff00u);
    let numbers = bitcast<vec4<f32>>(placed | vec4<u32>(0x4b000000u));
    let units = vec4<f32>(1.0, 0.00390625, 1.0, 0.00390625);
    return fma(numbers, units, vec4<f32>(-8388608.0, -32768.0, -8388608.0, -32768.0) - f32(ZERO));
}

// The same as signed bytes, which CODE_ZERO is to be taken from.
fn code_integers(bytes: u32) -> u32 {
    return bytes;
}

const CODE_ZERO = i32(ZERO);
