// Cache elements of f16, two to a u32. Works without the shader-f16 feature. Slot: kv/pack.

// Values beyond f16's range become its largest; WGSL leaves their packing undefined.
fn pack_elements(values: array<f32, 2>) -> u32 {
    return pack2x16float(clamp(vec2<f32>(values[0], values[1]), vec2<f32>(-65504.0), vec2<f32>(65504.0)));
}
