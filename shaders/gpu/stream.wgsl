// Reads a buffer at full speed, for gpu/parallelism.rs: how many workgroups does it take to fill the device?
//
// Grid: any number of workgroups; each reads `words` words of its own, from the start again where the buffer ends.
// Lanes as few and loads in flight as many as in decode, so that what fills the device here fills it there.
// Constants: LANES. Parts: none.

struct Params {
    words: u32, // per workgroup (vec4 words); a multiple of 4 * LANES, and the buffer a multiple of it
    first: u32, // where the first workgroup begins (shares of `words`): not where another dispatch has just been
}

@group(0) @binding(0) var<uniform> params: Params;
// (any) words
@group(0) @binding(1) var<storage, read> source: array<vec4<u32>>;
// one u32 per 4 bytes, of which the first is used
@group(0) @binding(2) var<storage, read_write> sink: array<u32>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let shares = arrayLength(&source) / params.words;
    let first = (params.first + workgroup.x) % shares * params.words + lane;
    var a = vec4<u32>(0u);
    var b = vec4<u32>(0u);
    var c = vec4<u32>(0u);
    var d = vec4<u32>(0u);
    for (var i = 0u; i < params.words; i += 4u * LANES) {
        a ^= source[first + i];
        b ^= source[first + i + LANES];
        c ^= source[first + i + 2u * LANES];
        d ^= source[first + i + 3u * LANES];
    }
    let all = a ^ b ^ c ^ d;
    // Never true of zeros, which the buffer holds, but the compiler cannot know.
    if ((all.x | all.y | all.z | all.w) != 0u) {
        sink[0] = workgroup.x;
    }
}
