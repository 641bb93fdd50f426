// Where outputs lie that are queries and a row of the cache, [Q_HEADS x Q_DIM | GROUPS x STATE_DIM | ROPE_DIM]. Four of them, at a
// multiple of 4, are a unit: they are rotated and packed together.
// Constants: Q_HEADS Q_DIM ROTATED ROTATED_STATE ROTATED_ROPE GROUPS STATE_DIM; every width a multiple of 4. Parts: nn/unit/*.
const Q_WIDTH = Q_HEADS * Q_DIM;

// Where an output lies: a head of the queries, a state, or the rope key.
struct Place {
    first: u32, // output that is its first element
    rotated_first: u32, // its elements from here on are rotated,
    rotated: u32, // so many
}

fn place_of(output: u32) -> Place {
    if (output < Q_WIDTH) {
        return Place(output / Q_DIM * Q_DIM, Q_DIM - ROTATED, ROTATED);
    }
    let at = output - Q_WIDTH;
    if (at < GROUPS * STATE_DIM) {
        return Place(Q_WIDTH + at / STATE_DIM * STATE_DIM, 0u, ROTATED_STATE);
    }
    return Place(Q_WIDTH + GROUPS * STATE_DIM, 0u, ROTATED_ROPE);
}

// Element of its place that the k-th of the unit at `output` is; `output` is a multiple of 4.
fn element_of(place: Place, output: u32, k: u32) -> u32 {
    let i = output - place.first;
    if (i < place.rotated_first || i >= place.rotated_first + place.rotated) {
        return i + k;
    }
    return place.rotated_first + unit_element((i - place.rotated_first) / 4u, k, place.rotated);
}
