// Logit softcap: scores become cap * tanh(s / cap) before the softmax (Gemma 2, Grok). Slot: attention/score.
// Constants: SOFTCAP_LOG2, the cap times log2(e), since scores are in units of log2.

const TWO_LOG2_E = 2.885390081777927;

// Within a few units in the last place, and safe for any finite x. WGSL's tanh is not: its error near 0 is absolute.
fn softcap_tanh(x: f32) -> f32 {
    // From 15 on the result rounds to 1, and exp2 of more could overflow.
    let size = min(abs(x), 15.0);
    // Near 0 the difference below would cancel; Lambert's continued fraction is within 2e-11 here.
    let y = size * size;
    let near = size * (10395.0 + y * (1260.0 + y * 21.0)) / (10395.0 + y * (4725.0 + y * (210.0 + y)));
    let far = 1.0 - 2.0 / (1.0 + exp2(TWO_LOG2_E * size));
    let value = select(far, near, size < 0.75);
    return select(value, -value, x < 0.0);
}

// `s`: softmax_scale * (query . key) * log2(e)
fn score_transform(s: f32) -> f32 {
    return SOFTCAP_LOG2 * softcap_tanh(s * (1.0 / SOFTCAP_LOG2));
}
