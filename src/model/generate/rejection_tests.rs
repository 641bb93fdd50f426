use super::*;
use crate::reference;

const VOCAB: usize = 7;

fn logits(random: &mut SplitMix64, spread: f32) -> Vec<f32> {
    (0..VOCAB).map(|_| spread * (random.uniform() - 0.5)).collect()
}

/// Sum of (seen - expected)^2 / expected over tokens that can come, and their number less one.
fn chi_square(seen: &[u32], p: &[f64]) -> (f64, f64) {
    let draws = f64::from(seen.iter().sum::<u32>());
    let possible: Vec<usize> = (0..p.len()).filter(|i| p[*i] > 0.0).collect();
    for i in 0..p.len() {
        assert!(p[i] > 0.0 || seen[i] == 0, "token {i} has no probability and came {} times", seen[i]);
    }
    let chi = possible.iter().map(|&i| (f64::from(seen[i]) - draws * p[i]).powi(2) / (draws * p[i])).sum();
    (chi, possible.len() as f64 - 1.0)
}

/// A bound that a right rule passes with a probability of about 1 - 1e-6 (Wilson and Hilferty's approximation, z = 4.75).
fn bound(freedom: f64) -> f64 {
    let v = 2.0 / (9.0 * freedom.max(1.0));
    freedom.max(1.0) * (1.0 - v + 4.75 * v.sqrt()).powi(3)
}

/// The first token that comes out, whether it was drafted or not, over many runs of the rule.
fn seen(p: &Distribution, propose: impl Fn(&mut SplitMix64) -> Proposal, random: &mut SplitMix64) -> Vec<u32> {
    let mut seen = vec![0; VOCAB];
    for _ in 0..60_000 {
        let proposals = [propose(random)];
        let rows = [p, p].map(|row| Ok(row.clone()));
        let (stand, next) = verify(rows.into_iter(), &proposals, random).unwrap();
        seen[if stand == 1 { proposals[0].token } else { next } as usize] += 1;
    }
    seen
}

#[test]
fn without_draws_what_is_most_likely_stands() {
    let guesses = [4, 2, 6].map(|token| Proposal { token, drawn_from: None });
    let judge = |most_likely: &[u32]| {
        verify_most_likely(most_likely, &guesses, |stand| ErrorKind::argument("logits", format!("after {stand}")))
    };
    assert_eq!(judge(&[4, 2, 6, 1]).unwrap(), (3, 1));
    assert_eq!(judge(&[4, 3, 6, 1]).unwrap(), (1, 3));
    assert_eq!(judge(&[5, 2, 6, 1]).unwrap(), (0, 5));
    // What stands behind one that does not is not looked at.
    assert_eq!(judge(&[5, Sample::NO_TOKEN]).unwrap(), (0, 5));
    for (most_likely, words) in [(vec![4, Sample::NO_TOKEN, 6, 1], "after 1"), (vec![4, 2, 6], "too few")] {
        let error = judge(&most_likely).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn what_comes_out_has_the_target_distribution_whatever_is_drafted() {
    let mut random = SplitMix64::new(11);
    let mut differs = 0;
    for (case, (temperature, top_p)) in
        [(1.0, 1.0), (0.7, 0.9), (1.6, 0.6), (0.3, 1.0), (1.0, 0.3), (1.0, 1.0)].into_iter().enumerate()
    {
        let sampling = Sampling::new(temperature, top_p);
        let p = Distribution::new(&logits(&mut random, 5.0), sampling).unwrap();
        let q = Distribution::new(&logits(&mut random, 5.0), sampling).unwrap();
        let drawn = |random: &mut SplitMix64| Proposal { token: q.draw(random), drawn_from: Some(q.clone()) };
        let (chi, freedom) = chi_square(&seen(&p, drawn, &mut random), &p.0);
        assert!(chi < bound(freedom), "case {case}: chi-square {chi} at {freedom} degrees of freedom, drawn");
        // The draft's own distribution would be told from the target's.
        let of_draft: Vec<u32> = q.0.iter().map(|q| (60_000.0 * q).round() as u32).collect();
        if q.0.iter().zip(&p.0).all(|(q, p)| *q == 0.0 || *p > 0.0) {
            differs += usize::from(chi_square(&of_draft, &p.0).0 > bound(freedom));
        }
        for token in 0..VOCAB as u32 {
            let certain = |_: &mut SplitMix64| Proposal { token, drawn_from: None };
            let (chi, freedom) = chi_square(&seen(&p, certain, &mut random), &p.0);
            assert!(chi < bound(freedom), "case {case}: chi-square {chi} at {freedom}, {token} proposed");
        }
    }
    assert!(differs > 0, "drafts and target were alike in every case");
}

/// A drafter that lacks some of the tokens, and one whose further tokens are cut off.
#[test]
fn vocabularies_of_other_sizes_leave_the_target_distribution() {
    let mut random = SplitMix64::new(23);
    for (temperature, top_p) in [(1.0, 1.0), (0.7, 0.9)] {
        let sampling = Sampling::new(temperature, top_p);
        let p = Distribution::new(&logits(&mut random, 3.0), sampling).unwrap();
        let row = [logits(&mut random, 5.0), vec![9.0; 3]].concat();
        for tokens in [VOCAB - 3, VOCAB - 1, 1, VOCAB] {
            let q = Distribution::new(&row[..tokens], sampling).unwrap();
            let drawn = |random: &mut SplitMix64| Proposal { token: q.draw(random), drawn_from: Some(q.clone()) };
            let (chi, freedom) = chi_square(&seen(&p, drawn, &mut random), &p.0);
            assert!(chi < bound(freedom), "chi-square {chi} at {freedom} degrees of freedom, {tokens} tokens");
        }
    }
}

/// Of several proposals: each next token has its own row's distribution, given those before it.
#[test]
fn pairs_of_tokens_have_the_joint_distribution() {
    let mut random = SplitMix64::new(5);
    let sampling = Sampling::new(1.0, 1.0);
    let make = |random: &mut SplitMix64| Distribution::new(&logits(random, 4.0)[..3], sampling).unwrap();
    let first = make(&mut random);
    let (second, q): (Vec<_>, Vec<_>) = (0..3).map(|_| (make(&mut random), make(&mut random))).unzip();
    let mut seen = vec![0; 9];
    for _ in 0..60_000 {
        let a = q[0].draw(&mut random);
        let b = q[1 + a as usize % 2].draw(&mut random);
        let from = |q: &Distribution, token| Proposal { token, drawn_from: Some(q.clone()) };
        let proposals = [from(&q[0], a), from(&q[1 + a as usize % 2], b)];
        let rows = [&first, &second[a as usize], &first].map(|row| Ok(row.clone()));
        let (stand, next) = verify(rows.into_iter(), &proposals, &mut random).unwrap();
        let pair = match stand {
            0 => (next, second[next as usize].draw(&mut random)),
            1 => (a, next),
            _ => (a, b),
        };
        seen[(3 * pair.0 + pair.1) as usize] += 1;
    }
    let joint: Vec<f64> = (0..9).map(|i| first.0[i / 3] * second[i / 3].0[i % 3]).collect();
    let (chi, freedom) = chi_square(&seen, &joint);
    assert!(chi < bound(freedom), "chi-square {chi} at {freedom} degrees of freedom: {seen:?}");
}

#[test]
fn drafts_as_good_as_the_target_all_stand_and_greedy_ones_only_where_they_are_its_choice() {
    let mut random = SplitMix64::new(3);
    let p = Distribution::new(&logits(&mut random, 3.0), Sampling::new(1.0, 0.9)).unwrap();
    let greedy = |logits: &[f32]| Distribution::new(logits, Sampling::default()).unwrap();
    for _ in 0..2000 {
        let proposals: Vec<Proposal> =
            (0..4).map(|_| Proposal { token: p.draw(&mut random), drawn_from: Some(p.clone()) }).collect();
        assert_eq!(verify(vec![p.clone(); 5].into_iter().map(Ok), &proposals, &mut random).unwrap().0, 4);
    }
    let rows = [greedy(&[0.0, 2.0, 2.0]), greedy(&[5.0, 2.0, 2.0]), greedy(&[0.0, 2.0, 3.0])];
    for (drafts, want) in [([1, 0], (2, 2)), ([1, 1], (1, 0)), ([2, 0], (0, 1)), ([0, 0], (0, 1))] {
        for drawn_from in [None, Some(())] {
            let one = |token: u32| {
                let mut logits = [0.0; 3];
                logits[token as usize] = 1.0;
                Proposal { token, drawn_from: drawn_from.map(|()| greedy(&logits)) }
            };
            let rows = rows.iter().cloned().map(Ok);
            assert_eq!(verify(rows, &drafts.map(one), &mut random).unwrap(), want, "{drafts:?}");
        }
    }
    let error = verify(rows.iter().take(1).cloned().map(Ok), &[Proposal { token: 1, drawn_from: None }], &mut random);
    assert!(matches!(error.unwrap_err().kind(), ErrorKind::Argument { name: "logits", .. }));
}

/// What the device draws from, by the reference that its kernel is tested against.
#[test]
fn a_distribution_is_what_the_reference_draws_from() {
    let mut random = SplitMix64::new(21);
    for (temperature, top_p) in [(0.0, 1.0), (0.0, 0.5), (1.0, 1.0), (0.7, 0.9), (2.0, 0.5), (1.0, 0.05)] {
        let logits = logits(&mut random, 6.0);
        let p = Distribution::new(&logits, Sampling::new(temperature, top_p)).unwrap();
        let wide: Vec<f64> = logits.iter().map(|l| f64::from(*l)).collect();
        let mut share = [0.0; VOCAB];
        for i in 0..10_000 {
            let u = f64::from(i) / 10_000.0;
            share[reference::sample(&wide, temperature.into(), top_p.into(), u).unwrap()] += 1e-4;
        }
        for (token, (share, p)) in share.iter().zip(&p.0).enumerate() {
            assert!((share - p).abs() < 3e-4, "{temperature} {top_p}, token {token}: {p}, the reference has {share}");
        }
    }
    for bad in [&[][..], &[0.0, f32::NAN], &[f32::INFINITY, 0.0], &[f32::NEG_INFINITY; 2]] {
        let error = Distribution::new(bad, Sampling::default()).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Argument { name: "logits", .. }), "{bad:?}: {error}");
    }
}

/// A random number of 0, and a sum that is met exactly, choose nothing that has no probability or no room.
#[test]
fn the_ends_of_intervals_belong_to_what_follows() {
    // SplitMix64 adds this before it mixes, and mixes 0 to 0.
    let zero = || SplitMix64::new(0u64.wrapping_sub(0x9e37_79b9_7f4a_7c15));
    assert_eq!(zero().uniform(), 0.0);
    let p = Distribution(vec![0.0, 0.25, 0.75]);
    let rows = || [p.clone(), p.clone()].into_iter().map(Ok);
    for drawn_from in [None, Some(Distribution(vec![0.5, 0.25, 0.25]))] {
        let (stand, token) = verify(rows(), &[Proposal { token: 0, drawn_from }], &mut zero()).unwrap();
        assert_eq!(stand, 0, "what cannot be stood");
        assert_ne!(token, 0);
    }
    assert_eq!([0.0, 0.24, 0.25, 0.5].map(|u| pick(&p.0, u)), [1, 1, 2, 2]);
}

/// What guesses are judged by is what the device draws from: the definition of every cut.
#[test]
fn distributions_are_those_of_the_reference_with_every_cut() {
    let mut random = SplitMix64::new(77);
    for round in 0..400 {
        let mut logits = logits(&mut random, 8.0);
        if round % 2 == 0 {
            logits.iter_mut().for_each(|logit| *logit = logit.round());
        }
        let mut pick = |on: &[f32]| on[(random.next_u64() % on.len() as u64) as usize];
        let sampling = Sampling {
            min_p: pick(&[0.0, 0.0, 0.05, 0.3]),
            top_k: pick(&[0.0, 0.0, 1.0, 3.0, 50.0]) as u32,
            typical_p: pick(&[1.0, 1.0, 0.4, 0.9]),
            ..Sampling::new(pick(&[0.0, 0.5, 1.0, 2.0]), pick(&[1.0, 0.45, 0.93]))
        };
        let p = Distribution::new(&logits, sampling).unwrap();
        let options = reference::ShapeOptions {
            temperature: sampling.temperature.into(),
            min_p: sampling.min_p.into(),
            top_k: sampling.top_k as usize,
            typical_p: sampling.typical_p.into(),
            top_p: sampling.top_p.into(),
            ..Default::default()
        };
        let row: Vec<f64> = logits.iter().map(|l| f64::from(*l)).collect();
        let want = reference::shaped_probabilities(&row, &options).unwrap();
        let off = p.0.iter().zip(&want).map(|(p, q)| (p - q).abs()).fold(0.0, f64::max);
        assert!(off < 1e-9, "{sampling:?}, {logits:?}: off by {off}");
    }
}

#[test]
fn penalties_are_refused_by_name() {
    let penalties = Penalties { frequency: 0.5, ..Default::default() };
    let error = Distribution::new(&[0.0, 1.0], Sampling { penalties, ..Default::default() }).unwrap_err();
    assert!(error.to_string().contains("frequency 0.5"), "{error}");
}
