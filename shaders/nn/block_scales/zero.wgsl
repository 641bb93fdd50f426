// An f16 scale, and the code that stands for 0 in a byte behind it, in a u32. Slot: nn/block_scales.
alias Header = u32;

fn load_header(at: u32) -> Header {
    return header_word(at, 0u);
}

// Of the first or the last 16 elements of a word: factor and offset, which is exact in f32, as what is made with it is.
fn run_scale(header: Header, at: u32, run: u32) -> vec2<f32> {
    let scale = unpack2x16float(header).x;
    return vec2<f32>(scale, -scale * f32((header >> 16u) & 255u));
}

fn scaled(values: vec4<f32>, scale: vec2<f32>) -> vec4<f32> {
    return values * scale.x + scale.y;
}

// A sum of products of 16 codes, and of what they were multiplied by.
fn scaled_sum(product: f32, inputs: f32, scale: vec2<f32>) -> f32 {
    return product * scale.x + inputs * scale.y;
}
