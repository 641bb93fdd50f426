// Codes that are floats of 4 bits, doubled: 0, 1, 2, 3, 4, 6, 8, 12 under a sign; the negative zero is a zero. Slot: nn/codes.

fn code_values(bytes: u32) -> vec4<f32> {
    let codes = (vec4<u32>(bytes) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(15u);
    let magnitudes = vec4<f32>((vec4<u32>(0xc8643210u) >> ((codes & vec4<u32>(7u)) * 4u)) & vec4<u32>(15u));
    return select(magnitudes, -magnitudes, codes > vec4<u32>(8u));
}

// The same as signed bytes, which CODE_ZERO is to be taken from.
fn code_integers(bytes: u32) -> u32 {
    return pack4xI8(vec4<i32>(code_values(bytes)));
}

const CODE_ZERO = 0i;
