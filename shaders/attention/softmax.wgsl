// The softmax state: a running maximum m and a sum l, in units of log2. NEGATIVE stands for minus infinity, since
// Metal compiles with fast math and may assume that no infinity exists; l == 0 says "no token seen".

const NEGATIVE = -1.0e30;
const LN_2 = 0.6931471805599453;
const MINUS_INFINITY_BITS = 0xff800000u;

// LSE in log2 units of a finished row, NEGATIVE for an empty one.
fn softmax_lse2(m: f32, l: f32) -> f32 {
    return select(NEGATIVE, m + log2(max(l, 1.0e-38)), l > 0.0);
}

// Natural-log LSE as bits; real minus infinity for an empty row.
fn softmax_lse_bits(lse2: f32) -> u32 {
    return select(bitcast<u32>(lse2 * LN_2), MINUS_INFINITY_BITS, lse2 <= 0.5 * NEGATIVE);
}

// 1 / l, and 0 for an empty row.
fn softmax_inverse(l: f32) -> f32 {
    return select(0.0, 1.0 / max(l, 1.0e-38), l > 0.0);
}
