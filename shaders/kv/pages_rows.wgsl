// Pages to a block and back: the cached rows of some tokens of one sequence, out of their pages into contiguous memory, or
// from there into their pages. The block is laid out as a page of just those tokens:
//
//   block[plane][token - first] = page(token)[plane][token mod page_size]
//
// Where saved caches meet small pages: kv/page.wgsl has the planes, cache/format.rs the file, cache/page_rows.rs the choice
// between this and buffer copies, whose runs are as long as a plane of a page.
// Bits are moved, never values: NaN and -0 arrive as they are.
//
// Grid: x = eight words of a row, y = eight tokens; a lane moves one word. Without a division by the width of a row.
// Constants: GROUPS STATE_WORDS ROPE_WORDS SCALE_WORDS. Parts: page, kv/slabs/*, rows_from_pages or rows_to_pages
// (the direction, which declares pool and rows).

struct Params {
    page_shift: u32, // tokens of a page: 1 << page_shift
    slab_pages: u32, // of each slab but the last
}

@group(0) @binding(0) var<uniform> params: Params;
// (2 + pages) u32: first token, one past the last, then the pages of the sequence
@group(0) @binding(1) var<storage, read> places: array<u32>;

const LANES = 64u;
const LANES_ACROSS = 8u; // words of a row, next to each other in both memories: 128 bytes
const LANES_DOWN = LANES / LANES_ACROSS;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let word = workgroup.x * LANES_ACROSS + lane % LANES_ACROSS;
    let row = workgroup.y * LANES_DOWN + lane / LANES_ACROSS;
    let tokens = places[1] - places[0];
    if (word >= TOKEN_WORDS || row >= tokens) {
        return;
    }
    let token = places[0] + row;
    let page_size = 1u << params.page_shift;
    let page = places[2u + (token >> params.page_shift)];
    let offset = token & (page_size - 1u);
    let group = word / STATE_WORDS;
    let after_states = word - min(word, GROUPS * STATE_WORDS);
    if (group < GROUPS) {
        let at = word % STATE_WORDS;
        move_word(page_state(page, page_size, offset, group) + at, page_state(0u, tokens, row, group) + at);
    } else if (after_states < ROPE_WORDS) {
        move_word(page_rope(page, page_size, offset) + after_states, page_rope(0u, tokens, row) + after_states);
    } else {
        let at = after_states - ROPE_WORDS;
        move_word(page_scales(page, page_size, offset) + at, page_scales(0u, tokens, row) + at);
    }
}
