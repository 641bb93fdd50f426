// Join: attention over two disjoint sets of tokens becomes attention over both, in the place of the first.
//
//   M = max(LSE_a, LSE_b);  w = exp(LSE - M);  O = (w_a O_a + w_b O_b) / (w_a + w_b);  LSE = M + ln(w_a + w_b)
//
// What `merge` does with the parts of one plan, here with the results of two. A row that saw no token in one set has LSE
// minus infinity there and weight 0; one that saw none at all keeps its zeros.
//
// Grid: x = query token of the part's sequence, y = head; lanes over the value.
// Constants: Q_HEADS V_DIM. Parts: softmax.

struct Params {
    first: u32, // word of `places` that the part begins with
}

@group(0) @binding(0) var<uniform> params: Params;
// as in cached_rows: of a part's head the second word is its sequence's first query token, the third how many
@group(0) @binding(1) var<storage, read> places: array<u32>;
// (query tokens, Q_HEADS, V_DIM) f32, and (query tokens, Q_HEADS) f32 bits, natural log
@group(0) @binding(2) var<storage, read> other_out: array<f32>;
@group(0) @binding(3) var<storage, read> other_lse: array<u32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
@group(0) @binding(5) var<storage, read_write> lse: array<u32>;

const LANES = 64u;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    if (workgroup.x >= places[params.first + 2u]) {
        return;
    }
    let row = (places[params.first + 1u] + workgroup.x) * Q_HEADS + workgroup.y;
    let a = softmax_lse2_of(lse[row]);
    let b = softmax_lse2_of(other_lse[row]);
    let top = max(a, b);
    let weight_a = softmax_share(a, top);
    let weight_b = softmax_share(b, top);
    let total = weight_a + weight_b;
    let share_a = weight_a * softmax_inverse(total);
    let share_b = weight_b * softmax_inverse(total);
    for (var v = lane; v < V_DIM; v += LANES) {
        let at = row * V_DIM + v;
        out[at] = share_a * out[at] + share_b * other_out[at];
    }
    // Every lane has read the row's first weight.
    storageBarrier();
    if (lane == 0u) {
        lse[row] = softmax_lse_bits(softmax_lse2(top, total));
    }
}
