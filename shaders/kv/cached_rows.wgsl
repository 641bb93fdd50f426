// Cached rows of latents as f32, for the products of the explicit form: the states of some tokens in one tensor, their
// rope keys behind the keys and values that are made of them, in another.
//
//   latents[t] = [ state_0 | .. | state_{groups-1} ]     rows[t][ROW_DIM - ROPE_DIM ..] = rope key
//
// The same bits that decode reads, so that both forms attend over the same tokens; what was rounded or made integers
// stays so.
//
// Grid: x = eight words of a row, y = eight tokens; a lane takes one word.
// Constants: GROUPS STATE_DIM STATE_WORDS ROPE_DIM ROPE_WORDS SCALE_WORDS SPANS ROW_DIM, of a word ELEMS_PER_WORD
// VECS_PER_WORD ROPE_VECS U32S_PER_WORD. Parts: kv/element/*, page, kv/slabs/*, kv/slab_loads/*, kv/row_elements/*.

struct Params {
    first: u32, // word of `places` that the part begins with
    page_shift: u32, // log2 of the tokens per page
    slot_count: u32, // pages * tokens of a page
    slab_pages: u32, // of each slab but the last
}

@group(0) @binding(0) var<uniform> params: Params;
// parts, each of a head of four words, the first its tokens, then of each token page * tokens of a page + offset
@group(0) @binding(1) var<storage, read> places: array<u32>;
// pages of one layer (kv/slabs/*)
@group(0) @binding(2) var<storage, read> pool: array<PoolWord>;
// (tokens, GROUPS, STATE_DIM) f32
@group(0) @binding(3) var<storage, read_write> latents: array<f32>;
// (tokens, ROW_DIM) f32
@group(0) @binding(4) var<storage, read_write> rows: array<f32>;

const LANES = 64u;
const LANES_ACROSS = 8u;
const LANES_DOWN = LANES / LANES_ACROSS;
const PLACES_HEAD = 4u;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let word = workgroup.x * LANES_ACROSS + lane % LANES_ACROSS;
    let token = workgroup.y * LANES_DOWN + lane / LANES_ACROSS;
    if (word >= GROUPS * STATE_WORDS + ROPE_WORDS || token >= places[params.first]) {
        return;
    }
    // The host has checked the places; the clamp keeps a corrupted buffer from reaching another binding.
    let slot = min(places[params.first + PLACES_HEAD + token], params.slot_count - 1u);
    let page_size = 1u << params.page_shift;
    let page = slot >> params.page_shift;
    let offset = slot & (page_size - 1u);
    let group = word / STATE_WORDS;
    if (group < GROUPS) {
        let at = word % STATE_WORDS;
        let elements = unpack_word(pool_word(page_state(page, page_size, offset, group) + at));
        let scale = state_scale(page_scales(page, page_size, offset), group);
        let first = (token * GROUPS + group) * STATE_DIM;
        // unroll
        for (var v = 0u; v < VECS_PER_WORD; v++) {
            // unroll
            for (var c = 0u; c < 4u; c++) {
                let element = at * ELEMS_PER_WORD + 4u * v + c;
                if (element < STATE_DIM) {
                    latents[first + element] = scale * elements[v][c];
                }
            }
        }
        return;
    }
    let at = word - GROUPS * STATE_WORDS;
    let elements = rope_elements(pool_word(page_rope(page, page_size, offset) + at));
    let first = (token + 1u) * ROW_DIM - ROPE_DIM;
    // unroll
    for (var v = 0u; v < ROPE_VECS; v++) {
        // unroll
        for (var c = 0u; c < 4u; c++) {
            let element = (at * ROPE_VECS + v) * 4u + c;
            if (element < ROPE_DIM) {
                rows[first + element] = elements[v][c];
            }
        }
    }
}
