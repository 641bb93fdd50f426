//! The rule of speculative decoding: which drafted tokens stand, so that what comes out has the target's distribution.
//! Pure.
//!
//! Leviathan, Kalman, Matias: "Fast Inference from Transformers via Speculative Decoding", arXiv 2211.17192, §2.3;
//! Chen et al., arXiv 2302.01318, algorithm 2. A token x that was drawn from q stands with probability min(1, p(x)/q(x));
//! in place of the first that does not, one is drawn from max(0, p - q), normalised. Either way it has the probability
//! p: min(p, q) + (1 - sum of min(p, q)) * max(0, p - q) / (sum of max(0, p - q)) = p.

use crate::error::{Error, ErrorKind, Result};
use crate::model::sampler::random::SplitMix64;
use crate::nn::{Penalties, Sample, Sampling};
use std::cmp::Ordering;

/// Probabilities of the next token: (vocab_size), their sum is 1.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Distribution(Vec<f64>);

impl Distribution {
    /// What the device draws from: temperature and cuts as in [`reference::sample_shaped`](crate::reference::sample_shaped); one token
    /// alone at temperature 0.
    ///
    /// Errors: [`ErrorKind::Argument`] for logits that give no probabilities, and a bad `sampling`, or one with penalties.
    pub(crate) fn new(logits: &[f32], sampling: Sampling) -> Result<Self> {
        check_sampling(&sampling)?;
        let [temperature, min_p, typical_p, top_p] =
            [sampling.divisor(), sampling.min_p, sampling.typical_p, sampling.top_p].map(f64::from);
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
        // The largest is 1.
        p.iter_mut().filter(|p| **p < min_p).for_each(|p| *p = 0.0);
        if let Some(last) = (sampling.top_k as usize).checked_sub(1).filter(|last| *last < logits.len()) {
            let mut descending = logits.to_vec();
            let (_, least, _) = descending.select_nth_unstable_by(last, |a, b| b.total_cmp(a));
            let below = p.iter_mut().zip(logits).filter(|(_, logit)| **logit < *least);
            below.for_each(|(p, _)| *p = 0.0);
        }
        if typical_p < 1.0 {
            // How far a token's information is from its mean, less what both have in common.
            let mass: f64 = p.iter().sum();
            let mean = p.iter().filter(|p| **p > 0.0).map(|p| p * p.ln()).sum::<f64>() / mass;
            let distance = |p: f64| if p > 0.0 { (p.ln() - mean).abs() } else { f64::INFINITY };
            let farthest =
                threshold(&p, typical_p, |a, b| distance(a).total_cmp(&distance(b))).map_or(f64::MAX, distance);
            p.iter_mut().filter(|p| distance(**p) > farthest).for_each(|p| *p = 0.0);
        }
        if top_p < 1.0 {
            let least = threshold(&p, top_p, |a, b| b.total_cmp(&a)).unwrap_or(0.0);
            p.iter_mut().filter(|p| **p < least).for_each(|p| *p = 0.0);
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

/// The last of `p` in this order such that all up to it together reach a share of the total; none where rounding leaves the sum
/// below.
fn threshold(p: &[f64], share: f64, order: impl Fn(f64, f64) -> Ordering) -> Option<f64> {
    let wanted = share * p.iter().sum::<f64>();
    let mut ordered = p.to_vec();
    ordered.sort_by(|a, b| order(*a, *b));
    let mut mass = 0.0;
    let reaches = |p: &&f64| {
        mass += **p;
        mass >= wanted
    };
    ordered.iter().find(reaches).copied()
}

/// Refuses numbers out of their range, and penalties: these change with each token, a guess among them.
pub(crate) fn check_sampling(sampling: &Sampling) -> Result<()> {
    sampling.check()?;
    match sampling.penalties.are_off() {
        true => Ok(()),
        false => {
            let Penalties { repetition, presence, frequency, .. } = sampling.penalties;
            let why =
                format!("repetition {repetition}, presence {presence}, frequency {frequency}: guessing knows none");
            Err(ErrorKind::argument("penalties", why))
        }
    }
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
    /// A token that was not drawn.
    pub(crate) fn certain(token: u32) -> Self {
        Proposal { token, drawn_from: None }
    }

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
    let missing = || too_few_rows(proposals);
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

fn too_few_rows(proposals: &[Proposal]) -> Error {
    ErrorKind::argument("logits", format!("too few rows for {} proposals", proposals.len()))
}

/// [`verify`] where nothing is drawn: `most_likely` are the target's tokens, after what comes before the first proposal, and after
/// each of them; those behind the first that does not stand are not looked at.
///
/// Errors: `fault` of the number of proposals that stand where no token is the most likely after them.
pub(crate) fn verify_most_likely(
    most_likely: &[u32],
    proposals: &[Proposal],
    fault: impl FnOnce(usize) -> Error,
) -> Result<(usize, u32)> {
    let stand = proposals.iter().zip(most_likely).take_while(|(proposal, token)| proposal.token == **token).count();
    match most_likely.get(stand) {
        Some(&Sample::NO_TOKEN) => Err(fault(stand)),
        Some(token) => Ok((stand, *token)),
        None => Err(too_few_rows(proposals)),
    }
}

#[cfg(test)]
#[path = "rejection_tests.rs"]
mod tests;
