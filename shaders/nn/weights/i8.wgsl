// Weights with a scale per row of the matrix. Slot: nn/weights. Constants: SCALES_BINDING. Parts: weight_bytes, and what binds `weights`.
// scales: (heads or experts, out_dim) f32
@group(0) @binding(SCALES_BINDING) var<storage, read> scales: array<f32>;
alias Packed = vec4<u32>;

// A word of 16 bytes. Words are counted from the first row of the first matrix on.
fn load_word(at: u32) -> Packed {
    return weights[at];
}

fn unpack_packed(packed: Packed) -> array<vec4<f32>, VECS_PER_WORD> {
    return unpack_word(packed);
}

// What a matrix row's products are multiplied by.
fn row_scale(at: u32) -> f32 {
    return scales[at];
}
