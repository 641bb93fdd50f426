// Ceiling 1: reads a buffer once, 16 bytes per lane and load, and keeps the sum alive. Bytes only.
// Grid: any; each workgroup strides over the whole buffer.

@group(0) @binding(0) var<storage, read> source: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> sink: array<u32>;

@compute @workgroup_size(256)
fn main(
    @builtin(global_invocation_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
) {
    let lanes = grid.x * 256u;
    let count = arrayLength(&source);
    var a = vec4<u32>(0u);
    var b = vec4<u32>(0u);
    var c = vec4<u32>(0u);
    var d = vec4<u32>(0u);
    for (var i = id.x; i + 3u * lanes < count; i += 4u * lanes) {
        a ^= source[i];
        b ^= source[i + lanes];
        c ^= source[i + 2u * lanes];
        d ^= source[i + 3u * lanes];
    }
    let all = a ^ b ^ c ^ d;
    // Practically never true, but the compiler cannot know.
    if ((all.x ^ all.y ^ all.z ^ all.w) == 0x12345678u) {
        sink[0] = id.x;
    }
}
