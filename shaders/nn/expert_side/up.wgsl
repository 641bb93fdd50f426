// One slot of a row per workgroup: gate and up, joined and weighted. Slot: nn/expert_side. Parts: one of nn/output/*.

fn parts_of(row: u32, slot: u32, out: u32, in_lane: u32) -> vec2<f32> {
    let e = ids[row * TOP + slot];
    let first = row * params.x_row_stride;
    let gate = row_of(e, out);
    let up = row_of(e, params.out_dim / 2u + out);
    var sums = vec2<f32>(part_of(gate, first, in_lane), part_of(up, first, in_lane));
    if (in_lane == 0u) {
        sums += vec2<f32>(bias_at(gate), bias_at(up));
    }
    return sums;
}

fn store(row: u32, slot: u32, out: u32, sums: vec2<f32>) {
    let outputs = params.out_dim / 2u;
    if (out < outputs) {
        y[row * params.y_row_stride + slot * outputs + out] = shares[row * TOP + slot] * joined(sums.x, sums.y);
    }
}
