// No sums over lanes: each lane goes along whole rows. For IN_LANES = 1, and devices where a barrier costs more than what lanes
// save by reading side by side. Slot: nn/reduce.
var<private> totals: array<f32, PADDED>;

fn reduce(lane: u32, values: array<f32, PADDED>) {
    totals = values;
}

fn total(i: u32, out_lane: u32) -> f32 {
    return totals[i];
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    product(group, lane);
}
