// Outputs are queries and a row of the cache (cached_place): a lane's sums lie side by side, in whole units. Slot: nn/output.
const SUMS_PER_OUTPUT = 1u;

fn matrix_row(first: u32, n: u32, out_lane: u32) -> u32 {
    let at = first + out_lane * OUTS + n;
    let place = place_of(at & ~3u);
    return place.first + element_of(place, at & ~3u, at & 3u);
}

fn joined(first: f32, last: f32) -> f32 {
    return first;
}
