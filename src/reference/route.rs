//! Which experts a row goes to.
//!
//! Sources: DeepSeek-V2, arXiv 2405.04434, §2.2.1 and §2.2.2 (softmax, device-limited groups by their best member);
//! DeepSeek-V3, arXiv 2412.19437, §2.1.2 (sigmoid, a bias for the choice alone, groups by their best two, weights that
//! sum to 1).

use crate::error::{ErrorKind, Result};

/// How experts are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Routing {
    /// Experts of a row.
    pub top: usize,
    /// Groups of equally many experts.
    pub groups: usize,
    /// Groups that a row may choose from.
    pub top_groups: usize,
    /// Members whose choices make a group's score.
    pub group_best: usize,
    /// Scores by sigmoid instead of softmax.
    pub sigmoid: bool,
    /// Weights are divided by their sum.
    pub normalise: bool,
    /// What weights are multiplied by.
    pub factor: f64,
}

/// The experts of a row, best first, each with its weight.
///
/// `s_e` is the softmax of the logits or, with `sigmoid`, `1 / (1 + exp(-logit))`; the choice is by `c_e = s_e +
/// bias_e`. A group's score is the sum of its `group_best` largest `c`; the `top_groups` best groups are open. The
/// `top` experts of open groups with the largest `c` have weight `s_e`, with `normalise` divided by the sum of theirs,
/// times `factor`. Among equals the lower index comes first.
///
/// - `logits`, `bias`: (experts,), not NaN
/// - returns: (top,)
///
/// # Errors
///
/// [`ErrorKind::Shape`](crate::ErrorKind::Shape) for logits that are not equal groups or a bias of another length,
/// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for a shape that such experts cannot have or a NaN.
pub fn route(logits: &[f64], bias: &[f64], shape: &Routing) -> Result<Vec<(usize, f64)>> {
    let size = super::count_rows("logits", logits.len(), shape.groups)?;
    if size == 0 {
        return Err(ErrorKind::shape(
            "logits",
            &[0],
            format!("(experts), at least one in each of {} groups", shape.groups),
        ));
    }
    super::expect_shape("bias", bias.len(), &[logits.len()])?;
    if shape.top_groups > shape.groups || shape.top > shape.top_groups * size {
        return Err(ErrorKind::argument("shape", format!("{shape:?} of {} experts", logits.len())));
    }
    if let Some(e) = (0..logits.len()).find(|&e| logits[e].is_nan() || bias[e].is_nan()) {
        return Err(ErrorKind::argument("logits", format!("expert {e} has a NaN")));
    }
    let scores: Vec<f64> = match shape.sigmoid {
        true => logits.iter().map(|l| 1.0 / (1.0 + (-l).exp())).collect(),
        false => {
            let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = logits.iter().map(|l| (l - most).exp()).sum();
            logits.iter().map(|l| (l - most).exp() / sum).collect()
        }
    };
    let choices: Vec<f64> = scores.iter().zip(bias).map(|(s, b)| s + b).collect();
    let group_score = |group: &[f64]| {
        let order = best_first(group);
        order.iter().take(shape.group_best).map(|&e| group[e]).sum::<f64>()
    };
    let group_scores: Vec<f64> = choices.chunks_exact(size).map(group_score).collect();
    let open: Vec<usize> = best_first(&group_scores).into_iter().take(shape.top_groups).collect();
    let chosen: Vec<usize> =
        best_first(&choices).into_iter().filter(|e| open.contains(&(e / size))).take(shape.top).collect();
    let sum: f64 = chosen.iter().map(|&e| scores[e]).sum();
    let divisor = if shape.normalise { sum + 1e-20 } else { 1.0 };
    Ok(chosen.into_iter().map(|e| (e, scores[e] / divisor * shape.factor)).collect())
}

/// Indices from the largest value to the smallest; the lower index first among equals.
fn best_first(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    order
}
