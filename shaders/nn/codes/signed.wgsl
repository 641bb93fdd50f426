// Codes that are signed bytes. Slot: nn/codes.

fn code_values(bytes: u32) -> vec4<f32> {
    return vec4<f32>(bitcast<vec4<i32>>(vec4<u32>(bytes) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
}

// The same as signed bytes, which CODE_ZERO is to be taken from.
fn code_integers(bytes: u32) -> u32 {
    return bytes;
}

const CODE_ZERO = 0i;
