// Cached elements are what they say. Slot: attention/scales of decode.

fn scales_publish(base: u32) {
}

fn scales_fetch(group: u32, lane: u32) {
}

fn scales_store(lane: u32) {
}

// Elements of key word `word` of a token of the tile.
fn key_word(token: u32, word: u32) -> array<vec4<f32>, VECS_PER_WORD> {
    return unpack_word(tile[token * TILE_STRIDE + word]);
}

// A word's products are added to ...
fn score_start(sum: Rows) -> Rows {
    return sum;
}

// ... and become the new sum.
fn score_join(sum: Rows, products: Rows, token: u32, word: u32) -> Rows {
    return products;
}

fn score_finish(score: Rows, token: u32) -> Rows {
    return score;
}

// What a token's value is multiplied by.
fn value_weight(weight: Rows, token: u32) -> Rows {
    return weight;
}
