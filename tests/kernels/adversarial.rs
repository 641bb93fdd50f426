//! Scores that strain the softmax: all equal, one-hot at +-80, huge, and values at the end of f16.
//!
//! The stated bounds (2e-5, LSE 1e-5) are for scores and values of order 1. A score s that is a sum of products has a
//! rounding error of some 2^-24 sum |q k|, whatever computes it in f32, and that error is the LSE's and, relative to
//! the values, the output's. So the bounds here are the stated ones plus 8 such units ([`Size::score`]), times the
//! largest value. The NMSE stays as stated, but where products cancel: a fused multiply-add then leaves the rounding of
//! one product, which no order of adding avoids. There it may be that of an error of one unit.

use crate::case::{scale, Case, Sequence, Size};
use crate::common::{gpu, layouts, Rng};
use latten::{DType, Decode, HeadLayout, SplitPolicy};

/// Runs one case per layout, dtype and policy over inputs that `make` gives for a length.
fn strain(dtypes: &[DType], make: impl Fn(&HeadLayout, usize, usize, &mut Rng) -> (Vec<f32>, Vec<f32>)) {
    strain_by(dtypes, 0.0, make);
}

/// [`strain`], with `cancelled` units of a score's rounding allowed in the root mean square as well.
fn strain_by(
    dtypes: &[DType],
    cancelled: f64,
    make: impl Fn(&HeadLayout, usize, usize, &mut Rng) -> (Vec<f32>, Vec<f32>),
) {
    for heads in [layouts()[1], layouts()[3], layouts()[5]] {
        for &dtype in dtypes {
            for policy in [SplitPolicy::Off, SplitPolicy::FixedTokens(64)] {
                let decode = Decode::new(gpu(), heads, dtype).unwrap().with_policy(policy);
                let lengths = vec![(1, 1), (33, 1), (150, 1), (40, 3), (130, 16)];
                let case = Case { heads, dtype, page_size: 16, lengths, policy, seed: 21 };
                let inputs = case.lengths.iter().enumerate().map(|(i, &(kv_len, q_len))| {
                    let (rows, q) = make(&heads, kv_len, q_len, &mut Rng(21 + i as u64));
                    Sequence { rows, q, ..Default::default() }
                });
                let results = case.run(gpu(), &decode, inputs.collect(), 0xff);
                for (i, s) in results.iter().enumerate() {
                    let size = size(&heads, s);
                    case.compare(i, s, Size { cancelled: cancelled * size.score / UNITS, ..size });
                }
            }
        }
    }
}

/// Units of rounding, 2^-24 sum |q k|, allowed in any one score.
const UNITS: f64 = 8.0;

/// Largest sum |q k| of any row and token, in units of rounding; largest value.
fn size(heads: &HeadLayout, s: &Sequence) -> Size {
    let (mut score, mut value) = (0.0f64, 0.0f64);
    for q in s.q.chunks_exact(heads.q_dim()) {
        for row in s.rows.chunks_exact(heads.kv_dim()) {
            for g in 0..heads.groups() {
                let state = &row[g * heads.state_dim()..][..heads.state_dim()];
                let key = state[..heads.nope_dim()].iter().chain(&row[heads.groups() * heads.state_dim()..]);
                let sum: f64 = q.iter().zip(key).map(|(a, b)| f64::from((a * b).abs())).sum();
                score = score.max(sum * f64::from(scale(heads)));
            }
        }
    }
    for v in &s.rows {
        value = value.max(f64::from(v.abs()));
    }
    Size { score: UNITS * score * 2f64.powi(-24), cancelled: 0.0, value }
}

fn queries(heads: &HeadLayout, q_len: usize) -> usize {
    q_len * heads.q_heads() * heads.q_dim()
}

/// Rows of small random numbers with `key(token)` as the first key element of every group, and queries that multiply
/// it into the score and ignore the rest.
fn scored(
    heads: &HeadLayout,
    (kv_len, q_len): (usize, usize),
    rng: &mut Rng,
    key: impl Fn(usize) -> f32,
    top: f32,
) -> (Vec<f32>, Vec<f32>) {
    let mut rows = rng.values(kv_len * heads.kv_dim());
    for (t, row) in rows.chunks_exact_mut(heads.kv_dim()).enumerate() {
        row.chunks_exact_mut(heads.state_dim()).take(heads.groups()).for_each(|state| state[0] = key(t));
    }
    let mut q = vec![0.0; queries(heads, q_len)];
    q.chunks_exact_mut(heads.q_dim()).for_each(|q| q[0] = top / scale(heads));
    (rows, q)
}

const BOTH: [DType; 2] = [DType::F32, DType::F16];

#[test]
fn all_scores_equal() {
    strain(&BOTH, |heads, kv_len, q_len, rng| (rng.values(kv_len * heads.kv_dim()), vec![0.0; queries(heads, q_len)]));
    strain(&BOTH, |heads, kv_len, q_len, rng| scored(heads, (kv_len, q_len), rng, |_| 1.0, -7.5));
}

#[test]
fn one_hot_at_80() {
    for hot in [0usize, 17, 63, 64, 129] {
        strain(&BOTH, |heads, kv_len, q_len, rng| {
            let hot = hot.min(kv_len - 1);
            scored(heads, (kv_len, q_len), rng, |t| if t == hot { 1.0 } else { -1.0 }, 80.0)
        });
    }
    // All at -80, so that the sums are of weights that e^-80 would have made vanish without the maximum.
    strain(&BOTH, |heads, kv_len, q_len, rng| scored(heads, (kv_len, q_len), rng, |_| -1.0, 80.0));
}

#[test]
fn a_huge_score_in_the_last_token_or_the_first() {
    for top in [2.0e3, 2.0e4, -2.0e4] {
        strain(&BOTH, |heads, kv_len, q_len, rng| {
            scored(heads, (kv_len, q_len), rng, |t| if t == kv_len - 1 { 1.0 } else { 1.0 / 1024.0 }, top)
        });
        strain(&BOTH, |heads, kv_len, q_len, rng| {
            scored(heads, (kv_len, q_len), rng, |t| if t == 0 { 1.0 } else { 1.0 / 1024.0 }, top)
        });
    }
}

/// Scores rising by 40 with every token: the maximum moves at each, and what came before vanishes.
#[test]
fn rising_and_falling_scores() {
    for sign in [1.0, -1.0] {
        strain(&BOTH, |heads, kv_len, q_len, rng| scored(heads, (kv_len, q_len), rng, |t| sign * t as f32, 40.0));
    }
}

#[test]
fn alternating_at_the_end_of_f16() {
    let alternate = |heads: &HeadLayout, kv_len: usize, by_dim: bool| {
        let sign = |i: usize| if i.is_multiple_of(2) { 6.0e4 } else { -6.0e4 };
        let at = |i: usize| sign(i / heads.kv_dim() + if by_dim { i % heads.kv_dim() } else { 0 });
        (0..kv_len * heads.kv_dim()).map(at).collect::<Vec<f32>>()
    };
    for by_dim in [false, true] {
        // Queries of 2^-16, so that scores are of order 1 and all tokens count: sums that cancel.
        strain_by(&[DType::F16], 1.0, |heads, kv_len, q_len, rng| {
            let q = rng.values(queries(heads, q_len)).iter().map(|v| v / 65536.0).collect();
            (alternate(heads, kv_len, by_dim), q)
        });
        // Queries of order 1: scores of some 1e5, of which only the largest count.
        strain_by(&[DType::F16], 1.0, |heads, kv_len, q_len, rng| {
            (alternate(heads, kv_len, by_dim), vec![1.0 + rng.value() / 1024.0; queries(heads, q_len)])
        });
    }
}
