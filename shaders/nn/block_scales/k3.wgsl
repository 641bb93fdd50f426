// For 8 words an f16, d; a byte for each word, the lower 4 bits of its two scales; and 4 bits for each word, the upper 2 of
// them. A scale is what 6 bits are above 32, of 16 elements. Slot: nn/block_scales.
alias Header = vec3<u32>;

fn load_header(at: u32) -> Header {
    return vec3<u32>(header_word(at, 0u), header_word(at, 1u + at % 8u / 4u), header_word(at, 3u));
}

// Of the first or the last 16 elements of a word: factor and offset.
fn run_scale(header: Header, at: u32, run: u32) -> vec2<f32> {
    let low = (header.y >> (at % 4u * 8u + run * 4u)) & 15u;
    let high = (header.z >> (at % 8u * 4u + run * 2u)) & 3u;
    return vec2<f32>(unpack2x16float(header.x).x * (f32(low | (high << 4u)) - 32.0), 0.0);
}

fn scaled(values: vec4<f32>, scale: vec2<f32>) -> vec4<f32> {
    return values * scale.x;
}

// A sum of products of 16 codes, and of what they were multiplied by.
fn scaled_sum(product: f32, inputs: f32, scale: vec2<f32>) -> f32 {
    return product * scale.x;
}
