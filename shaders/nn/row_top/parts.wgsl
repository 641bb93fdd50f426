// The top of a row, from those of its parts by sample_parts. Slot: nn/row_top of sample. Parts: top. Constants: PART.

// (rows, parts) vec2<u32>: bits of the value, and the index
@group(0) @binding(4) var<storage, read> tops: array<vec2<u32>>;

// Lanes that read tops: each lane then looks at what they have.
const READERS = min(LANES, 64u);

// `index` is that of the row; its logits begin at `first`. NO_TOKEN where the row gives no probabilities.
fn row_top(first: u32, index: u32, lane: u32) -> Top {
    let parts = (params.vocab + PART - 1u) / PART;
    var best = Top(0.0, NO_TOKEN);
    for (var i = lane; lane < READERS && i < parts; i += READERS) {
        let part = tops[index * parts + i];
        best = top_of(best, Top(bitcast<f32>(part.x), part.y));
    }
    best = top_of_lanes(best, lane, READERS);
    best.index = select(best.index, NO_TOKEN, best.index == SPOILED);
    return best;
}
