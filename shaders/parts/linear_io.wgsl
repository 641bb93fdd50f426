// What both kernels of a linear share: parameters, weights, bias, output.
struct Params {
    rows: u32,
    out_dim: u32,
    in_dim: u32,
    row_vec4: u32, // vec4<u32> per row of weights
    x_offset: u32,
    x_row_stride: u32,
    x_head_stride: u32,
    y_offset: u32,
    y_row_stride: u32,
    y_head_stride: u32,
    has_bias: u32,
    accumulate: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
// weights: (heads, out_dim, row_vec4) vec4<u32>, rows padded with zeros
@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;
// bias: (heads, out_dim) f32; any buffer where has_bias is 0
@group(0) @binding(3) var<storage, read> bias: array<f32>;
// y: (rows, heads, out_dim) f32 through y_offset, y_row_stride and y_head_stride
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

// First element of x for a row; rows past the last repeat it, and are not stored.
fn input_base(row: u32, head: u32) -> u32 {
    return params.x_offset + min(row, params.rows - 1u) * params.x_row_stride + head * params.x_head_stride;
}

// First vec4 of an output's weights; outputs past the last repeat it, and are not stored.
fn weight_base(head: u32, out: u32) -> u32 {
    return (head * params.out_dim + min(out, params.out_dim - 1u)) * params.row_vec4;
}

fn store(row: u32, head: u32, out: u32, sum: f32) {
    if (row >= params.rows || out >= params.out_dim) {
        return;
    }
    var value = sum;
    if (params.has_bias != 0u) {
        value += bias[head * params.out_dim + out];
    }
    let at = params.y_offset + row * params.y_row_stride + head * params.y_head_stride + out;
    if (params.accumulate != 0u) {
        value += y[at];
    }
    y[at] = value;
}
