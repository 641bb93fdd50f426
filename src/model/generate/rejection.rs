//! The rule of speculative decoding: which drafted tokens stand, so that what comes out has the target's distribution.
//! Pure.
//!
//! Leviathan, Kalman, Matias: "Fast Inference from Transformers via Speculative Decoding", arXiv 2211.17192, §2.3;
//! Chen et al., arXiv 2302.01318, algorithm 2. A token x that was drawn from q stands with probability min(1, p(x)/q(x));
//! in place of the first that does not, one is drawn from max(0, p - q), normalised. Either way it has the probability
//! p: min(p, q) + (1 - sum of min(p, q)) * max(0, p - q) / (sum of max(0, p - q)) = p.

use super::random::SplitMix64;
use crate::error::{ErrorKind, Result};
use crate::nn::Sampling;

/// Probabilities of the next token: (vocab_size), their sum is 1.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Distribution(Vec<f64>);

impl Distribution {
    /// What a [`Sample`](crate::nn::Sample) draws from: temperature and nucleus as in
    /// [`reference::sample`](crate::reference::sample()); one token alone at temperature 0.
    ///
    /// Errors: [`ErrorKind::Argument`] for logits that give no probabilities, and a bad `sampling`.
    pub(crate) fn new(logits: &[f32], sampling: Sampling) -> Result<Self> {
        let [temperature, top_p, ..] = sampling.row(0.0)?.map(f64::from);
        let mut best = 0;
        for (i, logit) in logits.iter().enumerate() {
            if *logit > logits[best] {
                best = i;
            }
        }
        let max = logits.get(best).copied().filter(|max| max.is_finite() && logits.iter().all(|l| !l.is_nan()));
        let Some(max) = max.map(f64::from) else {
            let why = format!("a NaN or an infinity among {}: the model gives no probabilities", logits.len());
            return Err(ErrorKind::argument("logits", why));
        };
        if temperature == 0.0 {
            let mut p = vec![0.0; logits.len()];
            p[best] = 1.0;
            return Ok(Distribution(p));
        }
        let mut p: Vec<f64> = logits.iter().map(|l| ((f64::from(*l) - max) / temperature).exp()).collect();
        if top_p < 1.0 {
            let threshold = nucleus_threshold(&p, top_p);
            p.iter_mut().filter(|p| **p < threshold).for_each(|p| *p = 0.0);
        }
        let mass: f64 = p.iter().sum();
        p.iter_mut().for_each(|p| *p /= mass);
        Ok(Distribution(p))
    }

    fn of(&self, token: u32) -> f64 {
        self.0.get(token as usize).copied().unwrap_or(0.0)
    }

    /// One token.
    pub(crate) fn draw(&self, random: &mut SplitMix64) -> u32 {
        pick(&self.0, f64::from(random.uniform()))
    }
}

/// The largest t among `p` such that all `p_i >= t` together reach `top_p` of the total.
fn nucleus_threshold(p: &[f64], top_p: f64) -> f64 {
    let wanted = top_p * p.iter().sum::<f64>();
    let mut descending = p.to_vec();
    descending.sort_by(|a, b| b.total_cmp(a));
    let mut mass = 0.0;
    let reaches = |p: &&f64| {
        mass += **p;
        mass >= wanted
    };
    descending.iter().find(reaches).copied().unwrap_or(0.0) // rounding left the sum below: keep all
}

/// The first index at which the cumulative weight exceeds `u` times the whole.
fn pick(weights: &[f64], u: f64) -> u32 {
    let wanted = u * weights.iter().sum::<f64>();
    let (mut cumulative, mut last) = (0.0, 0);
    for (i, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
        cumulative += weight;
        last = i;
        if cumulative > wanted {
            break;
        }
    }
    last as u32 // no truncation: tokens are 32 bits
}

/// A token that may come next, and how it was found.
#[derive(Debug, Clone)]
pub(crate) struct Proposal {
    pub(crate) token: u32,
    /// What it was drawn from; none where it was certain to be this one.
    pub(crate) drawn_from: Option<Distribution>,
}

impl Proposal {
    /// q.
    fn probability(&self, token: u32) -> f64 {
        match &self.drawn_from {
            Some(q) => q.of(token),
            None => f64::from(u8::from(token == self.token)),
        }
    }
}

/// How many of `proposals` stand, and the token after them. `rows` are the target's distributions: after what comes
/// before the first proposal, and after each of them; those behind the first that does not stand are not looked at.
///
/// Errors: those of `rows`, and [`ErrorKind::Argument`] where there are too few.
pub(crate) fn verify(
    mut rows: impl Iterator<Item = Result<Distribution>>,
    proposals: &[Proposal],
    random: &mut SplitMix64,
) -> Result<(usize, u32)> {
    let missing = || ErrorKind::argument("logits", format!("too few rows for {} proposals", proposals.len()));
    for (stand, proposal) in proposals.iter().enumerate() {
        let p = rows.next().ok_or_else(missing)??;
        let u = f64::from(random.uniform());
        if u * proposal.probability(proposal.token) < p.of(proposal.token) {
            continue;
        }
        let weight = |(token, p): (u32, &f64)| (p - proposal.probability(token)).max(0.0);
        let rest: Vec<f64> = (0..).zip(&p.0).map(weight).collect();
        // Only rounding could leave nothing: the rejected token has less in p than in q, so another has more.
        let rest = if rest.iter().all(|weight| *weight == 0.0) { &p.0 } else { &rest };
        return Ok((stand, pick(rest, f64::from(random.uniform()))));
    }
    let last = rows.next().ok_or_else(missing)??;
    Ok((proposals.len(), last.draw(random)))
}

#[cfg(test)]
#[path = "rejection_tests.rs"]
mod tests;
