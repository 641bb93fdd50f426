// A token's new row, element by element, rotated on the way: bindings and functions that every append has.
// Constants: GROUPS STATE_DIM KEY_DIM ROPE_DIM VALUE_FIRST VALUE_DIM ELEMS_PER_U32 PAGE_SIZE, ROTATED_STATE ROTATED_ROPE
// (widths of the rotated spans, 0 = none). Parts: rope/*, kv/wide/*.

struct Params {
    token_count: u32,
    slot_count: u32, // pages * PAGE_SIZE
    slab_pages: u32, // of each slab but the last
    kv_offset: u32,
    kv_row_stride: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// (tokens, GROUPS * STATE_DIM + ROPE_DIM) f32 through kv_offset and kv_row_stride
@group(0) @binding(1) var<storage, read> kv: array<f32>;
// (tokens) u32: page * PAGE_SIZE + offset; past the pool where the token is not kept here
@group(0) @binding(2) var<storage, read> slots: array<u32>;
// (tokens, rotated span / 2) f32 (cos, sin)
@group(0) @binding(3) var<storage, read> cos_sin: array<vec2<f32>>;
// pages of one layer, as u32 (kv/slabs/*)
@group(0) @binding(4) var<storage, read_write> pool: array<PoolWord>;

alias PoolWord = u32;

const U32S_PER_WORD = 4u;
const ELEMS_PER_WORD = ELEMS_PER_U32 * U32S_PER_WORD; // of a state

// Element `i` of a span of `width` that starts at kv[first], rotated over its first `rotated` elements.
fn element(token: u32, first: u32, i: u32, rotated: u32) -> f32 {
    let x = kv[first + i];
    if (i >= rotated) {
        return x;
    }
    let cs = cos_sin[token * (rotated / 2u) + rope_angle(i, rotated)];
    return x * cs.x + rope_sign(i, rotated) * kv[first + rope_partner(i, rotated)] * cs.y;
}

// First element of a token's row.
fn row_first(token: u32) -> u32 {
    return params.kv_offset + token * params.kv_row_stride;
}

// Element `e` of the padded state of `group`; padding is zero.
fn state_element(token: u32, group: u32, e: u32) -> f32 {
    let first = row_first(token) + group * STATE_DIM;
    if (VALUE_FIRST == 0u) {
        if (e < STATE_DIM) {
            return element(token, first, e, ROTATED_STATE);
        }
        return 0.0;
    }
    if (e < KEY_DIM) {
        return wide_rest(group, e, element(token, first, e, ROTATED_STATE));
    }
    if (e >= VALUE_FIRST * ELEMS_PER_WORD && e < VALUE_FIRST * ELEMS_PER_WORD + VALUE_DIM) {
        return kv[first + KEY_DIM + e - VALUE_FIRST * ELEMS_PER_WORD];
    }
    return 0.0;
}

fn rope_element(token: u32, e: u32) -> f32 {
    if (e < ROPE_DIM) {
        return element(token, row_first(token) + GROUPS * STATE_DIM, e, ROTATED_ROPE);
    }
    return 0.0;
}
