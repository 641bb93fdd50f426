// Pages to rows and back: the cached rows of some tokens of one sequence, out of their pages into contiguous memory, or from
// there into their pages.
//
//   rows[token - first_token] = [ state_0 | .. | state_{groups-1} | rope key | scales ],  each as words of its plane
//
// Where saved caches meet pages: parts/page.wgsl has the planes, cache/format.rs the file. A kernel and not buffer copies,
// since a run of one plane is as short as a page: at page size 1 a block of 1 MiB would be thousands of copies.
// Bits are moved, never values: NaN and -0 arrive as they are.
//
// Grid: one lane per word of the rows, in x.
// Constants: GROUPS STATE_WORDS ROPE_WORDS SCALE_WORDS. Parts: page, rows_from_pages or rows_to_pages (the direction, which
// declares pool and rows).

struct Params {
    page_size: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// (2 + pages) u32: first token, one past the last, then the pages of the sequence
@group(0) @binding(1) var<storage, read> places: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let token = places[0] + id.x / TOKEN_WORDS;
    if (token >= places[1]) {
        return;
    }
    let page = places[2u + token / params.page_size];
    let offset = token % params.page_size;
    let word = id.x % TOKEN_WORDS;
    let group = word / STATE_WORDS;
    let after_states = word - min(word, GROUPS * STATE_WORDS);
    var place: u32;
    if (group < GROUPS) {
        place = page_state(page, params.page_size, offset, group) + word % STATE_WORDS;
    } else if (after_states < ROPE_WORDS) {
        place = page_rope(page, params.page_size, offset) + after_states;
    } else {
        place = page_scales(page, params.page_size, offset) + after_states - ROPE_WORDS;
    }
    move_word(place, id.x);
}
