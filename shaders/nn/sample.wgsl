// tokens[r] = one index drawn from softmax(logits[r] / temperature), cut to its nucleus; the lowest index of the largest
// logit where temperature is 0.
// p_i = exp((l_i - max l) / temperature); nucleus = every i with p_i >= t, for the largest t whose nucleus holds at
// least top_p of the mass (equal p stay together; top_p >= 1 keeps all);
// token = the first i, ascending, at which the cumulative mass of the nucleus exceeds u times its mass;
// NO_TOKEN where the row gives no probabilities: a NaN or +infinity in it, or no finite logit (-infinity forbids a token).
//
// Grid: (rows); one workgroup per row.
// Constants: LANES. Parts: top, nn/row_top/*.

struct Params {
    vocab: u32,
    row_stride: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
// logits: (rows, vocab) f32, row_stride elements apart
@group(0) @binding(1) var<storage, read> logits: array<f32>;
// samplers: (rows) vec4<f32>: temperature, top_p, u in [0, 1), unused
@group(0) @binding(2) var<storage, read> samplers: array<vec4<f32>>;
// tokens: (rows) u32
@group(0) @binding(3) var<storage, read_write> tokens: array<u32>;

const ONE_BITS = 0x3f800000u;

// Sum over the lanes, in lane order.
fn total(lane: u32, value: f32) -> f32 {
    lane_value[lane] = value;
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < LANES; i++) {
        sum += lane_value[i];
    }
    workgroupBarrier();
    return sum;
}

// p_i where it is at least the threshold, else 0. Below exp(-80) it is 0: no denormals, no exponent of -infinity.
fn kept(at: u32, largest: f32, temperature: f32, threshold: f32) -> f32 {
    let exponent = (logits[at] - largest) / temperature;
    let p = exp(max(exponent, -80.0));
    return select(0.0, p, exponent > -80.0 && p >= threshold);
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.x * params.row_stride;
    let sampler = samplers[group.x];
    let best = row_top(row, group.x, lane);
    if (sampler.x <= 0.0) {
        if (lane == 0u) {
            tokens[group.x] = best.index;
        }
        return;
    }
    var threshold = 0.0;
    if (sampler.y < 1.0) {
        var mass = 0.0;
        for (var i = lane; i < params.vocab; i += LANES) {
            mass += kept(row + i, best.value, sampler.x, 0.0);
        }
        let wanted = sampler.y * total(lane, mass);
        // Positive floats are ordered as their bits are. The nucleus at `low` holds enough, at `high` too little.
        var low = 0u;
        var high = ONE_BITS + 1u;
        for (var step = 0u; step < 30u; step++) {
            let middle = (low + high) / 2u;
            mass = 0.0;
            for (var i = lane; i < params.vocab; i += LANES) {
                mass += kept(row + i, best.value, sampler.x, bitcast<f32>(middle));
            }
            let enough = total(lane, mass) >= wanted;
            low = select(low, middle, enough);
            high = select(middle, high, enough);
        }
        threshold = bitcast<f32>(low);
    }
    // Each lane owns a run of indices, so that lane order is index order.
    let run = (params.vocab + LANES - 1u) / LANES;
    let first = lane * run;
    let end = min(first + run, params.vocab);
    var own = 0.0;
    for (var i = first; i < end; i++) {
        own += kept(row + i, best.value, sampler.x, threshold);
    }
    let target_mass = sampler.z * total(lane, own);
    lane_value[lane] = own;
    workgroupBarrier();
    var before = 0.0;
    var winner = LANES;
    var winner_before = 0.0;
    for (var i = 0u; i < LANES; i++) {
        let next = before + lane_value[i];
        if (winner == LANES && next > target_mass) {
            winner = i;
            winner_before = before;
        }
        before = next;
    }
    // Without a largest logit the masses mean nothing. With one, some lane's mass exceeds the target.
    let none = best.index == NO_TOKEN;
    if ((none || winner == LANES) && lane == 0u) {
        tokens[group.x] = best.index;
    }
    if (!none && winner == lane) {
        var token = best.index;
        var mass = winner_before;
        for (var i = first; i < end; i++) {
            let p = kept(row + i, best.value, sampler.x, threshold);
            mass += p;
            // Rounding may leave the last sum of a run short of the target: then its last kept index stands.
            token = select(token, i, p > 0.0);
            if (mass > target_mass) {
                break;
            }
        }
        tokens[group.x] = token;
    }
}
