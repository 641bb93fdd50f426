// Some channels of each group's key are kept as f16 where other layouts have the rope key, and the state holds what the f16
// leaves of them: h = f16(x), x - h. So the scale of the state's integers does not hang on them. Slot: kv/wide of
// append_scaled. Constants: GROUPS KEY_DIM WIDE_DIM ROPE_WORDS ROTATED_STATE LANES.

// Of each group: for each element of the key, its place among the wide ones plus 1, or 0; then the WIDE_DIM elements that are.
@group(0) @binding(5) var<storage, read> wide: array<u32>;

var<workgroup> wide_halves: array<f32, WIDE_DIM>;

const WIDE_U32S = WIDE_DIM / 2u;
const ROPE_U32S = ROPE_WORDS * U32S_PER_WORD;

// The number that an f16 is, finite as pack_rope makes it. By its bits: a driver takes packing and unpacking for nothing (NVIDIA's,
// on an H200), so that x - f16(x) would be 0.
fn half_value(bits: u32) -> f32 {
    let exponent = (bits >> 10u) & 31u;
    let mantissa = bits & 0x3ffu;
    let normal = bitcast<f32>(((exponent + 112u) << 23u) | (mantissa << 13u));
    let size = select(normal, f32(mantissa) * 5.9604645e-8, exponent == 0u);
    return select(size, -size, (bits & 0x8000u) != 0u);
}

// Rounds the group's wide channels and writes them, at their place in the plane of rope keys. What is written is the number
// that wide_rest subtracts: the same expression, evaluated twice, may differ in its last bit.
fn wide_keep(token: u32, group: u32, is_value: bool, rope: u32, lane: u32) {
    let first = group * (KEY_DIM + WIDE_DIM) + KEY_DIM;
    for (var i = lane; !is_value && i < WIDE_U32S; i += LANES) {
        let low = min(wide[first + 2u * i], KEY_DIM - 1u);
        let high = min(wide[first + 2u * i + 1u], KEY_DIM - 1u);
        let state = row_first(token) + group * STATE_DIM;
        let packed = pack_rope(vec2<f32>(
            element(token, state, low, ROTATED_STATE), element(token, state, high, ROTATED_STATE)));
        wide_halves[2u * i] = half_value(packed & 0xffffu);
        wide_halves[2u * i + 1u] = half_value(packed >> 16u);
        store_pool_word(u32_at(rope, group * WIDE_U32S + i), packed);
    }
    // The first group clears what fills the last words.
    for (var u = GROUPS * WIDE_U32S + lane; group == 0u && !is_value && u < ROPE_U32S; u += LANES) {
        store_pool_word(u32_at(rope, u), 0u);
    }
    workgroupBarrier();
}

// What is left of element `e` of the group's key, which is `x`.
fn wide_rest(group: u32, e: u32, x: f32) -> f32 {
    let place = wide[group * (KEY_DIM + WIDE_DIM) + e];
    if (place == 0u) {
        return x;
    }
    return x - wide_halves[min(place, WIDE_DIM) - 1u];
}
