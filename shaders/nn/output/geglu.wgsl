// GeGLU of a matrix [gate | up], as nn/output/swiglu.wgsl has SwiGLU. Slot: nn/output.
const SUMS_PER_OUTPUT = 2u;

fn matrix_row(first: u32, n: u32, out_lane: u32) -> u32 {
    return (n % 2u) * (params.out_dim / 2u) + min(first + n / 2u * OUT_LANES + out_lane, params.out_dim / 2u - 1u);
}

// gelu(first) last, gelu(g) = g (1 + tanh(z)) / 2 = g / (1 + exp(-2 z)), z = sqrt(2 / pi) (g + 0.044715 g^3)
// (Hendrycks, Gimpel, arXiv 1606.08415). Bounded: drivers may assume that there is no infinity.
fn joined(first: f32, last: f32) -> f32 {
    // Beyond 10 the exponential is 0 or above all numbers, and a larger cube could overflow.
    let g = clamp(first, -10.0, 10.0);
    let twice = 1.5957691216057308 * (g + 0.044715 * g * g * g);
    return first / (1.0 + exp(min(-twice, 80.0))) * last;
}
