// Cache and weight words of 8 bf16 elements: the upper halves of f32s. Slot: kv/element.

fn unpack_word(raw: vec4<u32>) -> array<vec4<f32>, 2> {
    let even = bitcast<vec4<f32>>(raw << vec4<u32>(16u));
    let odd = bitcast<vec4<f32>>(raw & vec4<u32>(0xffff0000u));
    return array<vec4<f32>, 2>(vec4<f32>(even.x, odd.x, even.y, odd.y), vec4<f32>(even.z, odd.z, even.w, odd.w));
}
