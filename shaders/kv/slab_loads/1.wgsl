// Words of one layer's pages. Slot: kv/slab_loads. Parts: slabs_1.

fn pool_word(at: u32) -> PoolWord {
    return pool[at];
}

// One component of a word.
fn pool_u32(at: u32, component: u32) -> u32 {
    return pool[at][component];
}
