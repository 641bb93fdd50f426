//! Softcap, sliding window and sinks, alone and together, against the f64 reference.

use crate::case::{check, check_on, Case, Extra, Size};
use crate::common::{bits, layouts, small, tiers, tiers_in_turn, Rng};
use latten::attention::AttentionOptions;
use latten::{DType, Decode, Gpu, HeadLayout, SplitPolicy};

const NONE: AttentionOptions =
    AttentionOptions { softcap: None, window: None, keep_first: 0, sinks: false, tree: false };
const SOFTCAP: AttentionOptions = AttentionOptions { softcap: Some(1.5), ..NONE };
const SINKS: AttentionOptions = AttentionOptions { sinks: true, ..NONE };

fn window(tokens: usize) -> AttentionOptions {
    AttentionOptions { window: Some(tokens), ..Default::default() }
}

fn extra(options: AttentionOptions, heads: &HeadLayout) -> Extra {
    let sinks = if options.sinks { Rng(7).values(heads.q_heads()) } else { vec![] };
    Extra { options, sinks, trees: vec![] }
}

fn case(heads: HeadLayout, dtype: DType, policy: SplitPolicy) -> Case {
    let lengths = vec![(1, 1), (200, 1), (5, 5), (40, 5), (133, 5), (16, 16), (300, 16), (64, 1), (9, 0)];
    Case { heads, dtype, page_size: 8, lengths, policy, seed: 61 }
}

/// Each option alone, where a sequence is whole and where it is split.
#[test]
fn each_option_alone() {
    let all = [SOFTCAP, SINKS, window(1), window(7), window(32), window(100), window(usize::MAX)];
    for (i, options) in all.into_iter().enumerate() {
        // The first two are the kernels' own; a window is the mask's, which all kernels share.
        let gpus = if i < 2 { tiers() } else { tiers_in_turn(i, false) };
        for policy in [SplitPolicy::Off, SplitPolicy::FixedTokens(32)] {
            check_on(&gpus, &case(small(), DType::F32, policy), &extra(options, &small()));
        }
    }
}

/// All of them in every layout, so in every shape of the kernels; on one tier each, unless it is to be `all`.
fn every_layout(all: bool) {
    for (i, heads) in layouts().into_iter().enumerate() {
        let dtype = [DType::F32, DType::F16][i % 2];
        let options = AttentionOptions { softcap: Some(2.0), window: Some(70), sinks: true, ..NONE };
        for policy in [SplitPolicy::Off, SplitPolicy::FixedTokens(48)] {
            // Both dtypes on both tiers.
            check_on(&tiers_in_turn(i.div_ceil(2), all), &case(heads, dtype, policy), &extra(options, &heads));
        }
    }
}

#[test]
fn all_options_in_every_layout() {
    every_layout(false);
}

#[test]
#[ignore = "long: the same on every tier; half a minute of software GPU"]
fn all_options_in_every_layout_on_every_tier() {
    every_layout(true);
}

/// Pages outside every window may be gone: their tokens are NaN here, their neighbours' pages are.
#[test]
fn what_no_window_reaches_is_not_read() {
    for (page_size, tokens) in [(1, 7), (8, 33), (16, 16)] {
        let options = window(tokens);
        for policy in [SplitPolicy::Off, SplitPolicy::FixedTokens(32)] {
            let case = Case { page_size, ..case(small(), DType::F32, policy) };
            let run = |gpu: &Gpu, outside: f32| {
                let decode = Decode::with_options(gpu, small(), DType::F32, options).unwrap().with_policy(policy);
                let mut sequences = case.draw();
                for (s, (kv_len, q_len)) in sequences.iter_mut().zip(&case.lengths) {
                    // The first query token sees from here on, the others no earlier.
                    let first = (kv_len - q_len + 1).saturating_sub(tokens);
                    s.rows[..first * small().kv_dim()].fill(outside);
                }
                let results = case.run_with(gpu, &decode, sequences, 0xff, &extra(options, &small()));
                results.iter().flat_map(|s| [bits(&s.out), bits(&s.lse)]).collect::<Vec<_>>()
            };
            for gpu in tiers() {
                assert!(run(gpu, f32::NAN) == run(gpu, 0.0), "pages of {page_size}, window {tokens}, {policy:?}");
            }
        }
    }
}

/// A sink of minus infinity is none, a large one takes nearly all of the weight, and its LSE is in the result.
#[test]
fn sinks_from_nothing_to_nearly_all() {
    let heads = small();
    for sinks in [vec![f32::NEG_INFINITY; 4], vec![30.0, -30.0, 0.0, f32::NEG_INFINITY], vec![-1e30, 3e4, 20.0, -3e4]] {
        for policy in [SplitPolicy::Off, SplitPolicy::FixedTokens(32)] {
            check(&case(heads, DType::F32, policy), &Extra { options: SINKS, sinks: sinks.clone(), trees: vec![] });
        }
    }
}

/// Scores far beyond the cap, just at it and far below it: each must come out as exact as without a cap.
#[test]
fn softcap_of_any_score() {
    let heads = small();
    let sizes = [(1e-3, 1.0), (0.5, 4.0), (50.0, 1e-3), (50.0, 30.0), (50.0, 6e4), (1e6, 1.0), (30.0, 1e15)];
    for (i, (cap, factor)) in sizes.into_iter().enumerate() {
        let case = case(heads, DType::F32, SplitPolicy::Off);
        let options = AttentionOptions { softcap: Some(cap), ..Default::default() };
        let mut sequences = case.draw();
        sequences.iter_mut().for_each(|s| s.q.iter_mut().for_each(|v| *v *= factor));
        let extra = extra(options, &heads);
        for gpu in tiers_in_turn(i, false) {
            let decode = Decode::with_options(gpu, heads, DType::F32, options).unwrap().with_policy(SplitPolicy::Off);
            let results = case.run_with(gpu, &decode, sequences.clone(), 0xff, &extra);
            for (i, s) in results.iter().enumerate() {
                // A score of size s rounds to about 2^-24 s, a capped one to the cap's; a dot product adds a few of those.
                let size = f64::from(cap.min(4.0 * factor)) * 2f64.powi(-22);
                case.compare_with(i, s, Size { score: size, cancelled: 0.0, value: 0.0 }, &extra);
            }
        }
    }
}
