// Words of one layer's pages. Slot: kv/slab_loads. Parts: slabs_2.

fn pool_word(at: u32) -> PoolWord {
    let word = at & WORD_MASK;
    switch at >> SLAB_SHIFT {
        case 1u: {
            return pool_1[word];
        }
        default: {
            return pool[word];
        }
    }
}

// One component of a word.
fn pool_u32(at: u32, component: u32) -> u32 {
    let word = at & WORD_MASK;
    switch at >> SLAB_SHIFT {
        case 1u: {
            return pool_1[word][component];
        }
        default: {
            return pool[word][component];
        }
    }
}
