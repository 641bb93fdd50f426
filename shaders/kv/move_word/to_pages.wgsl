// The direction of `pages_rows` that loads: a block to pages. Parts: kv/slab_stores/*.

// pages of one layer (kv/slabs/*)
@group(0) @binding(2) var<storage, read_write> pool: array<PoolWord>;
// one block: a page of its tokens
@group(0) @binding(3) var<storage, read> rows: array<vec4<u32>>;

alias PoolWord = vec4<u32>;

fn move_word(place: u32, word: u32) {
    store_pool_word(place, rows[word]);
}
