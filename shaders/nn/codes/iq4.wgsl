// Codes of a table of 16 values in steps that suit normal weights: -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53,
// 69, 89, 113. A byte each, with 128 added. Slot: nn/codes.

fn code_values(bytes: u32) -> vec4<f32> {
    let codes = (vec4<u32>(bytes) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(15u);
    let odd_four = (codes & vec4<u32>(4u)) != vec4<u32>();
    let low = select(vec4<u32>(0x3f2d1801u), vec4<u32>(0x766a5d4fu), odd_four);
    let high = select(vec4<u32>(0xa6998d81u), vec4<u32>(0xf1d9c5b5u), odd_four);
    let four = select(low, high, codes >= vec4<u32>(8u));
    return vec4<f32>((four >> ((codes & vec4<u32>(3u)) * 8u)) & vec4<u32>(255u)) - 128.0;
}

// The same as signed bytes, which CODE_ZERO is to be taken from.
fn code_integers(bytes: u32) -> u32 {
    return pack4xI8(vec4<i32>(code_values(bytes)));
}

const CODE_ZERO = 0i;
