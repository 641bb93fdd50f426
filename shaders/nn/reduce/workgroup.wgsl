// Sums over the IN_LANES lanes of each output through workgroup memory, PASS of a lane's values at a time. No lane adds more than a few
// numbers in turn, however few values there are. Slot: nn/reduce. Parts: nn/segments.
const EIGHT_STRIDE = 9u; // odd, against bank conflicts
const PARTIAL_STRIDE = (LANES / 8u * EIGHT_STRIDE) | 1u;
var<workgroup> partials: array<f32, PASS * PARTIAL_STRIDE>;
var<workgroup> segments: array<f32, PASS * OUT_LANES * SEGMENT_STRIDE>;

fn reduce(lane: u32, values: array<f32, PADDED>) {
    // unroll
    for (var p = 0u; p < PASSES; p++) {
        // unroll
        for (var i = 0u; i < PASS; i++) {
            partials[i * PARTIAL_STRIDE + lane / 8u * EIGHT_STRIDE + lane % 8u] = values[p * PASS + i];
        }
        workgroupBarrier();
        for (var t = lane; t < PASS * OUT_LANES * SEGMENTS; t += LANES) {
            let of_sum = t / SEGMENTS;
            let eight = of_sum % OUT_LANES * SEGMENTS + t % SEGMENTS;
            let at = of_sum / OUT_LANES * PARTIAL_STRIDE + eight * EIGHT_STRIDE;
            segments[of_sum * SEGMENT_STRIDE + t % SEGMENTS] =
                ((partials[at] + partials[at + 4u]) + (partials[at + 2u] + partials[at + 6u]))
                + ((partials[at + 1u] + partials[at + 5u]) + (partials[at + 3u] + partials[at + 7u]));
        }
        workgroupBarrier();
        for (var t = lane; t < PASS * OUT_LANES; t += LANES) {
            var sum = 0.0;
            // unroll
            for (var i = 0u; i < SEGMENTS; i++) {
                sum += segments[t * SEGMENT_STRIDE + i];
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
