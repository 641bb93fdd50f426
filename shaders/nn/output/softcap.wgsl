// One row of the matrix per output, capped: cap tanh(y / cap) (the logits of Gemma 2). Slot: nn/output.
const SUMS_PER_OUTPUT = 1u;

fn matrix_row(first: u32, n: u32, out_lane: u32) -> u32 {
    return first + n * OUT_LANES + out_lane;
}

// As softcap_tanh of attention/score/softcap.wgsl has it.
fn output_tanh(x: f32) -> f32 {
    let size = min(abs(x), 15.0);
    let y = size * size;
    let near = size * (10395.0 + y * (1260.0 + y * 21.0)) / (10395.0 + y * (4725.0 + y * (210.0 + y)));
    let far = 1.0 - 2.0 / (1.0 + exp(2.0 * size));
    let value = select(far, near, size < 0.75);
    return select(value, -value, x < 0.0);
}

fn joined(first: f32, last: f32) -> f32 {
    return params.cap * output_tanh(first / params.cap);
}
