// Interleaved pairs (DeepSeek checkpoints): elements 2 i and 2 i + 1 of a span are rotated together.
struct RopePair {
    partner: u32, // the other element of the pair
    sign: f32,    // rotated[i] = x[i] cos + sign x[partner] sin
    angle: u32,   // index of (cos, sin) among width / 2
}

fn rope_pair(i: u32, width: u32) -> RopePair {
    return RopePair(i ^ 1u, select(1.0, -1.0, (i & 1u) == 0u), i / 2u);
}
