// Beside a product of few rows, in workgroups of its own: what nn/norm.wgsl does, for the elements behind the product's input,
// [rest_groups of rest_dim, normalised | rest_tail, copied]. For latents that lie behind the query latent. Slot: nn/beside.
//
// Grid: z = 1 of a product with one head; x a group of a row, or its tail, rows slowest; y as the product's.
// rest_gain: (rest_groups, rest_dim) f32
@group(0) @binding(7) var<storage, read> rest_gain: array<f32>;
// rest: (rows, rest_groups * rest_dim + rest_tail) f32
@group(0) @binding(8) var<storage, read_write> rest: array<f32>;

// Whether this workgroup is one of those; if so, its work is done.
fn rest_of(group: vec3<u32>, lane: u32) -> bool {
    if (group.z == 0u) {
        return false;
    }
    let stretches = params.rest_groups + 1u;
    let row = group.y * ROWS + group.x / stretches;
    let stretch = group.x % stretches;
    if (group.x >= ROWS * stretches || row >= params.rows) {
        return true;
    }
    let in_tail = stretch == params.rest_groups;
    let width = select(params.rest_dim, params.rest_tail, in_tail);
    let first = stretch * params.rest_dim;
    let source = input_base(row, 0u) + params.in_dim + first;
    let to = row * (params.rest_groups * params.rest_dim + params.rest_tail) + first;
    var sums: array<f32, PADDED>;
    for (var i = lane % JOINED_LANES; i < width; i += JOINED_LANES) {
        let value = input_element(source + i);
        sums[0] += value * value;
    }
    reduce(lane, sums);
    var square = 0.0;
    // unroll
    for (var i = 0u; i < JOINED_SUMS; i++) {
        square += total(0u, i);
    }
    let scale = 1.0 / sqrt(square / f32(params.rest_dim) + params.eps);
    for (var i = lane; i < width; i += LANES) {
        let value = input_element(source + i);
        if (in_tail) {
            rest[to + i] = value;
        } else {
            rest[to + i] = value * scale * rest_gain[first + i];
        }
    }
    return true;
}
