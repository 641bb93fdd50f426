// Online softmax, for every kernel that sums weighted values: a running maximum m, a sum l of weights, and sums of weighted
// values, in units of log2.
//
//   start    m = FLOOR, l = 0
//   step     m' = max(m, scores);  l and the sums shrink by exp2(m - m');  each weight is exp2(score - m')
//   merge    of states over disjoint tokens: as a step, a state's share being exp2(m - m')
//   finish   O = sums / l,  LSE = m + log2(l)
//
// (Milakov and Gimelshein, arXiv 1805.02867; FlashAttention.) NEGATIVE stands for minus infinity, since drivers may compile
// with fast math and take it that no infinity exists; l == 0 says "no token seen".
// Constants: Rows, the vector of a block of rows (f32 where a lane has one row).

const NEGATIVE = -1.0e30;
// Where maxima begin that only rise by SLACK: so far above NEGATIVE that the weight of a masked score is 0 from the first
// step on.
const FLOOR = 0.5 * NEGATIVE;
// Such a maximum is raised, and the sums shrunk, only when a score exceeds it by this much: a weight is then at most 2^8,
// which f32 holds as exactly as 1.
const SLACK = 8.0;
const LN_2 = 0.6931471805599453;
const LOG2_E = 1.4426950408889634;
const MINUS_INFINITY_BITS = 0xff800000u;

// Whether a score makes its row's maximum rise.
fn softmax_exceeds(score: f32, m: f32) -> bool {
    return score > m + SLACK;
}

// What l and the sums are multiplied by when the maximum rises from `m` to `next`.
fn softmax_shrink(m: Rows, next: Rows) -> Rows {
    return exp2(m - next);
}

// The weights of the rows' scores.
fn softmax_weights(scores: Rows, m: Rows) -> Rows {
    return exp2(scores - m);
}

// The weight of one score.
fn softmax_weight(score: f32, m: f32) -> f32 {
    return exp2(score - m);
}

// The share of a finished part, whose LSE this is, in a row of several; 0 for an empty part.
fn softmax_share(lse2: f32, m: f32) -> f32 {
    return select(0.0, exp2(lse2 - m), lse2 > FLOOR);
}

// LSE in log2 units of a finished row, NEGATIVE for an empty one.
fn softmax_lse2(m: f32, l: f32) -> f32 {
    return select(NEGATIVE, m + log2(max(l, 1.0e-38)), l > 0.0);
}

// Natural-log LSE as bits; real minus infinity for an empty row.
fn softmax_lse_bits(lse2: f32) -> u32 {
    return select(bitcast<u32>(lse2 * LN_2), MINUS_INFINITY_BITS, lse2 <= FLOOR);
}

// And back.
fn softmax_lse2_of(bits: u32) -> f32 {
    return select(bitcast<f32>(bits) * LOG2_E, NEGATIVE, bits == MINUS_INFINITY_BITS);
}

// 1 / l, and 0 for an empty row.
fn softmax_inverse(l: f32) -> f32 {
    return select(0.0, 1.0 / max(l, 1.0e-38), l > 0.0);
}
