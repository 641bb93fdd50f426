// 8 halves as matrices are made of them. 16 bytes wide: whatever the index, the driver then sees that a matrix begins at a
// multiple of 16 bytes, which its fast loads need.
alias Word = array<vec4<f16>, 2>;

// naga cannot reinterpret bits as f16; the way through f32 loses nothing.
fn half_word(bits: vec4<u32>) -> Word {
    return Word(
        vec4<f16>(vec2<f16>(unpack2x16float(bits.x)), vec2<f16>(unpack2x16float(bits.y))),
        vec4<f16>(vec2<f16>(unpack2x16float(bits.z)), vec2<f16>(unpack2x16float(bits.w))),
    );
}
