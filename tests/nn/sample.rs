//! Sampling: equal to the reference where it is decided clearly, in range whatever the logits, and fair.

use crate::assert_kind;
use crate::common::*;
use latten::nn::{Sample, Sampling, Span};
use latten::{reference, DType, ErrorKind, Tensor};

/// The tokens drawn from rows of logits.
fn draw(vocab: usize, logits: &[f32], samplers: &[[f32; 4]]) -> Vec<u32> {
    let gpu = gpu();
    let rows = samplers.len();
    let logits = tensor(gpu, &[rows, vocab], logits);
    let samplers = tensor(gpu, &[rows, 4], samplers.as_flattened());
    let tokens = Tensor::from_slice(gpu, &[rows], &vec![u32::MAX; rows], DType::U32).unwrap();
    Sample::new(gpu, vocab).unwrap().run(Span::of(&logits), &samplers, &tokens).unwrap();
    pollster::block_on(gpu.download::<u32>(&tokens)).unwrap()
}

/// Whether a change of `top_p` or `u` by 1e-5 leaves the reference's answer as it is.
fn is_clear(logits: &[f64], s: Sampling, u: f32) -> bool {
    let (t, p, u) = (f64::from(s.temperature), f64::from(s.top_p), f64::from(u));
    let at = |dp: f64, du: f64| {
        let top_p = if p >= 1.0 { p } else { p + dp };
        reference::sample(logits, t, top_p, (u + du).clamp(0.0, 0.999_999)).unwrap()
    };
    [(1e-5, 0.0), (-1e-5, 0.0), (0.0, 1e-5), (0.0, -1e-5)].iter().all(|(dp, du)| at(*dp, *du) == at(0.0, 0.0))
}

#[test]
fn draws_equal_the_reference() {
    let mut compared = 0;
    // From 4,097 on the largest logit is found in parts of 512.
    for vocab in [1, 2, 63, 256, 1000, 4096, 4097, 5000, 12_801] {
        let mut rng = Rng(vocab as u64);
        let rows = 120;
        let spread = [0.5, 3.0, 20.0];
        let logits: Vec<f32> = (0..rows).flat_map(|r| rng.normals(vocab, spread[r % 3])).collect();
        let options: Vec<(Sampling, f32)> = (0..rows)
            .map(|r| {
                let temperature = [0.0, 0.3, 1.0, 2.5][r / 3 % 4];
                let top_p = [1.0, 0.9, 0.5, 0.01][r / 12 % 4];
                (Sampling::new(temperature, top_p), if r % 17 == 0 { 0.0 } else { rng.uniform() })
            })
            .collect();
        let samplers: Vec<[f32; 4]> = options.iter().map(|(s, u)| s.row(*u).unwrap()).collect();
        let got = draw(vocab, &logits, &samplers);
        for (r, (s, u)) in options.iter().enumerate() {
            let row = f64s(&logits[r * vocab..][..vocab]);
            if !is_clear(&row, *s, *u) {
                continue;
            }
            let want = reference::sample(&row, s.temperature.into(), s.top_p.into(), (*u).into()).unwrap();
            assert_eq!(got[r] as usize, want, "vocab {vocab}, row {r}, {s:?}, u {u}");
            compared += 1;
        }
    }
    assert!(compared > 900, "only {compared} of 1080 draws were clear");
}

#[test]
fn the_largest_logit_wins_and_the_lowest_index_among_equals() {
    let greedy = Sampling::default().row(0.0).unwrap();
    let mut logits = vec![0.0; 3 * 300];
    (logits[7], logits[250]) = (5.0, 5.0);
    logits[300..600].fill(-2.0);
    (logits[600 + 299], logits[600 + 64]) = (1.0, 1.0);
    assert_eq!(draw(300, &logits, &[greedy; 3]), [7, 0, 64]);
}

#[test]
fn ties_at_the_threshold_are_kept_together() {
    // Masses 0.5, 0.2, 0.2, 0.1: a top_p of 0.6 reaches into the pair, so both are kept, and the last is not.
    let logits: Vec<f32> = [0.5f32, 0.2, 0.2, 0.1].iter().map(|p| p.ln()).collect();
    let mut seen = [0; 4];
    for i in 0..50 {
        let row = Sampling::new(1.0, 0.6).row(i as f32 / 50.0).unwrap();
        seen[draw(4, &logits, &[row])[0] as usize] += 1;
    }
    assert!(seen[1] > 8 && seen[2] > 8 && seen[3] == 0, "{seen:?}");
}

#[test]
fn what_cannot_come_is_not_drawn_by_the_smallest_number() {
    for top_p in [1.0, 0.5] {
        let row = Sampling::new(1.0, top_p).row(0.0).unwrap();
        assert_eq!(draw(3, &[-1000.0, 0.0, 0.0], &[row]), [1]);
    }
}

#[test]
fn frequencies_are_those_of_the_softmax() {
    let (vocab, rows) = (20, 20_000);
    let mut rng = Rng(77);
    let one = rng.normals(vocab, 1.5);
    let p: Vec<f64> = one.iter().map(|l| f64::from(*l / 0.8).exp()).collect();
    let total: f64 = p.iter().sum();
    let logits: Vec<f32> = (0..rows).flat_map(|_| one.clone()).collect();
    let s = Sampling::new(0.8, 1.0);
    let samplers: Vec<[f32; 4]> = (0..rows).map(|_| s.row(rng.uniform()).unwrap()).collect();
    let mut counts = vec![0.0; vocab];
    draw(vocab, &logits, &samplers).iter().for_each(|&t| counts[t as usize] += 1.0);
    let chi_square: f64 = p
        .iter()
        .zip(&counts)
        .map(|(p, n)| {
            let expected = p / total * rows as f64;
            (n - expected) * (n - expected) / expected
        })
        .sum();
    assert!(chi_square < 43.8, "chi-square {chi_square} over 19 degrees of freedom: p < 0.001");
    // seeded
}

/// Rows that the reference refuses have no token; all others have one of theirs, the reference's where it is clear.
#[test]
fn rows_without_probabilities_have_no_token() {
    let samplings =
        [(0.0, 1.0), (1.0, 1.0), (1.0, 0.5), (0.01, 0.9)].map(|(temperature, top_p)| Sampling::new(temperature, top_p));
    let (mut refused, mut drawn) = (0, 0);
    for vocab in [1, 2, 100, 5000] {
        // (rows of 4 samplings each) one value everywhere, in every third place, first, last, and all but one.
        let values = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -f32::MAX, 0.0, -0.0];
        let signalling = f32::from_bits(0x7f80_0001);
        let mut rows: Vec<Vec<f32>> = Vec::new();
        for value in values.into_iter().chain([signalling]) {
            let some = || Rng(vocab as u64).normals(vocab, 1.0);
            let with = |change: &dyn Fn(&mut Vec<f32>)| {
                let mut row = some();
                change(&mut row);
                row
            };
            rows.push(vec![value; vocab]);
            rows.push(with(&|row| row.iter_mut().step_by(3).for_each(|l| *l = value)));
            rows.push(with(&|row| row[0] = value));
            rows.push(with(&|row| row[vocab - 1] = value));
            rows.push(with(&|row| row.iter_mut().skip(1).for_each(|l| *l = value)));
            rows.push(with(&|row| row.iter_mut().take(vocab - 1).for_each(|l| *l = value)));
        }
        // The lowest number is above what is forbidden.
        rows.push(vec![f32::NEG_INFINITY; vocab].into_iter().skip(1).chain([-f32::MAX]).collect());
        let samplers: Vec<[f32; 4]> = rows.iter().flat_map(|_| samplings.map(|s| s.row(0.75).unwrap())).collect();
        let logits: Vec<f32> = rows.iter().flat_map(|row| [&row[..]; 4].concat()).collect();
        for (i, token) in draw(vocab, &logits, &samplers).into_iter().enumerate() {
            let (row, s) = (f64s(&rows[i / 4]), samplings[i % 4]);
            let what = format!("row {} of {vocab}, {s:?}", i / 4);
            match reference::sample(&row, s.temperature.into(), s.top_p.into(), 0.75) {
                Err(_) => assert_eq!(token, Sample::NO_TOKEN, "{what}"),
                Ok(want) if is_clear(&row, s, 0.75) => assert_eq!(token as usize, want, "{what}"),
                Ok(_) => assert!((token as usize) < vocab, "{what}: {token}"),
            }
            refused += usize::from(token == Sample::NO_TOKEN);
            drawn += usize::from(token != Sample::NO_TOKEN);
        }
    }
    assert!(refused > 300 && drawn > 300, "{refused} refused, {drawn} drawn");
}

#[test]
fn bad_calls_are_typed_errors() {
    let gpu = gpu();
    for (temperature, top_p, u) in [
        (-1.0, 1.0, 0.0),
        (f32::NAN, 1.0, 0.0),
        (1.0, 0.0, 0.0),
        (1.0, 1.1, 0.0),
        (1.0, f32::NAN, 0.0),
        (1.0, 1.0, 1.0),
    ] {
        assert_kind!(Sampling::new(temperature, top_p).row(u), ErrorKind::Argument { .. });
    }
    assert_kind!(Sample::new(gpu, 0), ErrorKind::Argument { .. });
    let sample = Sample::new(gpu, 10).unwrap();
    let t = |shape: &[usize], dtype| Tensor::zeros(gpu, shape, dtype).unwrap();
    let (logits, samplers, tokens) = (t(&[2, 10], DType::F32), t(&[2, 4], DType::F32), t(&[2], DType::U32));
    sample.run(Span::of(&logits), &samplers, &tokens).unwrap();
    assert_kind!(sample.run(Span::of(&logits).offset(1), &samplers, &tokens), ErrorKind::Shape { .. });
    assert_kind!(sample.run(Span::of(&logits), &t(&[1, 4], DType::F32), &tokens), ErrorKind::Shape { .. });
    assert_kind!(sample.run(Span::of(&logits), &samplers, &t(&[2], DType::F32)), ErrorKind::DType { .. });
    let few = t(&[2, 9], DType::F32);
    assert_kind!(sample.run(Span::of(&few), &samplers, &tokens), ErrorKind::Shape { .. });
}
