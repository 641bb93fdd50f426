// Rope keys in f16 beside integers: words of 8 bytes. Slot: kv/halves.

fn unpack_halves(raw: vec2<u32>) -> array<vec4<f32>, 1> {
    return array<vec4<f32>, 1>(vec4<f32>(unpack2x16float(raw.x), unpack2x16float(raw.y)));
}
