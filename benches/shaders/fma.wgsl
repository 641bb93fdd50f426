// Ceiling 2: f32 multiply-adds in registers, no memory. What plain arithmetic (tier T0) can do at most.
// Grid: any; STEPS * 64 multiply-adds per lane.

const STEPS = 1024u;

@group(0) @binding(0) var<storage, read> source: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> sink: array<u32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let seed = bitcast<vec4<f32>>(source[id.x % 64u] & vec4<u32>(0x3f7fffffu));
    let factor = seed * 0.5;
    var a = seed;
    var b = seed + 1.0;
    var c = seed + 2.0;
    var d = seed + 3.0;
    for (var i = 0u; i < STEPS; i++) {
        a = fma(a, factor, seed);
        b = fma(b, factor, seed);
        c = fma(c, factor, seed);
        d = fma(d, factor, seed);
        a = fma(a, factor, seed);
        b = fma(b, factor, seed);
        c = fma(c, factor, seed);
        d = fma(d, factor, seed);
        a = fma(a, factor, seed);
        b = fma(b, factor, seed);
        c = fma(c, factor, seed);
        d = fma(d, factor, seed);
        a = fma(a, factor, seed);
        b = fma(b, factor, seed);
        c = fma(c, factor, seed);
        d = fma(d, factor, seed);
    }
    let all = a + b + c + d;
    if (all.x + all.y + all.z + all.w == 12345.0) {
        sink[0] = id.x;
    }
}
