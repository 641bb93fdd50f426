// Clamped SwiGLU of a matrix [gate | up], as nn/output/swiglu.wgsl has SwiGLU (gpt-oss, arXiv 2508.10925). Slot: nn/output.
// Constants: ALPHA, LIMIT.
const SUMS_PER_OUTPUT = 2u;

fn matrix_row(first: u32, n: u32, out_lane: u32) -> u32 {
    return (n % 2u) * (params.out_dim / 2u) + min(first + n / 2u * OUT_LANES + out_lane, params.out_dim / 2u - 1u);
}

// g sigmoid(ALPHA g) (u + 1), with g = min(first, LIMIT) and u = last within +-LIMIT.
fn joined(first: f32, last: f32) -> f32 {
    let g = min(first, LIMIT);
    return g / (1.0 + exp(min(-ALPHA * g, 80.0))) * (clamp(last, -LIMIT, LIMIT) + 1.0);
}
