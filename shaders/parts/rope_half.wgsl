// Half-rotation (NeoX): element i of a span is rotated with element i + width / 2.
struct RopePair {
    partner: u32, // the other element of the pair
    sign: f32,    // rotated[i] = x[i] cos + sign x[partner] sin
    angle: u32,   // index of (cos, sin) among width / 2
}

fn rope_pair(i: u32, width: u32) -> RopePair {
    let half = width / 2u;
    if (i < half) {
        return RopePair(i + half, -1.0, i);
    }
    return RopePair(i - half, 1.0, i - half);
}
