//! Attention of a few new query tokens over one sequence's cache, whole or split over tokens and merged.
//!
//! Equation, for query token m and head h in group i, over the cached tokens t visible to m:
//! ```text
//! S[t] = softmax_scale * ( q_nope . state_i[t][..nope_dim] + q_rope . rope_key[t] )
//! out  = sum_t softmax(S)[t] * state_i[t][v_offset .. v_offset + v_dim]
//! lse  = ln sum_t exp(S[t])
//! ```
//! Source: arXiv 2505.21487, §3.3.1 and §3.3.2 (absorbed form); the merge: Dao et al., Flash-Decoding (2023); softcap: Gemma 2
//! (arXiv 2408.00118); sinks: gpt-oss (arXiv 2508.10925); first tokens beside a window: Xiao et al., StreamingLLM
//! (arXiv 2309.17453), here with each token at its own position.

use std::ops::Range;

use super::{count_rows, dot, expect_result, expect_shape};
use crate::error::Result;
use crate::kv::heads::HeadLayout;

/// What one decode step reads of one sequence.
#[derive(Debug, Clone, Copy)]
pub struct DecodeInputs<'a> {
    /// Queries, already rotated and (GLA, MLA) absorbed, each `[nope | rope]`: (q_len, q_heads, nope_dim + rope_dim).
    pub q: &'a [f64],
    /// Cached states: (kv_len, groups, state_dim).
    pub states: &'a [f64],
    /// Cached rope keys, already rotated: (kv_len, rope_dim).
    pub rope_keys: &'a [f64],
    /// Factor of every score, for example `head_dim^-0.5`.
    pub softmax_scale: f64,
    /// Whether query token m sees only the first `kv_len - q_len + m + 1` tokens (bottom-right aligned), or all.
    pub causal: bool,
}

/// What may change a decode beyond its definition: [`AttentionOptions`](crate::AttentionOptions) with the sinks themselves.
#[derive(Debug, Clone, Copy, Default)]
pub struct DecodeOptions<'a> {
    /// Scores become `cap * tanh(score / cap)`.
    pub softcap: Option<f64>,
    /// A query token sees the last this many tokens up to its own.
    pub window: Option<usize>,
    /// Beside those of a window, the first this many.
    pub keep_first: usize,
    /// A logit per head that enters the softmax once and has no value: (q_heads,), or empty for none.
    pub sinks: &'a [f64],
}

/// What attention over some tokens gives: an output and the weight with which it enters a [`merge`].
#[derive(Debug, Clone, PartialEq)]
pub struct Attended {
    /// Outputs: (q_len, q_heads, v_dim). Zeros for a row that saw no token.
    pub out: Vec<f64>,
    /// Natural logarithm of each row's sum of exponentials: (q_len, q_heads). -inf for a row that saw no token.
    pub lse: Vec<f64>,
}

/// Softmax-weighted mean of `values`, and the log-sum-exp of `scores`. No token: zeros and -inf.
///
/// - `scores`: (n,)
/// - `values`: (n, v_dim)
/// - returns: the mean (v_dim,) and the natural-log LSE
///
/// # Errors
///
/// [`ErrorKind::Shape`](crate::ErrorKind::Shape) for a slice that is not of the shape said above.
pub fn attend(scores: &[f64], values: &[f64], v_dim: usize) -> Result<(Vec<f64>, f64)> {
    expect_shape("values", values.len(), &[scores.len(), v_dim])?;
    if scores.is_empty() {
        expect_result("v_dim", &[v_dim])?;
    }
    let mut out = vec![0.0; v_dim];
    if scores.is_empty() {
        return Ok((out, f64::NEG_INFINITY));
    }
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut total = 0.0;
    for (t, score) in scores.iter().enumerate() {
        let weight = (score - max).exp();
        total += weight;
        for (d, o) in out.iter_mut().enumerate() {
            *o += weight * values[t * v_dim + d];
        }
    }
    for o in &mut out {
        *o /= total;
    }
    Ok((out, max + total.ln()))
}

/// Attention over the whole cache of one sequence.
///
/// # Errors
///
/// [`ErrorKind::Shape`](crate::ErrorKind::Shape) for slices that do not fit the layout.
pub fn decode(layout: &HeadLayout, step: &DecodeInputs<'_>) -> Result<Attended> {
    decode_with(layout, step, &DecodeOptions::default())
}

/// [`decode`] with options.
///
/// # Errors
///
/// [`ErrorKind::Shape`](crate::ErrorKind::Shape) for slices that do not fit the layout, or sinks that are not one per
/// head.
pub fn decode_with(layout: &HeadLayout, step: &DecodeInputs<'_>, options: &DecodeOptions<'_>) -> Result<Attended> {
    let mut attended = decode_range(layout, step, options, 0..usize::MAX)?;
    if !options.sinks.is_empty() {
        expect_shape("sinks", options.sinks.len(), &[layout.q_heads()])?;
        add_sinks(&mut attended, options.sinks, layout.v_dim())?;
    }
    Ok(attended)
}

/// Attention over each range of tokens alone: one partial per range, in the order given, for [`merge`].
///
/// - `ranges`: of token indices, disjoint; what lies past the last visible token is ignored
///
/// # Errors
///
/// As [`decode`].
pub fn decode_split(layout: &HeadLayout, step: &DecodeInputs<'_>, ranges: &[Range<usize>]) -> Result<Vec<Attended>> {
    let options = DecodeOptions::default();
    ranges.iter().map(|range| decode_range(layout, step, &options, range.clone())).collect()
}

/// [`decode`] restricted to the tokens in `range`.
fn decode_range(
    layout: &HeadLayout,
    step: &DecodeInputs<'_>,
    options: &DecodeOptions<'_>,
    range: Range<usize>,
) -> Result<Attended> {
    let (groups, state_dim, rope_dim) = (layout.groups(), layout.state_dim(), layout.rope_dim());
    let (q_heads, nope_dim) = (layout.q_heads(), layout.nope_dim());
    let (v_offset, v_dim) = (layout.v_offset(), layout.v_dim());
    let q_len = count_rows("q", step.q.len(), q_heads * layout.q_dim())?;
    let kv_len = count_rows("states", step.states.len(), groups * state_dim)?;
    expect_shape("rope_keys", step.rope_keys.len(), &[kv_len, rope_dim])?;

    let mut attended = Attended { out: Vec::new(), lse: Vec::new() };
    for m in 0..q_len {
        let seen = (kv_len + m + 1).saturating_sub(q_len); // the tokens up to m's own
        let first = options.window.map_or(0, |window| seen.saturating_sub(window));
        let end = if step.causal { seen } else { kv_len };
        for h in 0..q_heads {
            let group = h / layout.heads_per_group();
            let q = &step.q[(m * q_heads + h) * layout.q_dim()..][..layout.q_dim()];
            let (q_nope, q_rope) = q.split_at(nope_dim);
            let (mut scores, mut values) = (Vec::new(), Vec::new());
            for t in range.start..range.end.min(end) {
                if t < first && t >= options.keep_first {
                    continue;
                }
                let state = &step.states[(t * groups + group) * state_dim..][..state_dim];
                let rope_key = &step.rope_keys[t * rope_dim..][..rope_dim];
                let score = step.softmax_scale * (dot(q_nope, &state[..nope_dim]) + dot(q_rope, rope_key));
                scores.push(options.softcap.map_or(score, |cap| cap * (score / cap).tanh()));
                values.extend_from_slice(&state[v_offset..v_offset + v_dim]);
            }
            let (out, lse) = attend(&scores, &values, v_dim)?;
            attended.out.extend(out);
            attended.lse.push(lse);
        }
    }
    Ok(attended)
}

/// Lets each head's sink take its share of the weights: what one more token would, with this score and a value of zero.
/// Once per row, so after a [`merge`].
///
/// ```text
/// lse' = ln(exp(lse) + exp(sink)),  out' = out * exp(lse - lse')
/// ```
/// - `attended`: out (rows, v_dim) and lse (rows,), rows = q_len * q_heads, head fastest
/// - `sinks`: (q_heads,)
///
/// # Errors
///
/// [`ErrorKind::Shape`](crate::ErrorKind::Shape) for sinks or outputs that are not those of whole tokens.
pub fn add_sinks(attended: &mut Attended, sinks: &[f64], v_dim: usize) -> Result<()> {
    count_rows("lse", attended.lse.len(), sinks.len())?;
    expect_shape("out", attended.out.len(), &[attended.lse.len(), v_dim])?;
    for (row, lse) in attended.lse.iter_mut().enumerate() {
        let sink = sinks[row % sinks.len()];
        let max = lse.max(sink);
        if max == f64::NEG_INFINITY {
            continue; // neither a token nor a sink
        }
        let with_sink = max + ((*lse - max).exp() + (sink - max).exp()).ln();
        for o in &mut attended.out[row * v_dim..][..v_dim] {
            *o *= (*lse - with_sink).exp();
        }
        *lse = with_sink;
    }
    Ok(())
}

/// Merges partials over disjoint sets of tokens, in ascending order. Its identity is a row of zeros with LSE -inf, and
/// that is what a merge of no partials gives.
///
/// ```text
/// M = max_s lse_s,  w_s = exp(lse_s - M),  out = sum_s w_s out_s / sum_s w_s,  lse = M + ln sum_s w_s
/// ```
/// - `partials`: each with out (rows, v_dim) and lse (rows,); rows = q_len * q_heads
///
/// # Errors
///
/// [`ErrorKind::Shape`](crate::ErrorKind::Shape) for a partial result of another size.
pub fn merge(partials: &[Attended], rows: usize, v_dim: usize) -> Result<Attended> {
    if partials.is_empty() {
        expect_result("rows", &[rows, v_dim.saturating_add(1)])?;
    }
    for partial in partials {
        expect_shape("out", partial.out.len(), &[rows, v_dim])?;
        expect_shape("lse", partial.lse.len(), &[rows])?;
    }
    let mut merged = Attended { out: Vec::new(), lse: Vec::new() };
    for row in 0..rows {
        let max = partials.iter().map(|p| p.lse[row]).fold(f64::NEG_INFINITY, f64::max);
        let mut out = vec![0.0; v_dim];
        let mut total = 0.0;
        for partial in partials {
            if partial.lse[row] == f64::NEG_INFINITY {
                continue; // the identity; and exp(-inf - -inf) would be NaN
            }
            let weight = (partial.lse[row] - max).exp();
            total += weight;
            for (d, o) in out.iter_mut().enumerate() {
                *o += weight * partial.out[row * v_dim + d];
            }
        }
        if total != 0.0 {
            out.iter_mut().for_each(|o| *o /= total);
        }
        merged.out.extend(out);
        merged.lse.push(max + total.ln());
    }
    Ok(merged)
}
