//! Log-probabilities of tokens and the most likely ones, against the reference.

use crate::assert_kind;
use crate::common::*;
use latten::nn::{Logprobs, Sample, Span};
use latten::{reference, DType, ErrorKind, Tensor};

/// (token, log-probability) of each row's own token, then of its most likely ones.
fn logprobs(vocab: usize, logits: &[f32], tokens: &[u32], count: usize) -> Vec<Vec<(u32, f32)>> {
    let gpu = gpu();
    let rows = tokens.len();
    let out = Tensor::from_slice(gpu, &[rows, 1 + count, 2], &vec![7; rows * (1 + count) * 2], DType::U32).unwrap();
    let tokens = Tensor::from_slice(gpu, &[rows], tokens, DType::U32).unwrap();
    let logits = tensor(gpu, &[rows, vocab], logits);
    Logprobs::new(gpu, vocab).unwrap().run(Span::of(&logits), &tokens, &out).unwrap();
    let words = pollster::block_on(gpu.download::<u32>(&out)).unwrap();
    let pairs: Vec<(u32, f32)> = words.chunks(2).map(|pair| (pair[0], f32::from_bits(pair[1]))).collect();
    pairs.chunks(1 + count).map(<[_]>::to_vec).collect()
}

#[test]
fn logprobs_equal_the_reference() {
    // 300,000 are parts of 2,048.
    for (vocab, rows) in [(1, 4), (2, 4), (19, 6), (257, 9), (5000, 9), (128_000, 4), (300_000, 2)] {
        let mut rng = Rng(vocab as u64 + 1);
        for count in [0, 1, 5, 20] {
            let mut logits: Vec<f32> = (0..rows).flat_map(|r| rng.normals(vocab, [0.5, 3.0, 9.0][r % 3])).collect();
            for (i, logit) in logits.iter_mut().enumerate() {
                // Ties in every second row, and tokens that are forbidden.
                if i / vocab % 2 == 1 {
                    *logit = logit.round();
                }
                if i % vocab % 13 == 5 {
                    *logit = f32::NEG_INFINITY;
                }
            }
            let tokens: Vec<u32> = (0..rows).map(|_| rng.below(vocab) as u32).collect();
            for (row, got) in logprobs(vocab, &logits, &tokens, count).into_iter().enumerate() {
                let logits = &logits[row * vocab..][..vocab];
                let want = reference::log_probabilities(&f64s(logits)).unwrap();
                let mut order: Vec<usize> = (0..vocab).filter(|i| logits[*i].is_finite()).collect();
                // 0 and -0 are equal.
                order.sort_by(|a, b| logits[*b].partial_cmp(&logits[*a]).unwrap().then(a.cmp(b)));
                let own = tokens[row] as usize;
                let ranked = std::iter::once(Some(own).filter(|own| logits[*own].is_finite()))
                    .chain((0..count).map(|rank| order.get(rank).copied()));
                for (rank, (wanted, (token, logprob))) in ranked.zip(got).enumerate() {
                    let what = format!("vocab {vocab}, row {row}, {count} tokens, number {rank}");
                    let Some(wanted) = wanted else {
                        assert_eq!((token, logprob), (Sample::NO_TOKEN, f32::NEG_INFINITY), "{what}");
                        continue;
                    };
                    assert_eq!(token as usize, wanted, "{what}");
                    // The difference of logits and the sum's logarithm are rounded to f32, and the sum has some hundred terms
                    // one after the other.
                    let allowed = 2e-5 * want[wanted].abs().max(1.0);
                    let off = (f64::from(logprob) - want[wanted]).abs();
                    assert!(off <= allowed, "{what}: {logprob}, wanted {}, off by {off:e}", want[wanted]);
                }
            }
        }
    }
}

#[test]
fn rows_without_probabilities_have_no_logprobs() {
    let (vocab, none) = (3000, (Sample::NO_TOKEN, f32::NEG_INFINITY));
    let mut logits = Rng(4).normals(4 * vocab, 1.0);
    logits[2999] = f32::NAN;
    logits[vocab + 5] = f32::INFINITY;
    logits[2 * vocab..3 * vocab].fill(f32::NEG_INFINITY);
    let got = logprobs(vocab, &logits, &[1, 2, 3, Sample::NO_TOKEN], 3);
    assert_eq!(got[..3], [vec![none; 4], vec![none; 4], vec![none; 4]]);
    assert!(got[3][0] == none && got[3][1..].iter().all(|(token, p)| *token < 3000 && *p < 0.0), "{:?}", got[3]);
}

#[test]
fn bad_calls_are_typed_errors() {
    let gpu = gpu();
    assert_kind!(Logprobs::new(gpu, 0), ErrorKind::Argument { .. });
    let kernel = Logprobs::new(gpu, 30).unwrap();
    let t = |shape: &[usize], dtype| Tensor::zeros(gpu, shape, dtype).unwrap();
    let (logits, tokens) = (t(&[2, 30], DType::F32), t(&[2], DType::U32));
    let run = |out: &Tensor| kernel.run(Span::of(&logits), &tokens, out);
    run(&t(&[2, 21, 2], DType::U32)).unwrap();
    assert_kind!(run(&t(&[2, 22, 2], DType::U32)), ErrorKind::Argument { .. });
    assert_kind!(run(&t(&[1, 2, 2], DType::U32)), ErrorKind::Shape { .. });
    assert_kind!(run(&t(&[2, 2, 2], DType::F32)), ErrorKind::DType { .. });
    let out = t(&[2, 1, 2], DType::U32);
    assert_kind!(kernel.run(Span::of(&logits).offset(4), &tokens, &out), ErrorKind::Shape { .. });
}
