// Places: how far below the top of its row a logit is, in units of the temperature, so that exp(-place) is its share of the top's
// probability. Buckets of places, from the top on: 48 of a half, 14 of 4, and the rest, which is never drawn. Part of the
// sampled_* kernels.

const BUCKETS = 64u;
const DEAD = 62u;
const NARROW = 48u;
const LAST_PLACE = 80.0;
const ALL_BELOW = 1e30;

fn place(value: f32, largest: f32, temperature: f32) -> f32 {
    return min((largest - value) / temperature, ALL_BELOW);
}

fn bucket_of(place: f32) -> u32 {
    if (place >= LAST_PLACE) {
        return DEAD;
    }
    let wide = NARROW + u32(max(place - 24.0, 0.0) * 0.25);
    return select(wide, u32(max(place, 0.0) * 2.0), place < 24.0);
}

// Where a bucket begins.
fn bucket_edge(bucket: u32) -> f32 {
    let narrow = 0.5 * f32(bucket);
    return select(24.0 + 4.0 * (f32(bucket) - f32(NARROW)), narrow, bucket < NARROW);
}
