// Sums over the IN_LANES lanes of each output through workgroup memory, PASS of a lane's values at a time. Slot: nn/reduce.
const PARTIAL_STRIDE = LANES + 1u; // odd, against bank conflicts
var<workgroup> partials: array<f32, PASS * PARTIAL_STRIDE>;
var<workgroup> totals: array<f32, PADDED * OUT_LANES>;

fn reduce(lane: u32, values: array<f32, PADDED>) {
    // unroll
    for (var p = 0u; p < PASSES; p++) {
        // unroll
        for (var i = 0u; i < PASS; i++) {
            partials[i * PARTIAL_STRIDE + lane] = values[p * PASS + i];
        }
        workgroupBarrier();
        for (var t = lane; t < PASS * OUT_LANES; t += LANES) {
            let first = t / OUT_LANES * PARTIAL_STRIDE + (t % OUT_LANES) * IN_LANES;
            var sum = 0.0;
            // unroll
            for (var i = 0u; i < IN_LANES; i++) {
                sum += partials[first + i];
            }
            totals[p * PASS * OUT_LANES + t] = sum;
        }
        workgroupBarrier();
    }
}

fn total(i: u32, out_lane: u32) -> f32 {
    return totals[i * OUT_LANES + out_lane];
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    product(group, lane);
}
