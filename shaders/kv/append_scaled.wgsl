// Append for caches of integers: as `append`, with a scale per token, group and span of the state.
//
//   scale = max |x| / LEVELS over the span,  q = round(x / scale),  so that x = scale * q to within half a scale
//
// A span is a state's key or its value where they lie apart, the whole state where it is both: what is scored and what is
// averaged may differ in size by much (spans of real keys and values do). Rope keys are not scaled but kept as f16.
//
// Grid: x = group * SPANS + span, and after them all the rope key; y (and z, folded past 65,535) = token; lanes over u32s.
// LEVELS: 127 in i8, 7 in i4. Constants: those of its parts, and SPANS. Parts: kv/pack/i8 or i4, rope/*, page,
// kv/slabs/*, kv/slab_stores/*, append_row, kv/wide/*.

const LANES = 64u;
// A span whose largest value is below is kept as zeros: its inverse would leave f32.
const LEAST = 1.0e-30;
const LARGE = 1.0e18;
const LOWER = 5.421010862427522e-20; // 2^-64
const MOST = 3.4028234663852886e38; // the largest f32: infinity is taken as it

var<workgroup> tops: array<f32, LANES>;

// Two of the rope key. WGSL leaves the packing of values beyond f16's range undefined.
fn pack_rope(values: vec2<f32>) -> u32 {
    return pack2x16float(clamp(values, vec2<f32>(-65504.0), vec2<f32>(65504.0)));
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let token = workgroup.z * grid.y + workgroup.y;
    if (token >= params.token_count) {
        return;
    }
    // A token of another rank, or a corrupted buffer: nothing is written. The same for all lanes.
    let slot = slots[token];
    if (slot >= params.slot_count) {
        return;
    }
    let page = slot / PAGE_SIZE;
    let offset = slot % PAGE_SIZE;
    if (workgroup.x == GROUPS * SPANS) {
        let first = page_rope(page, PAGE_SIZE, offset);
        for (var u = lane; u < ROPE_WORDS * U32S_PER_WORD; u += LANES) {
            let halves = vec2<f32>(rope_element(token, 2u * u), rope_element(token, 2u * u + 1u));
            store_pool_word(u32_at(first, u), pack_rope(halves));
        }
        return;
    }

    let group = workgroup.x / SPANS;
    let is_value = workgroup.x % SPANS == 1u;
    wide_keep(token, group, is_value, page_rope(page, PAGE_SIZE, offset), lane);
    let span_first = select(0u, VALUE_FIRST, is_value) * U32S_PER_WORD;
    let span_last = select(STATE_WORDS, VALUE_FIRST, SPANS == 2u && !is_value) * U32S_PER_WORD;
    var top = 0.0;
    for (var u = span_first + lane; u < span_last; u += LANES) {
        // unroll
        for (var e = 0u; e < ELEMS_PER_U32; e++) {
            top = max(top, abs(state_element(token, group, u * ELEMS_PER_U32 + e)));
        }
    }
    tops[lane] = top;
    workgroupBarrier();
    for (var stride = LANES / 2u; stride > 0u; stride /= 2u) {
        if (lane < stride) {
            tops[lane] = max(tops[lane], tops[lane + stride]);
        }
        workgroupBarrier();
    }
    top = min(tops[0], MOST);
    let held = top >= LEAST;
    // A large one is brought down first: a GPU may divide by the inverse, which is subnormal from 2^126 on, and so zero.
    let lower = select(1.0, LOWER, top > LARGE);
    let inverse = select(0.0, LEVELS / max(top * lower, LEAST) * lower, held);

    let state = page_state(page, PAGE_SIZE, offset, group);
    for (var u = span_first + lane; u < span_last; u += LANES) {
        var whole: array<f32, ELEMS_PER_U32>;
        // unroll
        for (var e = 0u; e < ELEMS_PER_U32; e++) {
            let x = state_element(token, group, u * ELEMS_PER_U32 + e);
            whole[e] = clamp(round(x * inverse), -LEVELS, LEVELS);
        }
        store_pool_word(u32_at(state, u), pack_elements(whole));
    }
    let scales = page_scales(page, PAGE_SIZE, offset);
    if (lane == 0u) {
        store_pool_word(u32_at(scales, workgroup.x), bitcast<u32>(select(0.0, top / LEVELS, held)));
    }
    // The first workgroup clears what fills the last word.
    if (workgroup.x == 0u && GROUPS * SPANS + lane < SCALE_WORDS * U32S_PER_WORD) {
        store_pool_word(u32_at(scales, GROUPS * SPANS + lane), 0u);
    }
}
