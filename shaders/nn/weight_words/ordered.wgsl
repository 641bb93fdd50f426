// The words of a linear's weights. Slot: nn/weight_words. No kernel writes to them, but a driver that knows so may move reads past
// the products they are issued ahead of, to where they are used.
// weights: (heads, out_dim, row_words) words as nn/weights has them, rows padded with zeros
@group(0) @binding(1) var<storage, read_write> weights: array<vec4<u32>>;
