// Writing to one layer's pages. Slot: kv/slab_stores. Parts: slabs_1.

fn store_pool_word(at: u32, word: PoolWord) {
    pool[at] = word;
}

// Address of a u32, where pages are bound as those: `word` is of vec4s.
fn u32_at(word: u32, u: u32) -> u32 {
    return word * 4u + u;
}
