// For 8 words two f16, d and dmin; a byte for each word, 6 bits of its scale and the lower 2 of its offset; and 4 bits for each
// word, the upper ones of its offset. Slot: nn/block_scales.
alias Header = vec3<u32>;

fn load_header(at: u32) -> Header {
    return vec3<u32>(header_word(at, 0u), header_word(at, 1u + at % 8u / 4u), header_word(at, 3u));
}

// Of the first or the last 16 elements of a word: factor and offset.
fn run_scale(header: Header, at: u32, run: u32) -> vec2<f32> {
    let byte = (header.y >> (at % 4u * 8u)) & 255u;
    let offset = (byte >> 6u) | (((header.z >> (at % 8u * 4u)) & 15u) << 2u);
    return unpack2x16float(header.x) * vec2<f32>(f32(byte & 63u), f32(offset));
}

fn scaled(values: vec4<f32>, scale: vec2<f32>) -> vec4<f32> {
    return values * scale.x - scale.y;
}

// A sum of products of 16 codes, and of what they were multiplied by.
fn scaled_sum(product: f32, inputs: f32, scale: vec2<f32>) -> f32 {
    return product * scale.x - inputs * scale.y;
}
