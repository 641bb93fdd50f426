// What all kernels of a linear share: parameters, and where rows of input lie.
struct Params {
    rows: u32,
    out_dim: u32, // rows of the matrix
    in_dim: u32,
    row_words: u32, // words per row of weights, of 16 bytes or as nn/weights/blocks.wgsl has them
    x_offset: u32,
    x_row_stride: u32,
    x_head_stride: u32,
    y_offset: u32,
    y_row_stride: u32,
    y_head_stride: u32,
    flags: u32, // 1: there is a bias, 2: add to y; from bit 2 on first workgroup in y, from bit 16 on in x
    tail_dim: u32, // outputs behind the matrix's own: nn/tail
    eps: f32, // nn/gain/rms.wgsl, nn/beside/norm.wgsl
    rest_groups: u32, // nn/beside/norm.wgsl
    rest_dim: u32,
    rest_tail: u32,
    slot_count: u32, // nn/rows_end/cached.wgsl: pages * PAGE_SIZE
    slab_pages: u32, // of each slab of a layer but the last
    scale: f32, // of outputs, but of rows_end/cached
    cap: f32, // nn/output/softcap.wgsl
}
@group(0) @binding(0) var<uniform> params: Params;

// A workgroup of the product's grid, of which a dispatch may be a part.
fn product_group(group: vec3<u32>) -> vec3<u32> {
    return group + vec3<u32>(params.flags >> 16u, (params.flags >> 2u) & 0x3fffu, 0u);
}

// First element of x for a row; rows past the last repeat it, and are not stored.
fn input_base(row: u32, head: u32) -> u32 {
    return params.x_offset + min(row, params.rows - 1u) * params.x_row_stride + head * params.x_head_stride;
}

// Whether a tile from this row on has no rows: none of a linear's grid is without.
fn is_empty(first_row: u32) -> bool {
    return false;
}
