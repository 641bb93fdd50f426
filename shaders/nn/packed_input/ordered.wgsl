// The input of linear_matrix, as linear_pack leaves it. Slot: nn/packed_input, as nn/weight_words: nothing is written to `halves`.
// x: (rows, heads, in_dim) f32 through x_offset, x_row_stride and x_head_stride; for nn/tail/* alone
@group(0) @binding(2) var<storage, read> x: array<f32>;
// halves: (rows, heads, in_dim padded) f16, then (rows, heads) vec4<u32> whose first word is a row's f32 factor
@group(0) @binding(5) var<storage, read_write> halves: array<vec4<u32>>;

fn input_element(at: u32) -> f32 {
    return x[at];
}
