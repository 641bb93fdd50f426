// RMSNorm of the input of a linear: sum_i W[o, i] gain[i] x[i] / sqrt(mean_i x[i]^2 + eps). The root is known only when
// the whole row has been read, so it multiplies the sum. Slot: nn/gain.

fn input_gain(quad: u32) -> vec4<f32> {
    return gain_quad(quad);
}

fn input_factor(squares: f32) -> f32 {
    return 1.0 / sqrt(squares / f32(params.in_dim) + params.eps);
}
