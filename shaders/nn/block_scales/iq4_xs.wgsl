// For 8 words an f16, d, and 16 bits, the upper 2 of each word's scale; then a u32, the lower 4. A scale is what 6 bits are
// above 32. Slot: nn/block_scales.
alias Header = vec2<u32>;

fn load_header(at: u32) -> Header {
    return vec2<u32>(header_word(at, 0u), header_word(at, 1u));
}

// Of the first or the last 16 elements of a word: factor and offset.
fn run_scale(header: Header, at: u32, run: u32) -> vec2<f32> {
    let word = at % 8u;
    let bits = ((header.y >> (word * 4u)) & 15u) | (((header.x >> (16u + word * 2u)) & 3u) << 4u);
    return vec2<f32>(unpack2x16float(header.x).x * (f32(bits) - 32.0), 0.0);
}

fn scaled(values: vec4<f32>, scale: vec2<f32>) -> vec4<f32> {
    return values * scale.x;
}

// A sum of products of 16 codes, and of what they were multiplied by.
fn scaled_sum(product: f32, inputs: f32, scale: vec2<f32>) -> f32 {
    return product * scale.x;
}
