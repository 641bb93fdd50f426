// The words of a linear's weights. Slot: nn/weight_words.
// weights: (heads, out_dim, row_words) words as nn/weights has them, rows padded with zeros
@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;
