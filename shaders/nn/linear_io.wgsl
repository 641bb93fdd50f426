// What the products of a linear share: buffers, where weights lie, how outputs are stored. Parts: linear_params,
// nn/weight_words/*.
// bias: (heads, out_dim) f32; any buffer where there is none
@group(0) @binding(3) var<storage, read> bias: array<f32>;
// y: (rows, heads, outputs) f32 through y_offset, y_row_stride and y_head_stride
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

// First word of a matrix row; rows past the last repeat it, and are not stored.
fn weight_base(head: u32, out: u32) -> u32 {
    return (head * params.out_dim + min(out, params.out_dim - 1u)) * params.row_words;
}

// A matrix row's product with its scale, that of the input, and its bias.
fn with_bias(head: u32, out: u32, product: f32) -> f32 {
    let at = head * params.out_dim + min(out, params.out_dim - 1u);
    let value = product * row_scale(at);
    if ((params.flags & 1u) != 0u) {
        return value + bias[at];
    }
    return value;
}

// Writes output `at` of a head of a row, times `scale`, if there is such a row and output.
fn store(row: u32, head: u32, at: u32, value: f32) {
    if (row >= params.rows || at >= params.out_dim / SUMS_PER_OUTPUT + params.tail_dim) {
        return;
    }
    var stored = value * params.scale;
    if (at >= params.out_dim / SUMS_PER_OUTPUT) {
        stored = tail(row, head, at - params.out_dim / SUMS_PER_OUTPUT);
    }
    let to = params.y_offset + row * params.y_row_stride + head * params.y_head_stride + at;
    if ((params.flags & 2u) != 0u) {
        stored += y[to];
    }
    y[to] = stored;
}
