// One layer's pages are one buffer, `pool`. An address is a word of it. Slot: kv/slabs.

// First word of a page.
fn page_first(page: u32, page_words: u32) -> u32 {
    return page * page_words;
}
