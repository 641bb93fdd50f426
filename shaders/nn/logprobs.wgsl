// logprobs[r] = of the token tokens[r], then of the `count` largest logits of row r, the larger first and of equal ones the lower
// index: the token, and l - ln(sum of exp(l_i)). NO_TOKEN where there is none: the row gives no probabilities, or none is left
// that is finite; or, of the first, it is no token of the row or has no probability.
//
// Grid: (rows); one workgroup per row. At most LANES parts.
// Constants: LANES, PART. Parts: top, sampled_sums.

struct Params {
    vocab: u32,
    row_stride: u32,
    count: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read> parts: array<vec4<u32>>;
// (rows) u32
@group(0) @binding(3) var<storage, read> tokens: array<u32>;
// (rows, 1 + count) vec2<u32>: the token, and bits of its log-probability
@group(0) @binding(4) var<storage, read_write> logprobs: array<vec2<u32>>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.x * params.row_stride;
    let count = (params.vocab + PART - 1u) / PART;
    var own = Top(0.0, NO_TOKEN);
    var part_sum = 0.0;
    if (lane < count) {
        let part = parts[group.x * count + lane];
        own = Top(bitcast<f32>(part.x), part.y);
        part_sum = bitcast<f32>(part.z);
    }
    var best = top_in_turns(lane, own);
    let largest = best.value;
    let spoiled = best.index == SPOILED || best.index == NO_TOKEN;
    let exponent = own.value - largest;
    let counts = own.index != NO_TOKEN && exponent > -80.0;
    let sum = sum_of_lanes(lane, select(0.0, part_sum * exp(max(exponent, -80.0)), counts));
    let normal = log(sum);

    let to = group.x * (1u + params.count);
    if (lane == 0u) {
        let token = tokens[group.x];
        var first = vec2<u32>(NO_TOKEN, MINUS_INFINITY_BITS);
        if (!spoiled && token < params.vocab) {
            let logit = logits[row + token];
            if (bitcast<u32>(logit) != MINUS_INFINITY_BITS) {
                first = vec2<u32>(token, bitcast<u32>(logit - largest - normal));
            }
        }
        logprobs[to] = first;
    }
    for (var rank = 0u; rank < params.count; rank++) {
        let none = spoiled || best.index == NO_TOKEN;
        if (lane == 0u) {
            var entry = vec2<u32>(best.index, bitcast<u32>(best.value - largest - normal));
            if (none) {
                entry = vec2<u32>(NO_TOKEN, MINUS_INFINITY_BITS);
            }
            logprobs[to + 1u + rank] = entry;
        }
        // What is next in the part that it came from.
        let part = select(best.index / PART, 0u, none);
        let end = select(min(part * PART + PART, params.vocab), 0u, none);
        var next = Top(0.0, NO_TOKEN);
        for (var i = part * PART + lane; i < end; i += LANES) {
            let logit = logits[row + i];
            let later = logit < best.value || (logit == best.value && i > best.index);
            if (later) {
                next = top_with(next, logit, i);
            }
        }
        next = top_in_turns(lane, next);
        if (lane == part && !none) {
            own = next;
        }
        best = top_in_turns(lane, own);
    }
}
