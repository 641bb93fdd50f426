// A number for each matrix row. Slot: nn/expert_bias. Constants: BIAS_BINDING.
// biases: (experts, out_dim) f32
@group(0) @binding(BIAS_BINDING) var<storage, read> biases: array<f32>;

fn bias_at(at: u32) -> f32 {
    return biases[at];
}
