// States are integers with a scale per token, group and span (key and value apart, or one span for a state that is
// both); rope keys are f16. The key's scale multiplies the sum over the key's elements, the value's the weight: so no
// element is ever scaled. Slot: attention/row_scales of decode_rows. Constants: SPANS
// U32S_PER_WORD ROPE_VECS.

// Of one token: the key's scale and the value's.
alias Scales = vec2<f32>;

// `word`: the token's first word of scales.
fn token_scales(word: u32, group: u32) -> Scales {
    let key = group * SPANS;
    let value = key + SPANS - 1u;
    return vec2<f32>(
        bitcast<f32>(pool_u32(word + key / U32S_PER_WORD, key % U32S_PER_WORD)),
        bitcast<f32>(pool_u32(word + value / U32S_PER_WORD, value % U32S_PER_WORD)),
    );
}

// The lane's sum over key elements, before those of the rope key.
fn scale_key(sum: Rows, scales: Scales) -> Rows {
    return sum * scales.x;
}

// What a token's value is multiplied by.
fn scale_value(weight: Rows, scales: Scales) -> Rows {
    return weight * scales.y;
}

fn unpack_rope_word(raw: PoolWord) -> array<vec4<f32>, ROPE_VECS> {
    return unpack_halves(raw);
}
