// SwiGLU of a matrix [gate | up]: output i joins rows i and out_dim / 2 + i. Slot: nn/output.
// A workgroup's sums come in pairs, n even the gate and n odd the up row of one output.
const SUMS_PER_OUTPUT = 2u;

fn matrix_row(first: u32, n: u32, out_lane: u32) -> u32 {
    return (n % 2u) * (params.out_dim / 2u) + min(first + n / 2u * OUT_LANES + out_lane, params.out_dim / 2u - 1u);
}

// silu(first) last, of gate and up. Bounded: drivers may assume that there is no infinity.
fn joined(first: f32, last: f32) -> f32 {
    return first / (1.0 + exp(min(-first, 80.0))) * last;
}
