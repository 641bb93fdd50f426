// Beside a product of few rows, in workgroups of its own: the elements behind the product's input are new rows of the cache,
// [GROUPS of STATE_DIM, normalised | ROPE_DIM, rotated], and go into their pages, as nn/norm.wgsl and then kv/append.wgsl have it. For
// latents that lie behind the query latent. Nothing of a row is padded. Slot: nn/beside.
//
// Grid: z = 1 of a product with one head; x a state of a row, or its rope key, rows slowest; y as the product's.
// Constants: PAGE_SIZE ELEMS_PER_U32 ROTATED_ROPE. Parts: rope/*, kv/pack/*, page, kv/slabs/*, kv/slab_stores/*.
// rest_gain: (GROUPS, STATE_DIM) f32
@group(0) @binding(7) var<storage, read> rest_gain: array<f32>;
// cos_sin: (rows, ROTATED_ROPE / 2) vec2<f32>
@group(0) @binding(8) var<storage, read> cos_sin: array<vec2<f32>>;
// slots: (rows) u32, page * PAGE_SIZE + offset; past the pool where the token is not kept here
@group(0) @binding(9) var<storage, read> slots: array<u32>;
// pages of one layer, as u32 (kv/slabs/*)
@group(0) @binding(10) var<storage, read_write> pool: array<PoolWord>;

alias PoolWord = u32;

// Element i of the rope key that begins at element `source`, rotated.
fn rotated_key(row: u32, source: u32, i: u32) -> f32 {
    let value = input_element(source + i);
    if (i >= ROTATED_ROPE) {
        return value;
    }
    let angle = cos_sin[row * (ROTATED_ROPE / 2u) + rope_angle(i, ROTATED_ROPE)];
    let partner = input_element(source + rope_partner(i, ROTATED_ROPE));
    return value * angle.x + rope_sign(i, ROTATED_ROPE) * partner * angle.y;
}

// First word of a state of the row's token, or of its rope key.
fn row_word(row: u32, stretch: u32) -> u32 {
    let slot = slots[row];
    let page = slot / PAGE_SIZE;
    let offset = slot % PAGE_SIZE;
    if (stretch < GROUPS) {
        return page_state(page, PAGE_SIZE, offset, stretch);
    }
    return page_rope(page, PAGE_SIZE, offset);
}

// Whether this workgroup is one of those; if so, its work is done.
fn rest_of(group: vec3<u32>, lane: u32) -> bool {
    if (group.z == 0u) {
        return false;
    }
    let stretches = GROUPS + 1u;
    let row = group.y * ROWS + group.x / stretches;
    let stretch = group.x % stretches;
    if (group.x >= ROWS * stretches || row >= params.rows) {
        return true;
    }
    let is_state = stretch < GROUPS;
    let width = select(ROPE_DIM, STATE_DIM, is_state);
    let first = stretch * STATE_DIM;
    let source = input_base(row, 0u) + params.in_dim + first;
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
    let scale = 1.0 / sqrt(square / f32(STATE_DIM) + params.eps);
    // A token of another rank, or a corrupted buffer: nothing is written.
    if (slots[row] >= params.slot_count) {
        return true;
    }
    let word = row_word(row, stretch);
    for (var u = lane; u < width / ELEMS_PER_U32; u += LANES) {
        var values: array<f32, ELEMS_PER_U32>;
        // unroll
        for (var e = 0u; e < ELEMS_PER_U32; e++) {
            let i = u * ELEMS_PER_U32 + e;
            if (is_state) {
                values[e] = input_element(source + i) * scale * rest_gain[first + i];
            } else {
                values[e] = rotated_key(row, source, i);
            }
        }
        store_pool_word(u32_at(word, u), pack_elements(values));
    }
    return true;
}
