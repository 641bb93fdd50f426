use super::*;
use crate::cache::SeqTable;

const BEAMS: BeamOptions<'_> = BeamOptions { beams: 2, max_new_tokens: 9, stop_tokens: &[9, 7], length_penalty: 1.0 };

fn beams(all: &[(&[u32], f64)]) -> Vec<Beam> {
    let id = SeqTable::new(1, 1).unwrap().insert();
    all.iter()
        .map(|(tokens, log_probability)| Beam { id, tokens: tokens.to_vec(), log_probability: *log_probability })
        .collect()
}

fn places(candidates: &[Candidate]) -> Vec<(usize, u32)> {
    candidates.iter().map(|c| (c.beam, c.token)).collect()
}

#[test]
fn equal_candidates_go_by_beam_and_token() {
    let live = beams(&[(&[1], -1.0), (&[2], -1.0)]);
    let rows = vec![vec![0.5, 2.0, 0.5, 2.0]; 2];
    let all = candidates(&live, &rows, 9).unwrap();
    assert_eq!(places(&all), [(0, 1), (0, 3), (1, 1), (1, 3), (0, 0), (0, 2), (1, 0), (1, 2)]);
    for most in 1..8 {
        assert_eq!(places(&candidates(&live, &rows, most).unwrap()), places(&all)[..most], "{most}");
    }
    // Probabilities of a beam are those of its last step times what it had.
    let sum: f64 = all.iter().map(|c| c.log_probability.exp()).sum();
    assert!((sum - 2.0 * f64::exp(-1.0)).abs() < 1e-12, "{sum}");
}

#[test]
fn what_has_no_probability_is_no_candidate() {
    let rows = [vec![f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY]];
    let all = candidates(&beams(&[(&[], 0.0)]), &rows, 4).unwrap();
    assert_eq!((places(&all), all[0].log_probability), (vec![(0, 1)], 0.0));
    assert!(candidates(&beams(&[(&[], 0.0)]), &[vec![1.0, f32::NAN]], 4).is_err());
}

#[test]
fn the_best_that_ended_stay_in_order() {
    let mut ended = Vec::new();
    for (tokens, log_probability) in [(&[3, 4][..], -2.0), (&[5, 7], -1.0), (&[6], -1.0), (&[8], -0.75)] {
        BEAMS.end(tokens.to_vec(), log_probability, &mut ended);
    }
    let got: Vec<(&[u32], f64, bool)> = ended.iter().map(|c| (&c.tokens[..], c.score, c.stopped)).collect();
    assert_eq!(got, [(&[5, 7][..], -0.5, true), (&[8], -0.75, false)]);
    let mut equal = Vec::new();
    for token in [1, 2, 3] {
        BEAMS.end(vec![token], -1.0, &mut equal);
    }
    assert_eq!((&equal[0].tokens, &equal[1].tokens), (&vec![1], &vec![2]));
}

/// A beam of 2 tokens and -1.8 can still have 9 tokens and a mean of -0.2.
#[test]
fn a_search_is_over_when_no_beam_can_come_first() {
    let ended = |scores: &[f64]| -> Vec<Continuation> {
        scores.iter().map(|s| Continuation { tokens: vec![7], log_probability: *s, score: *s, stopped: true }).collect()
    };
    let live = beams(&[(&[1, 2], -1.8), (&[1, 3], -3.0)]);
    assert!(!BEAMS.is_over(&live, &ended(&[-0.1])));
    assert!(!BEAMS.is_over(&live, &ended(&[-0.1, -0.201])));
    assert!(BEAMS.is_over(&live, &ended(&[-0.1, -0.2])));
    // The most probable: what follows makes none better. Short ones wanted: the next token is the best time to end.
    for (length_penalty, best) in [(0.0, -1.8), (-1.0, -5.4)] {
        let options = BeamOptions { length_penalty, ..BEAMS };
        assert!(!options.is_over(&live, &ended(&[-0.1, best - 0.001])), "{length_penalty}");
        assert!(options.is_over(&live, &ended(&[-0.1, best + 0.001])), "{length_penalty}");
    }
    assert!(BEAMS.is_over(&[], &ended(&[-0.1])) && BEAMS.is_over(&[], &[]));
}
