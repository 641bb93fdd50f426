// The end of a row's softmax with an attention sink: a logit per query head that takes its share of the weights and has
// no value, like one more token whose value is zero. Not scaled, not capped. Slot: attention/sink. Parts: softmax.
// Constants: SINK_BINDING.

// (Q_HEADS) f32, natural units
@group(0) @binding(SINK_BINDING) var<storage, read> sinks: array<f32>;

struct Finished {
    factor: f32, // turns the row's weighted sum into its output
    lse2: f32, // log-sum-exp in log2 units, the sink included
}

// Of the whole row, so of an unsplit item or a merge: `m`, `l` the softmax state, `head` the query head.
fn softmax_finish(m: f32, l: f32, head: u32) -> Finished {
    // A sink of minus infinity is none.
    let sink = max(sinks[head] * LOG2_E, NEGATIVE);
    let top = max(m, sink);
    let shrink = softmax_weight(m, top);
    let total = l * shrink + softmax_weight(sink, top);
    return Finished(shrink * softmax_inverse(total), softmax_lse2(top, total));
}
