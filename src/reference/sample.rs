//! The next token from its logits: temperature, nucleus (top-p), one uniform number.
//!
//! Source: Holtzman et al., "The Curious Case of Neural Text Degeneration", arXiv 1904.09751, §3.1. The definition here
//! keeps ties together and walks the tokens in index order, so that the result does not depend on how anything is sorted.

use crate::error::{ErrorKind, Result};

/// Draws one index.
///
/// Temperature 0: the largest logit, the lowest index among equals. Otherwise `p_i = exp((l_i - max l) / temperature)`;
/// the nucleus is every i with `p_i >= t`, for the largest t among the p whose nucleus has a mass of at least
/// `top_p * sum p` (`top_p >= 1`: every i). The result is the first i, ascending, at which the cumulative mass of the
/// nucleus exceeds `u` times its whole mass.
///
/// - `logits`: (vocab,), not NaN; -inf forbids a token
/// - `temperature`: finite, not negative
/// - `top_p`: not negative
/// - `u`: uniform in [0, 1)
///
/// # Errors
///
/// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for logits that give no probabilities (a NaN, +infinity, or none
/// finite), a temperature, nucleus or `u` out of its range.
pub fn sample(logits: &[f64], temperature: f64, top_p: f64, u: f64) -> Result<usize> {
    let mut best = 0;
    for (i, &logit) in logits.iter().enumerate() {
        if logit.is_nan() {
            return Err(ErrorKind::argument("logits", format!("logit {i} is NaN")));
        }
        if logit > logits[best] {
            best = i;
        }
    }
    let Some(max) = logits.get(best).copied().filter(|max| max.is_finite()) else {
        return Err(ErrorKind::argument("logits", format!("none finite, or one +inf, among {}", logits.len())));
    };
    if !(0.0..f64::INFINITY).contains(&temperature) {
        return Err(ErrorKind::argument("temperature", format!("{temperature} is not finite and at least 0")));
    }
    if top_p.is_nan() || top_p < 0.0 {
        return Err(ErrorKind::argument("top_p", format!("{top_p} is not at least 0")));
    }
    if !(0.0..1.0).contains(&u) {
        return Err(ErrorKind::argument("u", format!("{u} is not in 0..1")));
    }
    if temperature == 0.0 {
        return Ok(best);
    }

    let p: Vec<f64> = logits.iter().map(|logit| ((logit - max) / temperature).exp()).collect();
    let threshold = if top_p >= 1.0 { 0.0 } else { nucleus_threshold(&p, top_p) };
    let kept_mass: f64 = p.iter().filter(|&&p| p >= threshold).sum();
    let mut cumulative = 0.0;
    for (i, &p) in p.iter().enumerate() {
        if p >= threshold {
            cumulative += p;
            if cumulative > u * kept_mass {
                return Ok(i);
            }
        }
    }
    Ok(best) // not reached: cumulative is now kept_mass, and that times any f64 below 1 rounds to less
}

/// The largest t among `p` such that all `p_i >= t` together reach `top_p` of the total.
fn nucleus_threshold(p: &[f64], top_p: f64) -> f64 {
    let total: f64 = p.iter().sum();
    let mut descending = p.to_vec();
    descending.sort_by(|a, b| b.total_cmp(a));
    let mut mass = 0.0;
    for &t in &descending {
        mass += t;
        if mass >= top_p * total {
            return t;
        }
    }
    0.0 // rounding left the sum below the total: keep all
}
