// Scores go into the softmax as they are. Slot: attention/score.

// `s`: softmax_scale * (query . key) * log2(e)
fn score_transform(s: f32) -> f32 {
    return s;
}
