// Sums and tops over LANES lanes in two turns: 16 lanes take LANES / 16 each, then every lane takes those 16. Part of the
// sampled_* kernels. Constants: LANES. Parts: top.

const TURN = LANES / 16u;
var<workgroup> turn_value: array<f32, 16>;
var<workgroup> turn_index: array<u32, 16>;

// Always in the same order, so that every lane and every run has the same bits.
fn sum_of_lanes(lane: u32, value: f32) -> f32 {
    lane_value[lane] = value;
    workgroupBarrier();
    if (lane < 16u) {
        var own = 0.0;
        for (var i = 0u; i < TURN; i++) {
            own += lane_value[lane * TURN + i];
        }
        turn_value[lane] = own;
    }
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < 16u; i++) {
        sum += turn_value[i];
    }
    return sum;
}

fn top_in_turns(lane: u32, own: Top) -> Top {
    lane_value[lane] = own.value;
    lane_index[lane] = own.index;
    workgroupBarrier();
    if (lane < 16u) {
        var best = Top(0.0, NO_TOKEN);
        for (var i = 0u; i < TURN; i++) {
            best = top_of(best, Top(lane_value[lane * TURN + i], lane_index[lane * TURN + i]));
        }
        turn_value[lane] = best.value;
        turn_index[lane] = best.index;
    }
    workgroupBarrier();
    var best = Top(0.0, NO_TOKEN);
    for (var i = 0u; i < 16u; i++) {
        best = top_of(best, Top(turn_value[i], turn_index[i]));
    }
    return best;
}
