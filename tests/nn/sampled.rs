//! Draws with penalties, biases, masks and cuts: equal to the reference where it is decided clearly, and fair.

use crate::assert_kind;
use crate::common::*;
use latten::nn::{ListedToken, Penalties, Sample, Sampling, ShapedRow, ShapedSample, Span};
use latten::reference::{self, ShapeOptions};
use latten::{DType, ErrorKind, Tensor};

/// What the reference takes of a row, in its own form.
#[derive(Clone, Default)]
struct Case {
    logits: Vec<f32>,
    sampling: Sampling,
    u: f32,
    bias: Vec<(usize, f64)>,
    seen: Vec<usize>,
    drawn: Vec<usize>,
    allowed: Option<Vec<bool>>,
}

impl Case {
    fn options(&self) -> ShapeOptions<'_> {
        let Sampling { temperature, min_p, top_k, typical_p, top_p, penalties } = self.sampling;
        ShapeOptions {
            bias: &self.bias,
            seen: &self.seen,
            drawn: &self.drawn,
            repetition: penalties.repetition.into(),
            presence: penalties.presence.into(),
            frequency: penalties.frequency.into(),
            allowed: self.allowed.as_deref(),
            temperature: temperature.into(),
            min_p: min_p.into(),
            top_k: top_k as usize,
            typical_p: typical_p.into(),
            top_p: top_p.into(),
        }
    }

    fn listed(&self) -> Vec<ListedToken> {
        let mut tokens: Vec<usize> = self.bias.iter().map(|(token, _)| *token).chain(self.seen.clone()).collect();
        tokens.sort_unstable();
        tokens.dedup();
        let times = |all: &[usize], token| all.iter().filter(|other| **other == token).count() as u32;
        let bias = |token| self.bias.iter().filter(|(other, _)| *other == token).map(|(_, b)| *b as f32).sum();
        let listed = |t: usize| ListedToken {
            token: t as u32,
            seen: times(&self.seen, t),
            drawn: times(&self.drawn, t),
            bias: bias(t),
        };
        tokens.into_iter().map(listed).collect()
    }

    fn mask(&self) -> Option<Vec<u32>> {
        let bits = |allowed: &[bool]| allowed.iter().rev().fold(0, |word, a| word << 1 | u32::from(*a));
        self.allowed.as_ref().map(|allowed| allowed.chunks(32).map(bits).collect())
    }

    /// The reference's token, if a change of any number by a little leaves it as it is.
    fn clear(&self) -> Option<usize> {
        let row = f64s(&self.logits);
        let at = |change: &dyn Fn(&mut ShapeOptions<'_>), du: f64| {
            let mut options = self.options();
            change(&mut options);
            reference::sample_shaped(&row, &options, (f64::from(self.u) + du).clamp(0.0, 0.999_999)).unwrap()
        };
        let off = |share: f64, by: f64| if share >= 1.0 { share } else { (share + by).max(1e-9) };
        let want = at(&|_| {}, 0.0);
        let same = [1e-5, -1e-5].into_iter().all(|d| {
            at(&|_| {}, d) == want
                && at(&|o| o.top_p = off(o.top_p, d), 0.0) == want
                && at(&|o| o.typical_p = off(o.typical_p, d), 0.0) == want
                && at(&|o| o.min_p *= 1.0 + d.min(0.0), 0.0) == want
                && at(&|o| o.min_p = (o.min_p * (1.0 + d.max(0.0))).min(1.0), 0.0) == want
                && at(&|o| o.temperature *= 1.0 + d, 0.0) == want
        });
        same.then_some(want)
    }
}

/// The tokens drawn for cases of one vocabulary.
fn draw(cases: &[Case]) -> Vec<u32> {
    let vocab = cases[0].logits.len();
    let lists: Vec<_> = cases.iter().map(|case| (case.listed(), case.mask())).collect();
    let rows: Vec<ShapedRow<'_>> = cases
        .iter()
        .zip(&lists)
        .enumerate()
        .map(|(row, (case, (listed, mask)))| ShapedRow {
            listed,
            mask: mask.as_deref(),
            ..ShapedRow::new(row, case.sampling, case.u)
        })
        .collect();
    let logits: Vec<f32> = cases.iter().flat_map(|case| case.logits.clone()).collect();
    draw_rows(vocab, &logits, &rows, &vec![0xdead_beef; cases.len()])
}

/// The tokens drawn for these rows, those of the others as they were before.
fn draw_rows(vocab: usize, logits: &[f32], rows: &[ShapedRow<'_>], before: &[u32]) -> Vec<u32> {
    let gpu = gpu();
    let sample = ShapedSample::new(gpu, vocab).unwrap();
    let words = sample.words(rows).unwrap();
    let words = Tensor::from_slice(gpu, &[words.len()], &words, DType::U32).unwrap();
    let tokens = Tensor::from_slice(gpu, &[before.len()], before, DType::U32).unwrap();
    let logits = tensor(gpu, &[before.len(), vocab], logits);
    sample.run(Span::of(&logits), (&words, rows.len()), &tokens, &tokens).unwrap();
    pollster::block_on(gpu.download::<u32>(&tokens)).unwrap()
}

/// A row with whatever `rng` turns on. Every third has logits on a coarse grid, so that ties are common.
fn random_case(rng: &mut Rng, vocab: usize, i: usize) -> Case {
    let mut logits = rng.normals(vocab, [0.5, 3.0, 8.0][i % 3]);
    if i.is_multiple_of(3) {
        logits.iter_mut().for_each(|l| *l = (*l * 4.0).round() / 4.0);
    }
    if i % 5 == 1 {
        let never = rng.below(vocab);
        logits
            .iter_mut()
            .enumerate()
            .filter(|(i, _)| i % 7 == 3 || *i == never)
            .for_each(|(_, l)| *l = f32::NEG_INFINITY);
        logits[vocab - 1 - never] = 0.5;
    }
    let mut pick = |odds: usize, off: f32, on: &[f32]| if rng.below(odds) == 0 { on[rng.below(on.len())] } else { off };
    let sampling = Sampling {
        temperature: pick(1, 1.0, &[0.0, 0.3, 0.8, 1.0, 2.5]),
        min_p: pick(3, 0.0, &[0.01, 0.1, 0.5, 1.0]),
        top_k: pick(2, 0.0, &[1.0, 2.0, 7.0, 50.0, 900.0]) as u32,
        typical_p: pick(3, 1.0, &[0.2, 0.7, 0.95]),
        top_p: pick(2, 1.0, &[0.1, 0.5, 0.9, 0.99]),
        penalties: Penalties {
            repetition: pick(2, 1.0, &[0.5, 1.1, 1.75]),
            presence: pick(2, 0.0, &[-1.0, 0.5, 2.0]),
            frequency: pick(2, 0.0, &[-0.25, 0.125, 1.0]),
            window: 100,
        },
    };
    let (long, few) = (rng.below(40), rng.below(6));
    let seen: Vec<usize> = (0..long).map(|_| rng.below(vocab)).collect();
    let drawn = seen[..long / 2].to_vec();
    let mut bias: Vec<(usize, f64)> = (0..few).map(|_| (rng.below(vocab), f64::from(rng.normal(2.0)))).collect();
    bias.sort_by_key(|(token, _)| *token);
    bias.dedup_by_key(|(token, _)| *token);
    let allowed = match rng.below(5) {
        0 => Some((0..vocab).map(|_| rng.below(2) == 0).collect::<Vec<_>>()),
        1 => {
            let only = rng.below(vocab);
            Some((0..vocab).map(|token| token == only).collect())
        }
        _ => None,
    };
    // A mask of chance may leave nothing that is finite.
    let open = |allowed: &Vec<bool>| logits.iter().zip(allowed).any(|(l, a)| *a && l.is_finite());
    let allowed = allowed.filter(open);
    Case { logits, sampling, u: rng.uniform(), bias, seen, drawn, allowed }
}

fn compare_draws(vocab: usize, rows: usize, least: usize) {
    let mut rng = Rng(vocab as u64 + 17);
    let cases: Vec<Case> = (0..rows).map(|i| random_case(&mut rng, vocab, i)).collect();
    let mut compared = 0;
    for (i, (case, got)) in cases.iter().zip(draw(&cases)).enumerate() {
        let Some(want) = case.clear() else { continue };
        let (sampling, u) = (case.sampling, case.u);
        assert_eq!(got as usize, want, "vocab {vocab}, row {i}, {sampling:?}, u {u}");
        compared += 1;
    }
    assert!(compared >= least, "only {compared} of {rows} draws over {vocab} tokens were clear");
}

#[test]
fn shaped_draws_equal_the_reference() {
    for (vocab, least) in [(1, 240), (2, 235), (63, 220), (256, 220), (1000, 220), (5000, 220)] {
        compare_draws(vocab, 240, least);
    }
}

/// 128,000 tokens are parts of 512; 300,000 are more parts than a workgroup has lanes.
#[test]
fn shaped_draws_of_large_vocabularies_equal_the_reference() {
    compare_draws(128_000, 30, 24);
    compare_draws(300_000, 6, 4);
}

/// What changes nothing draws what `Sample` draws.
#[test]
fn without_options_draws_are_those_of_sample() {
    let mut rng = Rng(5);
    let (vocab, rows) = (700, 200);
    let cases: Vec<Case> = (0..rows)
        .map(|i| {
            let sampling = Sampling::new([0.0, 0.7, 1.5][i % 3], [1.0, 0.9, 0.3][i / 3 % 3]);
            Case { logits: rng.normals(vocab, 2.0), sampling, u: rng.uniform(), ..Default::default() }
        })
        .collect();
    let gpu = gpu();
    let logits: Vec<f32> = cases.iter().flat_map(|case| case.logits.clone()).collect();
    let samplers: Vec<[f32; 4]> = cases.iter().map(|case| case.sampling.row(case.u).unwrap()).collect();
    let samplers = tensor(gpu, &[rows, 4], samplers.as_flattened());
    let tokens = Tensor::from_slice(gpu, &[rows], &vec![0; rows], DType::U32).unwrap();
    let plain = Sample::new(gpu, vocab).unwrap();
    plain.run(Span::of(&tensor(gpu, &[rows, vocab], &logits)), &samplers, &tokens).unwrap();
    let want = pollster::block_on(gpu.download::<u32>(&tokens)).unwrap();
    let mut compared = 0;
    for ((case, got), want) in cases.iter().zip(draw(&cases)).zip(want).filter(|((case, _), _)| case.clear().is_some())
    {
        assert_eq!(got, want, "{:?}, u {}", case.sampling, case.u);
        compared += 1;
    }
    assert!(compared > 180, "only {compared} of {rows} draws were clear");
}

/// Chi-square of the counts of draws against probabilities, and how many may differ.
fn chi_square(counts: &[f64], p: &[f64]) -> (f64, usize) {
    let rows: f64 = counts.iter().sum();
    let term = |(n, p): (&f64, &f64)| match *p > 0.0 {
        true => (n - p * rows) * (n - p * rows) / (p * rows),
        false if *n > 0.0 => f64::INFINITY,
        false => 0.0,
    };
    (counts.iter().zip(p).map(term).sum(), p.iter().filter(|p| **p > 0.0).count() - 1)
}

#[test]
fn frequencies_are_those_of_the_reference_and_of_no_other_distribution() {
    let (vocab, rows) = (24, 3_000);
    let mut rng = Rng(78);
    let logits = rng.normals(vocab, 1.5);
    let penalties = Penalties { repetition: 1.3, presence: 0.4, frequency: 0.2, window: 100 };
    let some = Sampling { temperature: 0.8, penalties, ..Default::default() };
    let samplings = [
        some,
        Sampling { top_k: 6, ..some },
        Sampling { min_p: 0.05, ..some },
        Sampling { typical_p: 0.7, ..some },
        Sampling { top_k: 12, typical_p: 0.9, top_p: 0.8, min_p: 0.01, ..some },
    ];
    let mut noticed = 0;
    for sampling in samplings {
        let case = Case {
            logits: logits.clone(),
            sampling,
            u: 0.0,
            bias: vec![(3, 1.0), (9, -0.5)],
            seen: vec![1, 3, 3, 5, 20, 21],
            drawn: vec![3, 3, 20],
            allowed: Some((0..vocab).map(|token| token % 11 != 2).collect()),
        };
        let cases: Vec<Case> = (0..rows).map(|_| Case { u: rng.uniform(), ..case.clone() }).collect();
        let mut counts = vec![0.0; vocab];
        draw(&cases).iter().for_each(|&token| counts[token as usize] += 1.0);
        let row = f64s(&case.logits);
        let p = reference::shaped_probabilities(&row, &case.options()).unwrap();
        let (distance, freedom) = chi_square(&counts, &p);
        // Above the 99.9th percentile of the distribution (Wilson and Hilferty's approximation).
        let f = freedom as f64;
        let most = f * (1.0 - 2.0 / (9.0 * f) + 3.09 * (2.0 / (9.0 * f)).sqrt()).powi(3);
        assert!(
            distance < most,
            "{sampling:?}: {distance} over {freedom} degrees of freedom, p < 0.001 from {most} on"
        );
        // The test notices another temperature, and a penalty that is left out, where that changes much.
        let mut others = [case.options(), case.options(), case.options(), case.options()];
        others[0].temperature = 1.0;
        others[1].presence = 0.0;
        others[2].frequency = 0.0;
        others[3].repetition = 1.0;
        for other in others {
            let q = reference::shaped_probabilities(&row, &other).unwrap();
            let apart: f64 = p.iter().zip(&q).map(|(p, q)| (p - q).abs()).sum();
            if apart > 0.06 {
                assert!(chi_square(&counts, &q).0 > most, "{sampling:?}: as likely with {other:?}");
                noticed += 1;
            }
        }
    }
    assert!(noticed > 8, "only {noticed} of 20 other distributions are far enough");
}

/// A token that only the device knows counts as if the host had listed it, once or once more.
#[test]
fn the_token_of_the_step_before_counts() {
    let vocab = 3000;
    let mut rng = Rng(9);
    let penalties = Penalties { repetition: 1.4, presence: 1.0, frequency: 0.5, window: 9 };
    let sampling = Sampling { temperature: 1.0, top_k: 40, penalties, ..Default::default() };
    let (mut same, mut changed) = (0, 0);
    for round in 0..40 {
        let logits = rng.normals(vocab, 2.0);
        let best = (0..vocab).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
        let seen = vec![best.saturating_sub(1), 7, 8, 2999];
        let seen = if round % 2 == 0 { [seen, vec![best]].concat() } else { seen };
        let case = Case {
            logits,
            sampling,
            u: rng.uniform(),
            drawn: seen.clone(),
            seen,
            bias: vec![(5, 1.0)],
            ..Default::default()
        };
        let listed = case.listed();
        let of = |drawn| ShapedRow { listed: &listed, drawn, ..ShapedRow::new(0, sampling, case.u) };
        let without = draw_rows(vocab, &case.logits, &[of(None)], &[best as u32])[0];
        let got = draw_rows(vocab, &case.logits, &[of(Some(0))], &[best as u32])[0];
        let mut known = case.clone();
        known.seen.push(best);
        known.drawn.push(best);
        assert_eq!(got, draw(&[known.clone()])[0], "round {round}");
        if let Some(want) = known.clear() {
            assert_eq!(got as usize, want, "round {round}");
            same += 1;
        }
        changed += usize::from(got != without);
    }
    assert!(same > 30 && changed > 5, "{same} clear, {changed} changed by it");
}

/// By hand: 10 becomes 8 by the repetition, and then loses 0.5 and 0.25 for each time that it was drawn.
#[test]
fn the_token_of_the_step_before_is_penalised_once() {
    let penalties = Penalties { repetition: 1.25, presence: 0.5, frequency: 0.25, window: 9 };
    let sampling = Sampling { penalties, ..Default::default() };
    let listed = |token| [ListedToken { token, seen: 1, drawn: 1, bias: 0.0 }];
    // First and last of parts, and of the row.
    for token in [0usize, 15, 16, 31, 700, 2999] {
        for (before, second, stays) in [(1, 6.9, true), (1, 7.1, false), (0, 7.2, true), (0, 7.3, false)] {
            let (mut logits, other) = (vec![0.0; 3000], 1234);
            (logits[token], logits[other]) = (10.0, second);
            let listed = listed(token as u32);
            let row = ShapedRow { listed: &listed[..before], drawn: Some(0), ..ShapedRow::new(0, sampling, 0.0) };
            let want = if stays { token } else { other };
            let got = draw_rows(3000, &logits, &[row], &[token as u32]);
            assert_eq!(got, [want as u32], "token {token}, listed {before}, beside {second}");
        }
    }
}

#[test]
fn other_rows_are_left_alone_and_rows_may_come_in_any_order() {
    let (vocab, mut rng) = (600, Rng(3));
    let logits: Vec<f32> = rng.normals(5 * vocab, 2.0);
    let best = |row: usize| {
        let row = &logits[row * vocab..][..vocab];
        (0..vocab as u32).rev().max_by(|a, b| row[*a as usize].total_cmp(&row[*b as usize])).unwrap()
    };
    let sampling = Sampling { temperature: 1.0, top_k: 1, ..Default::default() };
    let rows = [ShapedRow::new(3, sampling, 0.4), ShapedRow::new(1, Sampling::default(), 0.0)];
    assert_eq!(draw_rows(vocab, &logits, &rows, &[90, 91, 92, 93, 94]), [90, best(1), 92, best(3), 94]);
}

#[test]
fn what_gives_no_probabilities_gives_no_token() {
    let never = f32::NEG_INFINITY;
    let hot = Sampling { temperature: 1.0, top_k: 3, min_p: 0.1, typical_p: 0.9, top_p: 0.9, ..Default::default() };
    for vocab in [1, 40, 5000] {
        for sampling in [hot, Sampling::default(), Sampling::new(1.0, 1.0)] {
            let with = |change: &dyn Fn(&mut Case)| {
                let mut case = Case { logits: Rng(8).normals(vocab, 1.0), sampling, u: 0.6, ..Default::default() };
                change(&mut case);
                case
            };
            let cases = [
                with(&|c| c.logits[vocab / 2] = f32::NAN),
                with(&|c| c.logits[vocab - 1] = f32::INFINITY),
                with(&|c| c.logits.fill(never)),
                with(&|c| {
                    c.logits[vocab / 3] = never;
                    c.allowed = Some((0..vocab).map(|token| token == vocab / 3).collect());
                }),
                // What is forbidden spoils the row all the same: the model is at fault.
                with(&|c| {
                    c.logits[0] = f32::NAN;
                    c.allowed = Some((0..vocab).map(|token| token + 1 == vocab).collect());
                }),
            ];
            assert_eq!(draw(&cases), [Sample::NO_TOKEN; 5], "vocab {vocab}, {sampling:?}");
            for case in &cases {
                assert!(reference::sample_shaped(&f64s(&case.logits), &case.options(), 0.6).is_err());
            }
            let only = with(&|c| c.allowed = Some((0..vocab).map(|token| token == vocab / 3).collect()));
            assert_eq!(draw(&[only]), [vocab as u32 / 3], "vocab {vocab}, {sampling:?}");
        }
    }
}

#[test]
fn numbers_at_the_ends_of_f32_stay_within_it() {
    let penalties = Penalties { repetition: 100.0, presence: -100.0, frequency: 100.0, window: 9 };
    for temperature in [0.0, 1e-5, 1.0, 1e30] {
        let case = Case {
            logits: vec![f32::MAX, -f32::MAX, 1.0, -0.0, 0.0, f32::MIN_POSITIVE],
            sampling: Sampling { temperature, penalties, ..Default::default() },
            u: 0.3,
            seen: vec![1, 4],
            drawn: vec![4],
            bias: vec![(0, 1000.0), (1, -1000.0)],
            ..Default::default()
        };
        let want = case.clear().unwrap_or_else(|| panic!("temperature {temperature} is not clear"));
        assert_eq!(draw(&[case]), [want as u32], "temperature {temperature}");
    }
}

#[test]
fn bad_rows_are_typed_errors() {
    let gpu = gpu();
    assert_kind!(ShapedSample::new(gpu, 0), ErrorKind::Argument { .. });
    let sample = ShapedSample::new(gpu, 40).unwrap();
    let plain = Sampling::default();
    let of = |sampling: Sampling| ShapedRow::new(0, sampling, 0.0);
    let named = |row: ShapedRow<'_>, name: &str| {
        let error = sample.words(&[row]).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error.kind(), ErrorKind::Argument { name: n, .. } if *n == name), "{text}");
        text
    };
    for bad in [-0.1, 1.1, f32::NAN, f32::INFINITY] {
        named(of(Sampling { min_p: bad, ..plain }), "min_p");
        named(of(Sampling { typical_p: bad, ..plain }), "typical_p");
        named(of(Sampling { top_p: bad, ..plain }), "top_p");
        named(ShapedRow { u: bad, ..of(plain) }, "u");
    }
    for bad in [0.0, -1.0, 100.5, f32::NAN] {
        let penalties = Penalties { repetition: bad, ..Default::default() };
        let text = named(of(Sampling { penalties, ..plain }), "repetition");
        assert!(text.contains(&format!("{bad}")), "{text}");
    }
    for bad in [-100.5, f32::NAN, f32::INFINITY] {
        let penalties = Penalties::default();
        named(of(Sampling { penalties: Penalties { presence: bad, ..penalties }, ..plain }), "presence");
        named(of(Sampling { penalties: Penalties { frequency: bad, ..penalties }, ..plain }), "frequency");
        let listed = [ListedToken { token: 3, seen: 0, drawn: 0, bias: bad * 10.0 }];
        named(ShapedRow { listed: &listed, ..of(plain) }, "bias");
    }
    let token = |token| ListedToken { token, seen: 1, drawn: 0, bias: 0.0 };
    for listed in [[token(3), token(3)], [token(4), token(3)], [token(1), token(40)]] {
        named(ShapedRow { listed: &listed, ..of(plain) }, "listed");
    }
    named(ShapedRow { mask: Some(&[0, 0]), ..of(plain) }, "mask");
    // Past the vocabulary nothing is allowed.
    named(ShapedRow { mask: Some(&[0, 0xffff_ff00]), ..of(plain) }, "mask");
    assert_kind!(sample.words(&[ShapedRow { mask: Some(&[1]), ..of(plain) }]), ErrorKind::Shape { .. });
    assert_kind!(sample.words(&[]), ErrorKind::Argument { name: "rows", .. });
    // A row of `Sample` has no such options.
    for (sampling, name) in [
        (Sampling { top_k: 4, ..plain }, "top_k"),
        (Sampling { min_p: 0.5, ..plain }, "min_p"),
        (Sampling { typical_p: 0.5, ..plain }, "typical_p"),
        (Sampling { penalties: Penalties { presence: 0.5, ..Default::default() }, ..plain }, "presence"),
    ] {
        let error = sampling.row(0.5).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Argument { name: n, .. } if *n == name), "{error}");
    }
    let penalties = Penalties { presence: 0.5, window: 0, ..Default::default() };
    assert_eq!(Sampling { penalties, ..plain }.row(0.5).unwrap(), plain.row(0.5).unwrap());

    let t = |shape: &[usize], dtype| Tensor::zeros(gpu, shape, dtype).unwrap();
    let (logits, rows, tokens) = (t(&[2, 40], DType::F32), t(&[16], DType::U32), t(&[2], DType::U32));
    let run = |logits: Span<'_>, rows: (&Tensor, usize), tokens: &Tensor| sample.run(logits, rows, tokens, tokens);
    run(Span::of(&logits), (&rows, 1), &tokens).unwrap();
    assert_kind!(run(Span::of(&logits).offset(1), (&rows, 1), &tokens), ErrorKind::Shape { .. });
    assert_kind!(run(Span::of(&logits), (&rows, 2), &tokens), ErrorKind::Argument { .. });
    assert_kind!(run(Span::of(&logits), (&rows, 0), &tokens), ErrorKind::Argument { .. });
    assert_kind!(run(Span::of(&logits), (&rows, 1), &t(&[2], DType::F32)), ErrorKind::DType { .. });
    assert_kind!(run(Span::of(&logits), (&tokens, 1), &tokens), ErrorKind::Argument { .. });
    assert_kind!(run(Span::of(&t(&[2, 39], DType::F32)), (&rows, 1), &tokens), ErrorKind::Shape { .. });
}
