// Cache elements of f32. Slot: kv/pack.

fn pack_elements(values: array<f32, 1>) -> u32 {
    return bitcast<u32>(values[0]);
}
