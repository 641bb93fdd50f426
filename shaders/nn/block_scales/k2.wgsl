// For 8 words two f16, d and dmin, then a byte for each 16 elements: a scale and an offset of 4 bits. Slot: nn/block_scales.
alias Header = vec2<u32>;

fn load_header(at: u32) -> Header {
    return vec2<u32>(header_word(at, 0u), header_word(at, 1u + at % 8u / 2u));
}

// Of the first or the last 16 elements of a word: factor and offset.
fn run_scale(header: Header, at: u32, run: u32) -> vec2<f32> {
    let byte = header.y >> (at % 2u * 16u + run * 8u);
    return unpack2x16float(header.x) * vec2<f32>(f32(byte & 15u), f32((byte >> 4u) & 15u));
}

fn scaled(values: vec4<f32>, scale: vec2<f32>) -> vec4<f32> {
    return values * scale.x - scale.y;
}

// A sum of products of 16 codes, and of what they were multiplied by.
fn scaled_sum(product: f32, inputs: f32, scale: vec2<f32>) -> f32 {
    return product * scale.x - inputs * scale.y;
}
