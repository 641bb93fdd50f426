// Cached elements are what they say. Slot: kv/row_elements of cached_rows. Parts: kv/element.

fn state_scale(scales: u32, group: u32) -> f32 {
    return 1.0;
}

fn rope_elements(raw: PoolWord) -> array<vec4<f32>, ROPE_VECS> {
    return unpack_word(raw);
}
