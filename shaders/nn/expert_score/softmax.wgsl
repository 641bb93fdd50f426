// An expert's score among all of the row: softmax. Slot: score_of_*.

// The largest logit and the sum of all exp(logit - largest).
fn score_shape(first: u32) -> vec2<f32> {
    var largest = logits[first];
    for (var e = 1u; e < EXPERTS; e++) {
        largest = max(largest, logits[first + e]);
    }
    var sum = 0.0;
    for (var e = 0u; e < EXPERTS; e++) {
        sum += exp(max(logits[first + e] - largest, -80.0));
    }
    return vec2<f32>(largest, sum);
}

fn score_of(logit: f32, shape: vec2<f32>) -> f32 {
    return exp(max(logit - shape.x, -80.0)) / shape.y;
}
