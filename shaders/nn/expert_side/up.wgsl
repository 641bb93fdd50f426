// One slot of a row per workgroup: gate and up, joined and weighted. Slot: nn/expert_side.

fn parts_of(row: u32, slot: u32, out: u32, in_lane: u32) -> vec2<f32> {
    let e = ids[row * TOP + slot];
    let first = row * params.x_row_stride;
    return vec2<f32>(part_of(e, out, first, in_lane), part_of(e, params.out_dim / 2u + out, first, in_lane));
}

fn store(row: u32, slot: u32, out: u32, sums: vec2<f32>) {
    let outputs = params.out_dim / 2u;
    if (out < outputs) {
        let gate = sums.x / (1.0 + exp(min(-sums.x, 80.0)));
        y[row * params.y_row_stride + slot * outputs + out] = shares[row * TOP + slot] * gate * sums.y;
    }
}
