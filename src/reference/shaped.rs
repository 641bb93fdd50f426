//! The next token with penalties, biases, a mask and further cuts; and log-probabilities.
//!
//! Sources: repetition penalty, Keskar et al., "CTRL", arXiv 1909.05858, §4.1, for logits of either sign as in the transformers
//! library; presence and frequency, OpenAI's API reference; typical sampling, Meister et al., "Locally Typical Sampling", arXiv
//! 2202.00666; min-p, Nguyen et al., arXiv 2407.01082; top-k, Fan et al., arXiv 1805.04833; nucleus, [`sample`](super::sample()).

use crate::error::{ErrorKind, Result};

/// How [`sample_shaped`] draws. [`ShapeOptions::default`] is greedy, and changes nothing else.
#[derive(Debug, Clone, PartialEq)]
pub struct ShapeOptions<'a> {
    /// Added to logits: token and value.
    pub bias: &'a [(usize, f64)],
    /// The tokens of the window, in any order; a token stands there as often as it came.
    pub seen: &'a [usize],
    /// Those of them that were drawn.
    pub drawn: &'a [usize],
    /// Divides the positive logits of tokens that were seen, and multiplies the others.
    pub repetition: f64,
    /// Subtracted from logits of tokens that were drawn.
    pub presence: f64,
    /// Subtracted as often as a token was drawn.
    pub frequency: f64,
    /// Whether each token is allowed, where not all are.
    pub allowed: Option<&'a [bool]>,
    /// As in [`sample`](super::sample()).
    pub temperature: f64,
    /// Least share of the largest probability; 0 keeps all.
    pub min_p: f64,
    /// Most tokens, but for ties; 0 keeps all.
    pub top_k: usize,
    /// Mass of the tokens whose information is closest to its mean; 1 keeps all.
    pub typical_p: f64,
    /// Mass of the most likely ones; 1 keeps all.
    pub top_p: f64,
}

impl Default for ShapeOptions<'_> {
    fn default() -> Self {
        ShapeOptions {
            bias: &[],
            seen: &[],
            drawn: &[],
            repetition: 1.0,
            presence: 0.0,
            frequency: 0.0,
            allowed: None,
            temperature: 0.0,
            min_p: 0.0,
            top_k: 0,
            typical_p: 1.0,
            top_p: 1.0,
        }
    }
}

/// Logits as they are drawn from: `l + bias`; where the token was seen, divided by `repetition` if positive, else multiplied by
/// it; less `presence` where it was drawn, and less `frequency` as often as it was; -infinity where it is not allowed. Each step
/// stays within the range of f32.
///
/// # Errors
///
/// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for a token past the logits, and where `allowed` has another length.
pub fn shape_logits(logits: &[f64], options: &ShapeOptions<'_>) -> Result<Vec<f64>> {
    let most = f64::from(f32::MAX);
    let mut shaped = logits.to_vec();
    let named = options.bias.iter().map(|(token, _)| token).chain(options.seen).chain(options.drawn);
    if let Some(token) = named.copied().find(|token| *token >= logits.len()) {
        return Err(ErrorKind::argument("token", format!("{token} is past the {} logits", logits.len())));
    }
    if let Some(allowed) = options.allowed.filter(|allowed| allowed.len() != logits.len()) {
        return Err(ErrorKind::argument("allowed", format!("{} for {} logits", allowed.len(), logits.len())));
    }
    for (token, logit) in shaped.iter_mut().enumerate().filter(|(_, logit)| logit.is_finite()) {
        for (_, bias) in options.bias.iter().filter(|(other, _)| *other == token) {
            *logit = (*logit + bias).clamp(-most, most);
        }
        if options.seen.contains(&token) {
            let penalised = if *logit > 0.0 { *logit / options.repetition } else { *logit * options.repetition };
            *logit = penalised.clamp(-most, most);
        }
        let drawn = options.drawn.iter().filter(|other| **other == token).count();
        if drawn > 0 {
            *logit = (*logit - options.frequency * drawn as f64 - options.presence).clamp(-most, most);
        }
        if options.allowed.is_some_and(|allowed| !allowed[token]) {
            *logit = f64::NEG_INFINITY;
        }
    }
    Ok(shaped)
}

/// The probabilities that a token is drawn with: those of softmax([`shape_logits`] / temperature), cut by `min_p`, `top_k`,
/// `typical_p` and `top_p` in this order, each of what those before it left, and made to sum to 1. At temperature 0 the lowest
/// index of the largest logit has all.
///
/// - `min_p` keeps every i with `p_i >= min_p * max p`.
/// - `top_k` keeps every i whose logit is at least the k-th largest.
/// - `typical_p`: with `d_i = |-ln p_i - H|`, H the mean of `-ln p`, keeps every i with `d_i <= t` for the least t that keeps a mass
///   of `typical_p`.
/// - `top_p` keeps every i with `p_i >= t` for the largest t that keeps a mass of `top_p`.
///
/// # Errors
///
/// [`ErrorKind::Argument`](crate::ErrorKind::Argument) as [`shape_logits`]; for logits of which one is NaN or +infinity, and
/// where none that is allowed is finite; for numbers out of their range.
pub fn shaped_probabilities(logits: &[f64], options: &ShapeOptions<'_>) -> Result<Vec<f64>> {
    options.check()?;
    if let Some(bad) = logits.iter().find(|l| l.is_nan() || **l == f64::INFINITY) {
        return Err(ErrorKind::argument("logits", format!("{bad} among {}", logits.len())));
    }
    let shaped = shape_logits(logits, options)?;
    let max = shaped.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY {
        return Err(ErrorKind::argument("logits", format!("none finite that is allowed, among {}", logits.len())));
    }
    if options.temperature == 0.0 {
        let best = shaped.iter().position(|l| *l == max);
        return Ok((0..shaped.len()).map(|i| f64::from(u8::from(Some(i) == best))).collect());
    }
    let mut p: Vec<f64> = shaped.iter().map(|l| ((l - max) / options.temperature).exp()).collect();
    p.iter_mut().filter(|p| **p < options.min_p).for_each(|p| *p = 0.0);
    if options.top_k > 0 {
        let mut descending = shaped.clone();
        descending.sort_by(|a, b| b.total_cmp(a));
        let least = descending.get(options.top_k - 1).copied().unwrap_or(f64::NEG_INFINITY);
        p.iter_mut().zip(&shaped).filter(|(_, l)| **l < least).for_each(|(p, _)| *p = 0.0);
    }
    if options.typical_p < 1.0 {
        let mass: f64 = p.iter().sum();
        // What has no probability has no information either.
        let information = |p: f64| -(p / mass).ln();
        let mean: f64 = p.iter().filter(|p| **p > 0.0).map(|&p| p / mass * information(p)).sum();
        let distance = |p: f64| if p > 0.0 { (information(p) - mean).abs() } else { f64::INFINITY };
        let farthest = -threshold(&p, |p| -distance(p), options.typical_p);
        p.iter_mut().filter(|p| distance(**p) > farthest).for_each(|p| *p = 0.0);
    }
    if options.top_p < 1.0 {
        let least = threshold(&p, |p| p, options.top_p);
        p.iter_mut().filter(|p| **p < least).for_each(|p| *p = 0.0);
    }
    let mass: f64 = p.iter().sum();
    Ok(p.into_iter().map(|p| p / mass).collect())
}

/// The largest value t of `by` such that all p with `by(p) >= t` together hold this share of the mass.
fn threshold(p: &[f64], by: impl Fn(f64) -> f64, share: f64) -> f64 {
    let mut ranked: Vec<f64> = p.to_vec();
    ranked.sort_by(|a, b| by(*b).total_cmp(&by(*a)));
    let (mass, mut held) = (p.iter().sum::<f64>(), 0.0);
    let reaches = |p: &&f64| {
        held += **p;
        held >= share * mass
    };
    ranked.iter().find(reaches).map_or(f64::NEG_INFINITY, |p| by(*p)) // rounding left the sum below: keep all
}

/// Draws one index: the first, ascending, at which the cumulative probability ([`shaped_probabilities`]) exceeds `u`.
///
/// # Errors
///
/// As [`shaped_probabilities`]; [`ErrorKind::Argument`](crate::ErrorKind::Argument) for a `u` outside [0, 1).
pub fn sample_shaped(logits: &[f64], options: &ShapeOptions<'_>, u: f64) -> Result<usize> {
    if !(0.0..1.0).contains(&u) {
        return Err(ErrorKind::argument("u", format!("{u} is not in 0..1")));
    }
    let p = shaped_probabilities(logits, options)?;
    let mass: f64 = p.iter().sum();
    let (mut cumulative, mut last) = (0.0, 0);
    for (i, p) in p.iter().enumerate().filter(|(_, p)| **p > 0.0) {
        cumulative += p;
        last = i;
        if cumulative > u * mass {
            break;
        }
    }
    Ok(last)
}

/// `l_i - ln(sum of exp(l))` of logits as they are.
///
/// # Errors
///
/// [`ErrorKind::Argument`](crate::ErrorKind::Argument) where one is NaN or +infinity, or none is finite.
pub fn log_probabilities(logits: &[f64]) -> Result<Vec<f64>> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if !max.is_finite() || logits.iter().any(|l| l.is_nan()) {
        return Err(ErrorKind::argument("logits", format!("no probabilities of {}", logits.len())));
    }
    let sum: f64 = logits.iter().map(|l| (l - max).exp()).sum();
    Ok(logits.iter().map(|l| l - max - sum.ln()).collect())
}

impl ShapeOptions<'_> {
    fn check(&self) -> Result<()> {
        let positive = |value: f64| value > 0.0 && value.is_finite();
        for (name, value, right) in [
            ("temperature", self.temperature, self.temperature >= 0.0 && self.temperature.is_finite()),
            ("repetition", self.repetition, positive(self.repetition)),
            ("presence", self.presence, self.presence.is_finite()),
            ("frequency", self.frequency, self.frequency.is_finite()),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p)),
            ("typical_p", self.typical_p, self.typical_p > 0.0 && self.typical_p <= 1.0),
            ("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0),
        ] {
            if !right {
                return Err(ErrorKind::argument(name, format!("{value} is out of its range")));
            }
        }
        Ok(())
    }
}
