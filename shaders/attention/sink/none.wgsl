// The end of a row's softmax, without a sink. Slot: attention/sink. Parts: softmax.

struct Finished {
    factor: f32, // turns the row's weighted sum into its output
    lse2: f32, // log-sum-exp in log2 units, NEGATIVE for an empty row
}

// Of the whole row, so of an unsplit item or a merge: `m`, `l` the softmax state, `head` the query head.
fn softmax_finish(m: f32, l: f32, head: u32) -> Finished {
    return Finished(softmax_inverse(l), softmax_lse2(m, l));
}
