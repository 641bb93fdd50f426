// Cache elements of signed numbers of 4 bits, eight to a u32, to be multiplied by a scale. Slot: kv/pack.

// Largest integer in use.
const LEVELS = 7.0;

// Whole numbers of -7 to 7.
fn pack_elements(values: array<f32, 8>) -> u32 {
    var packed = 0u;
    for (var i = 0u; i < 8u; i++) {
        packed |= (u32(i32(values[i])) & 0xfu) << (4u * i);
    }
    return packed;
}
