// Which experts a row goes to, and with what weight (DeepSeek-V2, arXiv 2405.04434 section 2.2; V3, arXiv 2412.19437).
//   s_e = score of expert e (the slot); c_e = s_e + bias_e
//   a group's score = the sum of its GROUP_BEST largest c; of the GROUPS groups the TOP_GROUPS best are open
//   the TOP experts of open groups with the largest c, in that order, get weight = s_e * factor,
//   with NORMALISE divided by the sum of all TOP s. Among equals the lower index wins.
//
// Grid: (rows); one workgroup per row. A rank is counted, not sorted for: how many others come before.
// Constants: LANES, EXPERTS, GROUPS, TOP_GROUPS, TOP, GROUP_BEST (1 or 2), NORMALISE (0 or 1). Parts: score_of_*.

struct Params {
    factor: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
// logits: (rows, EXPERTS) f32
@group(0) @binding(1) var<storage, read> logits: array<f32>;
// bias: (EXPERTS) f32
@group(0) @binding(2) var<storage, read> bias: array<f32>;
// ids: (rows, TOP) u32
@group(0) @binding(3) var<storage, read_write> ids: array<u32>;
// weights: (rows, TOP) f32
@group(0) @binding(4) var<storage, read_write> weights: array<f32>;

const GROUP_SIZE = EXPERTS / GROUPS;
var<workgroup> scores: array<f32, EXPERTS>;
var<workgroup> choices: array<f32, EXPERTS>;
var<workgroup> group_scores: array<f32, GROUPS>;
var<workgroup> open: array<u32, GROUPS>;
var<workgroup> chosen: array<u32, TOP>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = group.x * EXPERTS;
    let shape = score_shape(first);
    for (var e = lane; e < EXPERTS; e += LANES) {
        let score = score_of(logits[first + e], shape);
        scores[e] = score;
        choices[e] = score + bias[e];
    }
    if (lane < TOP) {
        chosen[lane] = 0u; // stands only where NaN made every comparison false
    }
    workgroupBarrier();
    for (var g = lane; g < GROUPS; g += LANES) {
        var best = -3.4e38;
        var second = -3.4e38;
        for (var e = g * GROUP_SIZE; e < (g + 1u) * GROUP_SIZE; e++) {
            let c = choices[e];
            second = max(second, min(best, c));
            best = max(best, c);
        }
        group_scores[g] = select(best, best + second, GROUP_BEST == 2u);
    }
    workgroupBarrier();
    for (var g = lane; g < GROUPS; g += LANES) {
        var rank = 0u;
        for (var h = 0u; h < GROUPS; h++) {
            let before = group_scores[h] > group_scores[g] || (group_scores[h] == group_scores[g] && h < g);
            rank += select(0u, 1u, before);
        }
        open[g] = select(0u, 1u, rank < TOP_GROUPS);
    }
    workgroupBarrier();
    for (var e = lane; e < EXPERTS; e += LANES) {
        var rank = 0u;
        for (var f = 0u; f < EXPERTS; f++) {
            let before = choices[f] > choices[e] || (choices[f] == choices[e] && f < e);
            rank += select(0u, open[f / GROUP_SIZE], before);
        }
        if (open[e / GROUP_SIZE] == 1u && rank < TOP) {
            chosen[rank] = e;
        }
    }
    workgroupBarrier();
    var total = 0.0;
    for (var t = 0u; t < TOP; t++) {
        total += scores[chosen[t]];
    }
    // As the models' own code guards the division.
    let divisor = select(1.0, total + 1e-20, NORMALISE == 1u);
    if (lane < TOP) {
        ids[group.x * TOP + lane] = chosen[lane];
        weights[group.x * TOP + lane] = scores[chosen[lane]] / divisor * params.factor;
    }
}
