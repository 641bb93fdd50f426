// States are integers with a scale per token and group, rope keys f16. Slot: kv/row_elements of cached_rows.
// Constants: SPANS U32S_PER_WORD ROPE_VECS. Parts: kv/element/i8 or i4, kv/slab_loads/*.

fn state_scale(scales: u32, group: u32) -> f32 {
    let index = group * SPANS;
    return bitcast<f32>(pool_u32(scales + index / U32S_PER_WORD, index % U32S_PER_WORD));
}

fn rope_elements(raw: PoolWord) -> array<vec4<f32>, ROPE_VECS> {
    return unpack_halves(raw);
}
