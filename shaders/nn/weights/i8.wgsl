// Weights with a scale per row of the matrix. Slot: nn/weights. Parts: weight_bytes, and what binds `scales`.

// What a matrix row's products are multiplied by.
fn row_scale(at: u32) -> f32 {
    return scales[at];
}
