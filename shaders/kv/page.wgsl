// Where a token lies in a layer's pool, in vec4 words. A page of `page_size` tokens is planes: for each group
// [page_size][STATE_WORDS], then [page_size][ROPE_WORDS], then [page_size][SCALE_WORDS].
// Constants: GROUPS STATE_WORDS ROPE_WORDS SCALE_WORDS. Parts: kv/slabs/*.

const TOKEN_WORDS = GROUPS * STATE_WORDS + ROPE_WORDS + SCALE_WORDS;

// First word of the state of `group` of the token at `offset` of a page.
fn page_state(page: u32, page_size: u32, offset: u32, group: u32) -> u32 {
    return page_first(page, page_size * TOKEN_WORDS) + (group * page_size + offset) * STATE_WORDS;
}

// First word of the token's rope key.
fn page_rope(page: u32, page_size: u32, offset: u32) -> u32 {
    return page_first(page, page_size * TOKEN_WORDS) + GROUPS * STATE_WORDS * page_size + offset * ROPE_WORDS;
}

// First word of the token's scales, f32, SPANS for each group.
fn page_scales(page: u32, page_size: u32, offset: u32) -> u32 {
    let plane = (GROUPS * STATE_WORDS + ROPE_WORDS) * page_size;
    return page_first(page, page_size * TOKEN_WORDS) + plane + offset * SCALE_WORDS;
}
