// Sums over the IN_LANES lanes of each output by subgroups of whatever size, at most MAX_SUBGROUPS of them. Where there are
// several outputs side by side, IN_LANES is a subgroup or more.
// Slot: nn/reduce.
var<workgroup> partials: array<f32, PADDED * MAX_SUBGROUPS>;
var<private> subgroup: u32;
var<private> subgroup_lane: u32;
var<private> subgroup_count: u32;
var<workgroup> totals: array<f32, PADDED * OUT_LANES>;

fn reduce(lane: u32, values: array<f32, PADDED>) {
    // unroll
    for (var i = 0u; i < PADDED; i++) {
        let sum = subgroupAdd(values[i]);
        if (subgroup_lane == 0u) {
            partials[i * MAX_SUBGROUPS + subgroup] = sum;
        }
    }
    workgroupBarrier();
    let subgroups_per_out = subgroup_count / OUT_LANES;
    for (var t = lane; t < PADDED * OUT_LANES; t += LANES) {
        let first = t / OUT_LANES * MAX_SUBGROUPS + t % OUT_LANES * subgroups_per_out;
        var sum = 0.0;
        for (var s = 0u; s < subgroups_per_out; s++) {
            sum += partials[first + s];
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
    @builtin(subgroup_id) subgroup_of_lane: u32,
    @builtin(subgroup_size) subgroup_width: u32,
    @builtin(subgroup_invocation_id) lane_of_subgroup: u32,
    @builtin(num_subgroups) subgroups_of_group: u32,
) {
    subgroup = subgroup_of_lane;
    subgroup_lane = lane_of_subgroup;
    subgroup_count = subgroups_of_group;
    // Not the invocation's own index: lanes of an output are to be those of a subgroup.
    product(group, subgroup * subgroup_width + subgroup_lane);
}
