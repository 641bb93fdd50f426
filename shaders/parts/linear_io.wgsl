// What both kernels of a linear share: parameters, buffers, where things lie.
struct Params {
    rows: u32,
    out_dim: u32, // rows of the matrix
    in_dim: u32,
    row_vec4: u32, // vec4<u32> per row of weights
    x_offset: u32,
    x_row_stride: u32,
    x_head_stride: u32,
    y_offset: u32,
    y_row_stride: u32,
    y_head_stride: u32,
    flags: u32, // 1: there is a bias, 2: add to y
    tail_dim: u32, // outputs behind the matrix's own: parts/tail_*.wgsl
    eps: f32, // parts/scaling_rms.wgsl, parts/rest_norm.wgsl
    rest_groups: u32, // parts/rest_norm.wgsl
    rest_dim: u32,
    rest_tail: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
// weights: (heads, out_dim, row_vec4) vec4<u32>, rows padded with zeros
@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;
// bias: (heads, out_dim) f32; any buffer where there is none
@group(0) @binding(3) var<storage, read> bias: array<f32>;
// y: (rows, heads, outputs) f32 through y_offset, y_row_stride and y_head_stride
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
// scales: (heads, out_dim) f32; any buffer where the weights have none
@group(0) @binding(6) var<storage, read> scales: array<f32>;

// First element of x for a row; rows past the last repeat it, and are not stored.
fn input_base(row: u32, head: u32) -> u32 {
    return params.x_offset + min(row, params.rows - 1u) * params.x_row_stride + head * params.x_head_stride;
}

// First vec4 of a matrix row; rows past the last repeat it, and are not stored.
fn weight_base(head: u32, out: u32) -> u32 {
    return (head * params.out_dim + min(out, params.out_dim - 1u)) * params.row_vec4;
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

// Writes output `at` of a head of a row, if there is such a row and output.
fn store(row: u32, head: u32, at: u32, value: f32) {
    if (row >= params.rows || at >= params.out_dim / SUMS_PER_OUTPUT + params.tail_dim) {
        return;
    }
    var stored = value;
    if (at >= params.out_dim / SUMS_PER_OUTPUT) {
        stored = tail(row, head, at - params.out_dim / SUMS_PER_OUTPUT);
    }
    let to = params.y_offset + row * params.y_row_stride + head * params.y_head_stride + at;
    if ((params.flags & 2u) != 0u) {
        stored += y[to];
    }
    y[to] = stored;
}
