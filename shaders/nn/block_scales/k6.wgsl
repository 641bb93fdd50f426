// For 8 words an f16, d, then a signed byte for each 16 elements. Slot: nn/block_scales.
alias Header = vec2<u32>;

fn load_header(at: u32) -> Header {
    return vec2<u32>(header_word(at, 0u), header_word(at, 1u + at % 8u / 2u));
}

// Of the first or the last 16 elements of a word: factor and offset.
fn run_scale(header: Header, at: u32, run: u32) -> vec2<f32> {
    let byte = bitcast<i32>(header.y << (24u - at % 2u * 16u - run * 8u)) >> 24u;
    return vec2<f32>(unpack2x16float(header.x).x * f32(byte), 0.0);
}

fn scaled(values: vec4<f32>, scale: vec2<f32>) -> vec4<f32> {
    return values * scale.x;
}

// A sum of products of 16 codes, and of what they were multiplied by.
fn scaled_sum(product: f32, inputs: f32, scale: vec2<f32>) -> f32 {
    return product * scale.x;
}
