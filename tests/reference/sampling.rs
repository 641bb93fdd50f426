//! `sample`: edge cases by hand, and any case against the definition computed by brute force.

use latten::reference::sample;
use proptest::prelude::*;

const NEVER: f64 = f64::NEG_INFINITY;
/// The largest f64 below 1.
const ALMOST_ONE: f64 = 1.0 - f64::EPSILON / 2.0;

#[test]
fn sampling_temperature_zero_is_the_first_of_the_largest() {
    assert_eq!(sample(&[1.0, 3.0, 2.0, 3.0], 0.0, 1.0, 0.99).unwrap(), 1);
    assert_eq!(sample(&[NEVER, -3.0], 0.0, 1.0, 0.0).unwrap(), 1);
    assert_eq!(sample(&[0.0; 5], 0.0, 0.1, 0.7).unwrap(), 0);
}

#[test]
fn sampling_walks_the_tokens_in_index_order() {
    // Masses 1 : 2 : 1 of 4.
    let logits = [0.0, 2f64.ln(), 0.0];
    for (u, want) in [(0.0, 0), (0.249, 0), (0.251, 1), (0.749, 1), (0.751, 2), (ALMOST_ONE, 2)] {
        assert_eq!(sample(&logits, 1.0, 1.0, u).unwrap(), want, "u {u}");
    }
    // The mass must exceed u's share, not reach it.
    assert_eq!(sample(&[0.0, 0.0], 1.0, 1.0, 0.5).unwrap(), 1);
    // Temperature 0.5 squares them: 1 : 4 : 1 of 6.
    for (u, want) in [(0.16, 0), (0.17, 1), (0.83, 1), (0.84, 2)] {
        assert_eq!(sample(&logits, 0.5, 1.0, u).unwrap(), want, "u {u} at temperature 0.5");
    }
}

#[test]
fn sampling_nucleus_keeps_ties_together() {
    // Masses 4, 2, 2, 1 of 9. 0.5 needs more than the 4: both 2s come along, the 1 does not.
    let logits = [1f64.ln(), 2f64.ln(), 4f64.ln(), 2f64.ln()];
    assert_eq!(sample(&logits, 1.0, 0.5, 0.0).unwrap(), 1);
    assert_eq!(sample(&logits, 1.0, 0.5, 0.26).unwrap(), 2);
    assert_eq!(sample(&logits, 1.0, 0.5, ALMOST_ONE).unwrap(), 3);
    // 4/9 = 0.44444 is reached by the 4 alone; what is smaller, and 0, as well.
    assert_eq!(sample(&logits, 1.0, 0.4445, 0.0).unwrap(), 1);
    for top_p in [0.4444, 0.4, 1e-300, 0.0] {
        for u in [0.0, 0.5, ALMOST_ONE] {
            assert_eq!(sample(&logits, 1.0, top_p, u).unwrap(), 2, "top_p {top_p}, u {u}");
        }
    }
    // Masses 1 and e^-6 = 0.0025: 0.995 is reached by the first alone, 1 keeps both.
    assert_eq!(sample(&[0.0, -6.0], 1.0, 0.995, ALMOST_ONE).unwrap(), 0);
    assert_eq!(sample(&[0.0, -6.0], 1.0, 1.0, ALMOST_ONE).unwrap(), 1);
    // All equal: a tiny nucleus still keeps every one of them.
    assert_eq!(sample(&[7.0; 4], 1.0, 1e-9, 0.6).unwrap(), 2);
}

#[test]
fn sampling_never_draws_a_forbidden_or_underflowing_token() {
    for u in [0.0, 0.3, ALMOST_ONE] {
        assert_eq!(sample(&[NEVER, -1e5, 0.0, -1e5, NEVER], 1.0, 1.0, u).unwrap(), 2, "u {u}");
    }
    assert_eq!(sample(&[1.0, 1.0 + 1e-9], 1e-300, 1.0, 0.5).unwrap(), 1, "a temperature near 0 is greedy");
}

#[test]
fn sampling_refuses_what_has_no_meaning() {
    let ok = [0.0, 1.0];
    for (logits, temperature, top_p, u, name) in [
        (&[][..], 1.0, 1.0, 0.0, "logits"),
        (&[NEVER, NEVER], 1.0, 1.0, 0.0, "logits"),
        (&[0.0, f64::INFINITY], 0.0, 1.0, 0.0, "logits"),
        (&[f64::NAN, 0.0], 0.0, 1.0, 0.0, "logits"),
        (&[0.0, f64::NAN], 1.0, 1.0, 0.0, "logits"),
        (&ok, -1.0, 1.0, 0.0, "temperature"),
        (&ok, f64::NAN, 1.0, 0.0, "temperature"),
        (&ok, f64::INFINITY, 1.0, 0.0, "temperature"),
        (&ok, 1.0, -0.1, 0.0, "top_p"),
        (&ok, 1.0, f64::NAN, 0.0, "top_p"),
        (&ok, 1.0, 1.0, 1.0, "u"),
        (&ok, 1.0, 1.0, -0.1, "u"),
        (&ok, 1.0, 1.0, f64::NAN, "u"),
    ] {
        let error = sample(logits, temperature, top_p, u).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{name}: ")), "{error}");
    }
}

proptest! {
    /// Logits from few integers, so that ties are common; each p as the threshold in turn, the largest that will do.
    #[test]
    fn sampling_follows_the_definition(
        logits in prop::collection::vec(-4..5i32, 1..12), top_p in 0.0..1.2f64, u in 0.0..1.0f64, warm in 1..4u32,
    ) {
        let logits: Vec<f64> = logits.into_iter().map(f64::from).collect();
        let temperature = f64::from(warm) / 2.0;
        let max = logits.iter().copied().fold(NEVER, f64::max);
        let p: Vec<f64> = logits.iter().map(|l| ((l - max) / temperature).exp()).collect();
        let mass_from = |t: f64| p.iter().filter(|&&p| p >= t).sum::<f64>();
        // Where a rounding decides whether a mass is reached, either answer is right: leave such a case out.
        prop_assume!(p.iter().all(|&t| (mass_from(t) - top_p * mass_from(0.0)).abs() > 1e-9));
        let threshold = p.iter().copied().filter(|&t| top_p < 1.0 && mass_from(t) >= top_p * mass_from(0.0)).fold(0.0, f64::max);
        let mut cumulative = 0.0;
        let want = p.iter().position(|&p| {
            cumulative += if p >= threshold { p } else { 0.0 };
            cumulative > u * mass_from(threshold)
        });
        prop_assert_eq!(Some(sample(&logits, temperature, top_p, u).unwrap()), want);
    }
}
