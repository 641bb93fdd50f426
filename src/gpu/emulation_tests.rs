//! Cooperative matrices without the feature, so that what `linear_matrix` does around its products is tested on every
//! device: a text in which each lane holds 8 of a matrix's 256 sums, subgroups are runs of 32 lanes, and a product reads its
//! factors where they lie. What the driver makes of the real thing is tested by `tests/nn/matrix.rs` where there is any.

/// Element `lane + 32 i` of 16 x 16 is the lane's i-th; factors stand for the place they would have been loaded from.
const OPERATIONS: &str = "
fn product(lane: u32, x_at: u32, w_at: u32, before: array<f32, 8>) -> array<f32, 8> {
    var sums = before;
    for (var i = 0u; i < 8u; i++) {
        let x_row = x_at + (lane + 32u * i) / 16u * STRIDE;
        let w_row = w_at + (lane + 32u * i) % 16u * STRIDE;
        for (var q = 0u; q < 4u; q++) {
            sums[i] += dot(x_tile[x_row + q / 2u][q % 2u], w_tile[w_row + q / 2u][q % 2u]);
        }
    }
    return sums;
}
fn spill(lane: u32, sums: array<f32, 8>, at: u32) {
    var held = sums;
    for (var i = 0u; i < 8u; i++) {
        let element = lane + 32u * i;
        scratch[at + element / 4u][element % 4u] = held[i];
    }
}
";

pub(super) fn without_matrices(wgsl: &str) -> String {
    let mut text = wgsl.to_string();
    for (from, to) in [
        ("enable f16;\n", ""),
        ("enable wgpu_cooperative_matrix;\n", ""),
        ("coopLoad<coop_mat16x16<f16, B>>(&w_tile[at][0], 2u * STRIDE)", "at"),
        ("coopLoadT<coop_mat16x16<f16, A>>(&x_tile[at][0], 2u * STRIDE)", "at"),
        ("coopMultiplyAdd(", "product(subgroup_lane, "),
        ("coopStoreT(", "spill(subgroup_lane, "),
        ("&scratch[own], 4u", "own"),
        ("coop_mat16x16<f32, C>", "array<f32, 8>"),
        ("coop_mat16x16<f16, B>", "u32"),
        ("vec4<f16>", "vec4<f32>"),
        ("vec2<f16>", "vec2<f32>"),
        ("@builtin(subgroup_id) subgroup: u32,\n", "@builtin(local_invocation_index) index: u32,\n"),
        ("    @builtin(subgroup_invocation_id) subgroup_lane: u32,\n", ""),
        (
            "    let lane = subgroup * 32u + subgroup_lane;\n",
            "    let lane = index;\n    let subgroup = lane / 32u;\n    let subgroup_lane = lane % 32u;\n",
        ),
    ] {
        assert!(text.contains(from), "no {from:?} in the text");
        text = text.replace(from, to);
    }
    text + OPERATIONS
}
