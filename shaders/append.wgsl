// Append: writes the new tokens' rows into their pages, rotating the key part on the way.
//
//   row(token) = [ state_0 | .. | state_{groups-1} | rope key ],  key part := RoPE(key part, position(token))
//
// Zadouri et al., arXiv 2505.21487, §3.3: GTA and GLA cache un-rotated states and one rotated key; GQA rotates the
// key half of each state. A page is planes: per group [page_size][STATE_WORDS], then [page_size][ROPE_WORDS] vec4s.
// A state is its key elements, padded to a word, then (unless tied) its value elements, padded to a word.
//
// Grid: one lane per u32 of a destination row; x over u32s, y over tokens (z folds y past 65,535).
// Constants: GROUPS STATE_DIM KEY_DIM ROPE_DIM VALUE_FIRST VALUE_DIM STATE_WORDS ROPE_WORDS PAGE_SIZE
//            ELEMS_PER_U32 ROTATED_STATE ROTATED_ROPE (widths of the rotated spans, 0 = none).
// Parts: elements_*, rope_*.

struct Params {
    token_count: u32,
    slot_count: u32, // pages * PAGE_SIZE
}

@group(0) @binding(0) var<uniform> params: Params;
// (tokens, GROUPS * STATE_DIM + ROPE_DIM) f32
@group(0) @binding(1) var<storage, read> kv: array<f32>;
// (tokens) u32: page * PAGE_SIZE + offset
@group(0) @binding(2) var<storage, read> slots: array<u32>;
// (tokens, rotated span / 2) f32 (cos, sin)
@group(0) @binding(3) var<storage, read> cos_sin: array<vec2<f32>>;
// pages of one layer, as u32
@group(0) @binding(4) var<storage, read_write> pool: array<u32>;

const KV_DIM = GROUPS * STATE_DIM + ROPE_DIM;
const U32S_PER_WORD = 4u;
const ROW_U32S = (GROUPS * STATE_WORDS + ROPE_WORDS) * U32S_PER_WORD;
const ELEMS_PER_WORD = ELEMS_PER_U32 * U32S_PER_WORD;

// Element `i` of a span of `width` that starts at kv[first], rotated over its first `rotated` elements.
fn element(token: u32, first: u32, i: u32, rotated: u32) -> f32 {
    let x = kv[first + i];
    if (i >= rotated) {
        return x;
    }
    let cs = cos_sin[token * (rotated / 2u) + rope_angle(i, rotated)];
    return x * cs.x + rope_sign(i, rotated) * kv[first + rope_partner(i, rotated)] * cs.y;
}

// Element `e` of the padded state of `group`; padding is zero.
fn state_element(token: u32, group: u32, e: u32) -> f32 {
    let first = token * KV_DIM + group * STATE_DIM;
    if (VALUE_FIRST == 0u) {
        if (e < STATE_DIM) {
            return element(token, first, e, ROTATED_STATE);
        }
        return 0.0;
    }
    if (e < KEY_DIM) {
        return element(token, first, e, ROTATED_STATE);
    }
    if (e >= VALUE_FIRST * ELEMS_PER_WORD && e < VALUE_FIRST * ELEMS_PER_WORD + VALUE_DIM) {
        return kv[first + KEY_DIM + e - VALUE_FIRST * ELEMS_PER_WORD];
    }
    return 0.0;
}

fn rope_element(token: u32, e: u32) -> f32 {
    if (e < ROPE_DIM) {
        return element(token, token * KV_DIM + GROUPS * STATE_DIM, e, ROTATED_ROPE);
    }
    return 0.0;
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let token = id.z * grid.y + id.y;
    if (id.x >= ROW_U32S || token >= params.token_count) {
        return;
    }
    // The host has checked the slots; the clamp keeps a corrupted buffer from reaching another binding.
    let slot = min(slots[token], params.slot_count - 1u);
    let page_first = slot / PAGE_SIZE * PAGE_SIZE * ROW_U32S;
    let offset = slot % PAGE_SIZE;
    let group = id.x / (STATE_WORDS * U32S_PER_WORD);
    let in_state = group < GROUPS;
    let first = select(GROUPS, group, in_state) * STATE_WORDS * U32S_PER_WORD;
    let u = id.x - first;
    var values: array<f32, ELEMS_PER_U32>;
    for (var i = 0u; i < ELEMS_PER_U32; i++) {
        if (in_state) {
            values[i] = state_element(token, group, u * ELEMS_PER_U32 + i);
        } else {
            values[i] = rope_element(token, u * ELEMS_PER_U32 + i);
        }
    }
    let row_u32s = select(ROPE_WORDS, STATE_WORDS, in_state) * U32S_PER_WORD;
    pool[page_first + first * PAGE_SIZE + offset * row_u32s + u] = pack_elements(values);
}
