// Cache elements of bf16, the upper halves of f32s, two to a u32. Slot: kv/pack.

// Rounds to nearest even, in integers throughout. NaN stays NaN; what would round past bf16's largest becomes it.
fn bf16_bits(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    let size = bits & 0x7fffffffu;
    let rounded = min((size + 0x7fffu + ((size >> 16u) & 1u)) >> 16u, 0x7f7fu);
    return select(rounded, 0x7fc0u, size > 0x7f800000u) | ((bits >> 16u) & 0x8000u);
}

fn pack_elements(values: array<f32, 2>) -> u32 {
    return bf16_bits(values[0]) | (bf16_bits(values[1]) << 16u);
}
