// Cached elements are what they say. Slot: attention/row_scales of decode_rows.

// Of one token: the key's scale and the value's.
alias Scales = f32;

fn token_scales(word: u32, group: u32) -> Scales {
    return 1.0;
}

// The lane's sum over key elements, before those of the rope key.
fn scale_key(sum: Rows, scales: Scales) -> Rows {
    return sum;
}

// What a token's value is multiplied by.
fn scale_value(weight: Rows, scales: Scales) -> Rows {
    return weight;
}

fn unpack_rope_word(raw: PoolWord) -> array<vec4<f32>, ROPE_VECS> {
    return unpack_word(raw);
}
