//! What ranks have found over different tokens becomes what attention over all of them finds. Pure.
//!
//! ```text
//! w_r = exp(LSE_r) / sum_s exp(LSE_s),  O = sum_r w_r O_r
//! ```
//! As `shaders/attention/join.wgsl` has it for two results on one device. Each rank weighs its own, and the sum is one of those that ranks
//! form anyway. The weights of a row add up to 1: so what is linear in `O`, or a bias more, may come before the sum.

/// Weighs rows of `width` values. `own` is the log-sum-exp of each row, `all` that of each row of the first rank, then of the next, ..;
/// minus infinity of a row that saw no token. At least one rank saw some.
pub(crate) fn weigh(values: &mut [f32], width: usize, own: &[f32], all: &[f32]) {
    let rows = own.len().max(1);
    for (row, (values, lse)) in values.chunks_exact_mut(width.max(1)).zip(own).enumerate() {
        let of_ranks = || all.iter().skip(row).step_by(rows).map(|lse| f64::from(*lse));
        let top = of_ranks().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = of_ranks().map(|lse| (lse - top).exp()).sum();
        let weight = ((f64::from(*lse) - top).exp() / total) as f32;
        values.iter_mut().for_each(|value| *value *= weight);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Softmax over scores, in f64: the weighted value and the log-sum-exp.
    fn attend(scores: &[f64], values: &[[f64; 3]]) -> ([f64; 3], f64) {
        let total: f64 = scores.iter().map(|s| s.exp()).sum();
        let mut out = [0.0; 3];
        for (score, value) in scores.iter().zip(values) {
            out.iter_mut().zip(value).for_each(|(out, value)| *out += score.exp() / total * value);
        }
        (if scores.is_empty() { [0.0; 3] } else { out }, total.ln())
    }

    #[test]
    fn the_weighed_sum_is_attention_over_all_tokens() {
        let mut random = fastrand::Rng::with_seed(5);
        let mut number = || f64::from(random.f32()) * 8.0 - 4.0;
        // Of two rows the tokens of three ranks: one has none in the first row.
        let tokens = [[4, 0, 3], [1, 6, 1]];
        let (mut found, mut lse, mut want) = (vec![Vec::new(); 3], vec![Vec::new(); 3], Vec::new());
        for counts in tokens {
            let (mut all_scores, mut all_values) = (Vec::new(), Vec::new());
            for (rank, count) in counts.into_iter().enumerate() {
                let scores: Vec<f64> = (0..count).map(|_| 10.0 * number()).collect();
                let values: Vec<[f64; 3]> = (0..count).map(|_| [number(), number(), number()]).collect();
                let (out, sum) = attend(&scores, &values);
                found[rank].extend(out.map(|v| v as f32));
                lse[rank].push(sum as f32);
                all_scores.extend(scores);
                all_values.extend(values);
            }
            want.extend(attend(&all_scores, &all_values).0);
        }
        let all = lse.concat();
        for (values, own) in found.iter_mut().zip(&lse) {
            weigh(values, 3, own, &all);
        }
        for (at, want) in want.iter().enumerate() {
            let got: f32 = found.iter().map(|values| values[at]).sum();
            assert!((f64::from(got) - want).abs() < 1e-5, "{got} {want}");
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        let mut values = [1.0f32, 2.0];
        weigh(&mut values, 1, &[f32::NAN, 0.0], &[f32::NAN, 0.0, 1.0, f32::NEG_INFINITY]);
        assert!(values[0].is_nan() && values[1] == 2.0, "{values:?}");
    }
}
