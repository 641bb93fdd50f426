// The direction of `pages_rows` that saves: pages to a block.

// pages of one layer
@group(0) @binding(2) var<storage, read> pool: array<vec4<u32>>;
// one block: a page of its tokens
@group(0) @binding(3) var<storage, read_write> rows: array<vec4<u32>>;

fn move_word(place: u32, word: u32) {
    rows[word] = pool[place];
}
