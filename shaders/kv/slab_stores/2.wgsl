// Writing to one layer's pages. Slot: kv/slab_stores. Parts: slabs_2.

fn store_pool_word(at: u32, word: PoolWord) {
    let place = at & WORD_MASK;
    switch at >> SLAB_SHIFT {
        case 1u: {
            pool_1[place] = word;
        }
        default: {
            pool[place] = word;
        }
    }
}

// Address of a u32, where pages are bound as those: `word` is of vec4s.
fn u32_at(word: u32, u: u32) -> u32 {
    return (word & ~WORD_MASK) | ((word & WORD_MASK) * 4u + u);
}
