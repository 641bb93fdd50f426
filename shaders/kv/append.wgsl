// Append: writes the new tokens' rows into their pages, rotating the key part on the way.
//
//   row(token) = [ state_0 | .. | state_{groups-1} | rope key ],  key part := RoPE(key part, position(token))
//
// Zadouri et al., arXiv 2505.21487, §3.3: GTA and GLA cache un-rotated states and one rotated key; GQA rotates the
// key half of each state. A page is planes: kv/page.wgsl.
// A state is its key elements, padded to a word, then (unless tied) its value elements, padded to a word.
//
// Grid: one lane per u32 of a destination row; x over u32s, y over tokens (z folds y past 65,535).
// Constants: those of its parts. Parts: kv/pack/*, rope/*, page, kv/slabs/*, kv/slab_stores/*, append_row, wide_none.

const ROW_U32S = (GROUPS * STATE_WORDS + ROPE_WORDS) * U32S_PER_WORD;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let token = id.z * grid.y + id.y;
    if (id.x >= ROW_U32S || token >= params.token_count) {
        return;
    }
    // A token of another rank, or a corrupted buffer: nothing is written.
    let slot = slots[token];
    if (slot >= params.slot_count) {
        return;
    }
    let page = slot / PAGE_SIZE;
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
    let word = select(page_rope(page, PAGE_SIZE, offset), page_state(page, PAGE_SIZE, offset, group), in_state);
    store_pool_word(u32_at(word, u), pack_elements(values));
}
