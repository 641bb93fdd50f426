// The top of a row, from its logits. Slot: nn/row_top of sample. Parts: top.

// `index` is that of the row; its logits begin at `first`. NO_TOKEN where the row gives no probabilities.
fn row_top(first: u32, index: u32, lane: u32) -> Top {
    var best = Top(0.0, NO_TOKEN);
    for (var i = lane; i < params.vocab; i += LANES) {
        best = top_with(best, logits[first + i], i);
    }
    best = top_of_lanes(best, lane, LANES);
    best.index = select(best.index, NO_TOKEN, best.index == SPOILED);
    return best;
}
