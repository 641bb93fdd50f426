// All slots of a row in one workgroup, `slot` 0: summed, and added to what is there. Slot: nn/expert_side.

fn parts_of(row: u32, slot: u32, out: u32, in_lane: u32) -> vec2<f32> {
    var sum = 0.0;
    for (var k = 0u; k < TOP; k++) {
        let at = row_of(ids[row * TOP + k], out);
        sum += part_of(at, row * params.x_row_stride + k * params.in_dim, in_lane);
        if (in_lane == 0u) {
            sum += shares[row * TOP + k] * bias_at(at);
        }
    }
    return vec2<f32>(sum, 0.0);
}

fn store(row: u32, slot: u32, out: u32, sums: vec2<f32>) {
    if (out < params.out_dim) {
        y[row * params.y_row_stride + out] += sums.x;
    }
}
