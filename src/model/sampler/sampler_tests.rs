use super::*;
use crate::nn::Penalties;
use std::sync::atomic::{AtomicU32, Ordering};

fn counts(sampler: &Sampler, after: usize) -> Vec<(u32, u32, u32)> {
    sampler.row(after).listed.iter().map(|t| (t.token, t.seen, t.drawn)).collect()
}

/// Against counts of the last tokens made anew each time.
#[test]
fn the_window_counts_the_last_tokens() {
    let mut random = SplitMix64::new(3);
    for window in [1, 2, 5, 30, u32::MAX] {
        let penalties = Penalties { presence: 0.5, window, ..Default::default() };
        let mut sampler = Sampler::new(Sampling { penalties, ..Default::default() }, 0).unwrap();
        let mut all: Vec<(u32, bool)> = Vec::new();
        for _ in 0..80 {
            let (token, drawn) = ((random.next_u64() % 9) as u32, !random.next_u64().is_multiple_of(3));
            match drawn {
                true => sampler.take(token),
                false => sampler.see(&[token]),
            }
            all.push((token, drawn));
            for after in [0, 1] {
                let most = (window as usize).saturating_sub(after);
                let last = &all[all.len().saturating_sub(most)..];
                let of = |token| {
                    let own = last.iter().filter(|(other, _)| *other == token);
                    (token, own.clone().count() as u32, own.filter(|(_, drawn)| *drawn).count() as u32)
                };
                let want: Vec<_> = (0..9).map(of).filter(|(_, seen, _)| *seen > 0).collect();
                assert_eq!(counts(&sampler, after), want, "window {window}, {after} after {}", all.len());
            }
        }
    }
}

#[test]
fn without_penalties_nothing_is_counted_and_biases_are_merged() {
    let mut plain = Sampler::new(Sampling::new(1.0, 0.9), 4).unwrap();
    plain.see(&[1, 2, 3]);
    assert!(plain.row(0).listed.is_empty() && plain.row(0).is_plain());
    let penalties = Penalties { repetition: 1.5, window: 3, ..Default::default() };
    let sampler = Sampler::new(Sampling { penalties, ..Default::default() }, 0).unwrap();
    let mut sampler = sampler.with_bias(&[(7, 1.0), (2, -1.5)]).unwrap();
    sampler.see(&[9, 2, 4]);
    let listed: Vec<_> = sampler.row(0).listed.iter().map(|t| (t.token, t.seen, t.bias)).collect();
    assert_eq!(listed, [(2, 1, -1.5), (4, 1, 0.0), (7, 0, 1.0), (9, 1, 0.0)]);
}

/// The numbers of a draw after one that is not known are those of the next draw once it is.
#[test]
fn random_numbers_move_on_with_tokens_alone() {
    let mut sampler = Sampler::new(Sampling::new(1.0, 1.0), 11).unwrap();
    let mut random = SplitMix64::new(11);
    for _ in 0..5 {
        let (next, after) = (random.uniform(), random.clone().uniform());
        assert_eq!([sampler.row(0).u, sampler.row(0).u, sampler.row(1).u], [next, next, after]);
        sampler.take(3);
    }
}

#[test]
fn bad_samplers_are_typed_errors() {
    let sampler = || Sampler::new(Sampling::default(), 0).unwrap();
    let named = |result: Result<Sampler>, name: &str| {
        let error = result.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Argument { name: n, .. } if *n == name), "{error}");
    };
    named(Sampler::new(Sampling { min_p: 2.0, ..Default::default() }, 0), "min_p");
    named(sampler().with_bias(&[(3, 1.0), (3, 2.0)]), "bias");
    for bad in [f32::NAN, f32::INFINITY, -1001.0] {
        named(sampler().with_bias(&[(3, bad)]), "bias");
    }
    named(sampler().with_logprobs(21), "logprobs");
    let row = sampler().with_bias(&[(3, 1.0), (40, 2.0)]).unwrap().row(0);
    assert!(row.check(41).is_ok());
    assert!(row.check(40).unwrap_err().to_string().contains("40 is not in the vocabulary of 40"));
    // A Draw does not know what was there.
    let penalties = Penalties { repetition: 1.5, ..Default::default() };
    let draw = Draw { sampling: Sampling { penalties, ..Default::default() }, u: 0.0 };
    assert!(DrawRow::from(draw).check(9).unwrap_err().to_string().starts_with("penalties: "));
}

/// Allows one more token each time, up to 3, and fails where it is told to.
#[derive(Debug, Default)]
struct Counting {
    taken: u32,
    asked: Arc<AtomicU32>,
    fails: bool,
}

impl Constraint for Counting {
    fn allow(&mut self, mask: &mut TokenMask) -> Result<()> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        assert!(self.taken != 2, "at 2");
        if self.fails {
            return Err(constraint::grammar("no more".into()));
        }
        (0..self.taken).for_each(|token| mask.allow(token));
        Ok(())
    }

    fn take(&mut self, token: u32) -> Result<()> {
        self.taken += 1;
        self.fails = token == 9;
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.taken == 4
    }
}

#[test]
fn masks_are_asked_once_a_token_and_faults_stay() {
    let asked = Arc::new(AtomicU32::new(0));
    let sampler = |taken| {
        let counting = Counting { taken, asked: asked.clone(), ..Default::default() };
        Sampler::new(Sampling::default(), 0).unwrap().with_constraint(counting)
    };
    let ask = |sampler: &Sampler| sampler.row(0).constraint.unwrap().mask(40);
    let mut own = sampler(0);
    assert!(own.waits() && !own.is_complete());
    let empty = ask(&own).unwrap_err();
    assert_eq!(empty.kind(), &ErrorKind::Grammar { why: "none of 40 tokens may follow after 0".into() });
    own.take(0);
    for _ in 0..3 {
        let mask = ask(&own).unwrap();
        assert_eq!((mask.count(), mask.allows(0), mask.allows(1), mask.words()), (1, true, false, &[1, 0][..]));
    }
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    own.take(9);
    // It panics now, once: later it is known.
    let cell = own.row(0).constraint.unwrap();
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| cell.mask(40))).is_err());
    assert!(ask(&own).unwrap_err().to_string().contains("panicked after 2 tokens"));
    let complete = sampler(4);
    assert!(complete.is_complete());
    assert!(ask(&complete).unwrap_err().to_string().contains("complete after 0 tokens"));
}

#[test]
fn masks_have_a_bit_for_each_token_and_no_more() {
    let mut mask = TokenMask::none(35);
    (0..40).step_by(3).for_each(|token| mask.allow(token));
    assert_eq!(mask.count(), 12);
    mask.allow_words(&[0, u32::MAX, 7]);
    assert_eq!((mask.words()[1], mask.vocab(), mask.allows(35)), (0b111, 35, false));
    assert!(mask.allows(34) && !mask.allows(1));
}
