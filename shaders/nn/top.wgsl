// The largest logit and its lowest index, of a row or a part of it; of several lanes, or of several parts.

// By bits: compilers may take it that no f32 is NaN or infinite.
const EXPONENT_BITS = 0x7f800000u;
const MINUS_INFINITY_BITS = 0xff800000u;
const NO_TOKEN = 0xffffffffu;
// Where a NaN or +infinity is among the logits. No index: a row is smaller.
const SPOILED = 0xfffffffeu;
var<workgroup> lane_value: array<f32, LANES>;
var<workgroup> lane_index: array<u32, LANES>;

struct Top {
    value: f32,
    index: u32, // or NO_TOKEN where no logit is finite, or SPOILED
}

// The top of a logit and of those before it.
fn top_with(best: Top, logit: f32, index: u32) -> Top {
    let bits = bitcast<u32>(logit);
    let finite = (bits & EXPONENT_BITS) != EXPONENT_BITS;
    if (best.index == SPOILED || !(finite || bits == MINUS_INFINITY_BITS)) {
        return Top(0.0, SPOILED);
    }
    if (finite && (best.index == NO_TOKEN || logit > best.value)) {
        return Top(logit, index);
    }
    return best;
}

// The top of two parts, in whatever order.
fn top_of(a: Top, b: Top) -> Top {
    if (a.index == SPOILED || b.index == NO_TOKEN) {
        return a;
    }
    let later = b.value < a.value || (b.value == a.value && b.index > a.index);
    if (b.index != SPOILED && a.index != NO_TOKEN && later) {
        return a;
    }
    return b;
}

// The top of what the first `count` lanes have, in every lane.
fn top_of_lanes(own: Top, lane: u32, count: u32) -> Top {
    lane_value[lane] = own.value;
    lane_index[lane] = own.index;
    workgroupBarrier();
    var best = Top(0.0, NO_TOKEN);
    for (var i = 0u; i < count; i++) {
        best = top_of(best, Top(lane_value[i], lane_index[i]));
    }
    workgroupBarrier();
    return best;
}
