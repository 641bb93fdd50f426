// All slots of a row in one workgroup: summed, and added to what is there. Slot: experts_*.

fn parts_of(row: u32, unused: u32, out: u32, in_lane: u32) -> vec2<f32> {
    var sum = 0.0;
    for (var slot = 0u; slot < TOP; slot++) {
        let first = row * params.x_row_stride + slot * params.in_dim;
        sum += part_of(ids[row * TOP + slot], out, first, in_lane);
    }
    return vec2<f32>(sum, 0.0);
}

fn store(row: u32, unused: u32, out: u32, sums: vec2<f32>) {
    if (out < params.out_dim) {
        y[row * params.y_row_stride + out] += sums.x;
    }
}
