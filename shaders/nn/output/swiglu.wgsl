// SwiGLU of a matrix [gate | up]: output i joins rows i and out_dim / 2 + i. Slot: outputs_*.
// A workgroup's sums come in pairs, n even the gate and n odd the up row of one output.
const SUMS_PER_OUTPUT = 2u;

fn matrix_row(first: u32, n: u32, out_lane: u32) -> u32 {
    return (n % 2u) * (params.out_dim / 2u) + min(first + n / 2u * OUT_LANES + out_lane, params.out_dim / 2u - 1u);
}

// silu(gate) up. Bounded: drivers may assume that there is no infinity.
fn joined(gate: f32, up: f32) -> f32 {
    return gate / (1.0 + exp(min(-gate, 80.0))) * up;
}
