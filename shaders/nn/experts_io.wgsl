// Rows of linear_tile are the entries of a list by experts_list, heads are experts; linear_params and linear_io otherwise.
// Parts: experts_listed, nn/expert_bias/*.

struct Params {
    pairs: u32, // rows * experts of a row
    experts: u32,
    out_dim: u32, // rows of a matrix
    in_dim: u32,
    row_words: u32, // words per row of a matrix
    pairs_per_row: u32, // pairs that share a row of x: all of a row's for gate and up, 1 for down
    x_row_stride: u32,
    y_row_stride: u32, // of a pair
    first_out: u32, // output that stands first in a row of y
    first_group: u32, // first workgroup of the grid in x, of which a dispatch may be a part
    first_tile: u32, // and in y
}
@group(0) @binding(0) var<uniform> params: Params;
// weights: (experts, out_dim, row_words) words as nn/weights has them, rows padded with zeros
@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;
// list: (tiles, TILE_ROWS) u32
@group(0) @binding(3) var<storage, read> list: array<u32>;
// y: (pairs, outputs from first_out on) f32, y_row_stride apart
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
// ids: (pairs) u32
@group(0) @binding(7) var<storage, read> ids: array<u32>;

// Outputs, tile, and the expert of the whole tile.
fn product_group(group: vec3<u32>) -> vec3<u32> {
    let tile = group.y + params.first_tile;
    return vec3<u32>(group.x + params.first_group, tile, expert_of(min(list[tile * TILE_ROWS], params.pairs - 1u)));
}

// The grid has room for any choice of experts; most of it is not there.
fn is_empty(first_row: u32) -> bool {
    return list[first_row] == NONE;
}

// First element of x for an entry; those that are no pair repeat some row, and are not stored.
fn input_base(entry: u32, expert: u32) -> u32 {
    return min(list[entry], params.pairs - 1u) / params.pairs_per_row * params.x_row_stride;
}

// First word of a matrix row; rows past the last repeat it, and are not stored.
fn weight_base(expert: u32, out: u32) -> u32 {
    return (expert * params.out_dim + min(out, params.out_dim - 1u)) * params.row_words;
}

// A matrix row's product with its scale and bias.
fn with_bias(expert: u32, out: u32, product: f32) -> f32 {
    let at = expert * params.out_dim + min(out, params.out_dim - 1u);
    return product * row_scale(at) + bias_at(at);
}

// Writes output `at` of an entry, if there is such a pair and output.
fn store(entry: u32, expert: u32, at: u32, value: f32) {
    let pair = list[entry];
    if (pair != NONE && at < params.out_dim / SUMS_PER_OUTPUT) {
        y[pair * params.y_row_stride + at - params.first_out] = value;
    }
}
