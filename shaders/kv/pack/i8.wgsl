// Cache elements of signed bytes, four to a u32, to be multiplied by a scale. Slot: kv/pack.

// Largest integer in use.
const LEVELS = 127.0;

// Whole numbers of -127 to 127.
fn pack_elements(values: array<f32, 4>) -> u32 {
    var packed = 0u;
    for (var i = 0u; i < 4u; i++) {
        packed |= (u32(i32(values[i])) & 0xffu) << (8u * i);
    }
    return packed;
}
