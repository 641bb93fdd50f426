// y[r, :] = scale table[ids[r], :], for those rows of a table in parts that are in this part
//
// Grid: (ceil(row_words / 64), rows); one lane per word of a table row.
// Constants: VECS_PER_WORD. Parts: nn/weights.

struct Params {
    dim: u32,
    row_words: u32, // words per table row
    table_rows: u32, // of all parts
    first_row: u32, // of this part
    part_rows: u32,
    scale: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
// The table: (part_rows, row_words) words as nn/weights has them, rows padded with zeros
@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;
// ids: (rows) u32; clamped here, validated on the host
@group(0) @binding(2) var<storage, read> ids: array<u32>;
// y: (rows, dim) f32
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= params.row_words) {
        return;
    }
    // Before the first row this is past the last one, too.
    let row = min(ids[id.y], params.table_rows - 1u) - params.first_row;
    if (row >= params.part_rows) {
        return;
    }
    let packed = load_word(row * params.row_words + id.x);
    // unroll
    for (var q = 0u; q < VECS_PER_WORD; q++) {
        let values = unpack_packed(packed)[q];
        let first = (id.x * VECS_PER_WORD + q) * 4u;
        // unroll
        for (var e = 0u; e < 4u; e++) {
            if (first + e < params.dim) {
                y[id.y * params.dim + first + e] = params.scale * values[e];
            }
        }
    }
}
