// The direction of `pages_rows` that saves: pages to a block. Parts: kv/slab_loads/*.

// pages of one layer (kv/slabs/*)
@group(0) @binding(2) var<storage, read> pool: array<PoolWord>;
// one block: a page of its tokens
@group(0) @binding(3) var<storage, read_write> rows: array<vec4<u32>>;

alias PoolWord = vec4<u32>;

fn move_word(place: u32, word: u32) {
    rows[word] = pool_word(place);
}
