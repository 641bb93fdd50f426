// States are integers with a scale per token, group and span (key and value apart, or one span for a state that is
// both); rope keys are f16. The key's scale multiplies the finished score, or with a rope key what each word adds to it;
// the value's multiplies the weight: so no element is ever scaled. Slot: attention/scales of decode.
// Constants: SPANS KEY_WORDS ROPE_WORDS TOKENS U32S_PER_WORD VECS_PER_WORD ROPE_VECS. Parts: page.

// Of the tile's tokens: key scales, then value scales.
var<workgroup> scales: array<f32, 2u * TOKENS>;

// The lane's token of the next tile: where its scales lie, then the two.
var<private> scales_at: u32;
var<private> fetched_scales: vec2<f32>;

fn scales_publish(base: u32) {
    scales_at = base;
}

fn scales_fetch(group: u32, lane: u32) {
    if (lane < TOKENS) {
        fetched_scales = vec2<f32>(0.0);
        if (scales_at != NOWHERE) {
            let key = group * SPANS;
            let value = key + SPANS - 1u;
            fetched_scales = vec2<f32>(
                bitcast<f32>(pool_u32(scales_at + key / U32S_PER_WORD, key % U32S_PER_WORD)),
                bitcast<f32>(pool_u32(scales_at + value / U32S_PER_WORD, value % U32S_PER_WORD)),
            );
        }
    }
}

fn scales_store(lane: u32) {
    if (lane < TOKENS) {
        scales[lane] = fetched_scales.x;
        scales[TOKENS + lane] = fetched_scales.y;
    }
}

// Elements of key word `word` of a token of the tile; of the rope key, whose elements are halves, several words of memory.
fn key_word(token: u32, word: u32) -> array<vec4<f32>, VECS_PER_WORD> {
    if (ROPE_WORDS > 0u && word >= KEY_WORDS) {
        let rope = token * TILE_STRIDE + KEY_WORDS + (word - KEY_WORDS) * (VECS_PER_WORD / ROPE_VECS);
        var key: array<vec4<f32>, VECS_PER_WORD>;
        // unroll
        for (var i = 0u; i < VECS_PER_WORD; i++) {
            let halves = unpack_halves(tile[rope + i / ROPE_VECS]);
            key[i] = halves[i % ROPE_VECS];
        }
        return key;
    }
    return unpack_word(tile[token * TILE_STRIDE + word]);
}

// A word's products are added to ...
fn score_start(sum: Rows) -> Rows {
    if (ROPE_WORDS == 0u) {
        return sum;
    }
    return Rows(0.0);
}

// ... and become the new sum.
fn score_join(sum: Rows, products: Rows, token: u32, word: u32) -> Rows {
    if (ROPE_WORDS == 0u) {
        return products;
    }
    return fma(products, Rows(select(1.0, scales[token], word < KEY_WORDS)), sum);
}

fn score_finish(score: Rows, token: u32) -> Rows {
    if (ROPE_WORDS == 0u) {
        return score * scales[token];
    }
    return score;
}

// What a token's value is multiplied by.
fn value_weight(weight: Rows, token: u32) -> Rows {
    return weight * scales[TOKENS + token];
}
