// Weights in blocks (src/nn/linear/blocks/): a word is 32 elements, whole numbers under scales. Slot: nn/weights.
// Parts: block_planes, and one each of nn/bits/*, nn/codes/*, nn/block_scales/*.

struct Packed {
    codes: Codes,
    header: Header,
    at: u32,
}

// Words are counted from the first row of the first matrix on.
fn load_word(at: u32) -> Packed {
    return Packed(load_codes(at), load_header(at), at);
}

fn unpack_packed(packed: Packed) -> array<vec4<f32>, 8> {
    let first = run_scale(packed.header, packed.at, 0u);
    let last = run_scale(packed.header, packed.at, 1u);
    return array<vec4<f32>, 8>(
        scaled(code_values(code_bytes(packed.codes, 0u)), first),
        scaled(code_values(code_bytes(packed.codes, 1u)), first),
        scaled(code_values(code_bytes(packed.codes, 2u)), first),
        scaled(code_values(code_bytes(packed.codes, 3u)), first),
        scaled(code_values(code_bytes(packed.codes, 4u)), last),
        scaled(code_values(code_bytes(packed.codes, 5u)), last),
        scaled(code_values(code_bytes(packed.codes, 6u)), last),
        scaled(code_values(code_bytes(packed.codes, 7u)), last),
    );
}

// What a matrix row's products are multiplied by: the scales are in the weights.
fn row_scale(at: u32) -> f32 {
    return 1.0;
}
