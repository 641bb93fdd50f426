// Interleaved rotation (DeepSeek, GPT-J): pairs (2j, 2j + 1). Slot: rope.
// rotated[i] = x[i] * cos[rope_angle(i)] + rope_sign(i) * x[rope_partner(i)] * sin[rope_angle(i)]

fn rope_partner(i: u32, span: u32) -> u32 {
    return i ^ 1u;
}

fn rope_angle(i: u32, span: u32) -> u32 {
    return i / 2u;
}

fn rope_sign(i: u32, span: u32) -> f32 {
    return select(1.0, -1.0, (i & 1u) == 0u);
}
