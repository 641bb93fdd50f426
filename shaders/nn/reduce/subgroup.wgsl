// Sums over the IN_LANES lanes of each output: of eight lanes by shuffles, whatever the size of a subgroup, then through workgroup
// memory. Slot: nn/reduce. Parts: nn/segments.
var<workgroup> segments: array<f32, PADDED * OUT_LANES * SEGMENT_STRIDE>;

fn reduce(lane: u32, values: array<f32, PADDED>) {
    // unroll
    for (var i = 0u; i < PADDED; i++) {
        var sum = values[i];
        sum += subgroupShuffleXor(sum, 4u);
        sum += subgroupShuffleXor(sum, 2u);
        sum += subgroupShuffleXor(sum, 1u);
        if (lane % 8u == 0u) {
            segments[(i * OUT_LANES + lane / IN_LANES) * SEGMENT_STRIDE + lane % IN_LANES / 8u] = sum;
        }
    }
    workgroupBarrier();
    for (var t = lane; t < PADDED * OUT_LANES; t += LANES) {
        var sum = 0.0;
        // unroll
        for (var i = 0u; i < SEGMENTS; i++) {
            sum += segments[t * SEGMENT_STRIDE + i];
        }
        totals[t] = sum;
    }
    workgroupBarrier();
}

fn total(i: u32, out_lane: u32) -> f32 {
    return totals[i * OUT_LANES + out_lane];
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) subgroup_width: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
) {
    // Not the invocation's own index: eight lanes side by side are to be in one subgroup.
    product(group, subgroup * subgroup_width + subgroup_lane);
}
