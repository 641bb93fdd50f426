//! Draws by samplers: penalties, biases, cuts, log-probabilities and constraints, in plain loops, streams and the scheduler.

use crate::assert_kind;
use crate::common::*;
use crate::scheduler::{decoder, request, session, All, PAGE};
use crate::tiny::MAX_POSITIONS;
use latten::model::{
    best_of, continue_sequence, continue_with, generate, generate_speculative, BestOfOptions, Constraint, Decoder,
    Drafter, Draw, Drawn, Finished, GenerateOptions, RequestId, Sampler, Scheduler, Session, SpeculativeOptions,
    TokenMask,
};
use latten::nn::{Penalties, Sampling};
use latten::reference::{self, ShapeOptions};
use latten::{Error, ErrorKind, GpuOptions, Result, SeqId};
use pollster::block_on;
use std::ops::ControlFlow;

const PROMPTS: [&[u32]; 4] = [&[5, 6, 7, 8, 9], &[100, 100, 3], &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], &[44]];

/// Different options for each sequence; the first is plain.
fn sampling(i: usize) -> Sampling {
    let penalties = Penalties { repetition: 1.3, presence: 0.7, frequency: 0.3, window: 6 };
    let hot = Sampling::new(1.1, 1.0);
    match i % 4 {
        0 => Sampling::new(1.2, 0.9),
        1 => Sampling { penalties, ..hot },
        2 => Sampling { top_k: 20, min_p: 0.02, penalties: Penalties { window: u32::MAX, ..penalties }, ..hot },
        _ => Sampling {
            typical_p: 0.8,
            top_p: 0.95,
            penalties: Penalties { presence: 5.0, window: 1, ..penalties },
            ..hot
        },
    }
}

const BIAS: [(u32, f32); 3] = [(7, 2.0), (30, -4.0), (100, 1.0)];

fn sampler(i: usize) -> Sampler {
    let sampler = Sampler::new(sampling(i), 40 + i as u64).unwrap();
    match i % 4 {
        0 => sampler.with_logprobs(0).unwrap(),
        1 => sampler.with_logprobs(3).unwrap(),
        2 => sampler.with_bias(&BIAS).unwrap(),
        _ => sampler,
    }
}

fn samplers() -> Vec<Sampler> {
    let seen = |i: usize| {
        let mut sampler = sampler(i);
        sampler.see(PROMPTS[i]);
        sampler
    };
    (0..PROMPTS.len()).map(seen).collect()
}

fn prompts(session: &mut Session) -> Vec<(SeqId, Vec<u32>)> {
    PROMPTS.iter().map(|prompt| (session.insert(), prompt.to_vec())).collect()
}

fn slices(batch: &[(SeqId, Vec<u32>)]) -> Vec<(SeqId, &[u32])> {
    batch.iter().map(|(id, tokens)| (*id, &tokens[..])).collect()
}

/// So many tokens of each sequence by `Session::draw`.
fn plain(decoder: &Decoder, steps: usize) -> Vec<Vec<Drawn>> {
    let mut session = session(decoder, 4, 80);
    let (mut batch, mut samplers) = (prompts(&mut session), samplers());
    let step = |_| {
        let drawn = block_on(session.draw(&slices(&batch), &mut samplers)).unwrap();
        batch.iter_mut().zip(&drawn).for_each(|((_, tokens), drawn)| *tokens = vec![drawn.token]);
        drawn
    };
    (0..steps).map(step).collect()
}

/// The token that the device alone knows counts for the penalties of the next.
#[test]
fn streams_of_samplers_equal_the_plain_loop() {
    for variant in ["gqa", "gla"] {
        let decoder = decoder(variant, "sampled-streams");
        let want = plain(&decoder, 20);
        for ahead in [true, false] {
            let mut session = session(&decoder, 4, 80);
            let batch = prompts(&mut session);
            let mut stream = session.stream_with(&slices(&batch), samplers()).unwrap();
            let got: Vec<_> = (0..20).map(|_| block_on(stream.next_drawn(ahead)).unwrap()).collect();
            assert_eq!(got, want, "{variant}, ahead {ahead}");
        }
    }
}

/// Each token against the definition, from logits that a session of the same steps gives.
#[test]
fn tokens_and_logprobs_are_those_of_the_reference() {
    let decoder = decoder("gta", "sampled-reference");
    let steps = plain(&decoder, 25);
    let mut session = session(&decoder, 4, 80);
    let mut batch = prompts(&mut session);
    let mut numbers: Vec<Rng> = (0..4).map(|i| Rng(40 + i)).collect();
    let mut texts: Vec<Vec<(usize, bool)>> =
        PROMPTS.iter().map(|prompt| prompt.iter().map(|token| (*token as usize, false)).collect()).collect();
    let (mut compared, bias) = (0, BIAS.map(|(token, bias)| (token as usize, f64::from(bias))));
    for (step, drawn) in steps.iter().enumerate() {
        let logits = block_on(session.logits(&slices(&batch))).unwrap();
        for i in 0..4 {
            let Sampling { temperature, min_p, top_k, typical_p, top_p, penalties } = sampling(i);
            let window = &texts[i][texts[i].len().saturating_sub(penalties.window as usize)..];
            let seen: Vec<usize> = window.iter().map(|(token, _)| *token).collect();
            let of_drawn: Vec<usize> = window.iter().filter(|(_, drawn)| *drawn).map(|(token, _)| *token).collect();
            let options = ShapeOptions {
                bias: if i == 2 { &bias } else { &[] },
                seen: &seen,
                drawn: &of_drawn,
                repetition: penalties.repetition.into(),
                presence: penalties.presence.into(),
                frequency: penalties.frequency.into(),
                allowed: None,
                temperature: temperature.into(),
                min_p: min_p.into(),
                top_k: top_k as usize,
                typical_p: typical_p.into(),
                top_p: top_p.into(),
            };
            let row = f64s(&logits[i]);
            let u = f64::from(numbers[i].uniform());
            let at = |u: f64| reference::sample_shaped(&row, &options, u.clamp(0.0, 0.999_999)).unwrap();
            let token = drawn[i].token as usize;
            if at(u - 1e-4) == at(u + 1e-4) {
                assert_eq!(token, at(u), "step {step}, sequence {i}");
                compared += 1;
            }
            texts[i].push((token, true));
            batch[i].1 = vec![drawn[i].token];

            let logprobs = reference::log_probabilities(&row).unwrap();
            let near = |got: f32, token: usize| (f64::from(got) - logprobs[token]).abs() < 1e-4;
            assert_eq!(drawn[i].log_probability.is_some(), i < 2, "sequence {i}");
            assert!(drawn[i].log_probability.is_none_or(|got| near(got, token)), "step {step}: {:?}", drawn[i]);
            let most_likely = &drawn[i].most_likely;
            assert_eq!(most_likely.len(), if i == 1 { 3 } else { 0 });
            assert!(most_likely.iter().all(|(token, got)| near(*got, *token as usize)), "{most_likely:?}");
            let above = |of: f64| logprobs.iter().filter(|other| **other > of + 1e-4).count();
            assert!(most_likely.iter().enumerate().all(|(rank, (_, got))| above((*got).into()) <= rank));
        }
    }
    assert!(compared > 90, "only {compared} of 100 draws were clear");
}

/// Alone, by `continue_with`.
fn alone(decoder: &Decoder, prompt: &[u32], most: usize, mut sampler: Sampler) -> Vec<Drawn> {
    let mut session = session(decoder, 1, MAX_POSITIONS.div_ceil(PAGE));
    let sequence = session.insert();
    let mut all = Vec::new();
    let tokens = block_on(continue_with(&mut session, sequence, prompt, most, &mut sampler, |drawn| {
        all.push(drawn.clone());
        ControlFlow::Continue(())
    }));
    assert_eq!(tokens.unwrap(), all.iter().map(|drawn| drawn.token).collect::<Vec<_>>());
    all
}

#[test]
fn requests_with_samplers_get_what_they_get_alone() {
    let decoder = decoder("gqa", "sampled-requests");
    let mut scheduler = Scheduler::new(session(&decoder, 3, 60));
    let mut wanted: Vec<(RequestId, Vec<Drawn>)> = Vec::new();
    let mut got: Vec<Vec<Drawn>> = Vec::new();
    for i in 0..8 {
        let request = request(i, 5 + i as usize * 7 % 13);
        let own = || match i % 3 {
            2 => sampler(i as usize).with_constraint(Multiples { of: 3, taken: 0, most: 9, fails_at: 99 }),
            _ => sampler(i as usize),
        };
        let want = alone(&decoder, &request.prompt, request.generate.max_new_tokens, own());
        wanted.push((scheduler.add_with(request, own()).unwrap(), want));
        got.push(Vec::new());
    }
    let mut ends = 0;
    while !scheduler.is_idle() {
        for event in block_on(scheduler.step()).unwrap() {
            let i = wanted.iter().position(|(id, _)| *id == event.id).unwrap();
            let want = &wanted[i].1[got[i].len()];
            assert_eq!(event.token, Some(want.token), "request {i}, token {}", got[i].len());
            assert_eq!(event.log_probability.is_some(), want.log_probability.is_some(), "request {i}");
            assert_eq!(event.most_likely.len(), want.most_likely.len(), "request {i}");
            got[i].push(want.clone());
            ends += usize::from(event.finished.is_some());
        }
    }
    assert_eq!(ends, 8);
    wanted.iter().zip(&got).for_each(|((id, want), got)| assert_eq!(got.len(), want.len(), "{id:?}"));
}

/// `GenerateOptions` alone reach all of them but for biases, log-probabilities and constraints.
#[test]
fn generate_and_best_of_take_penalties() {
    let decoder = decoder("gqa", "sampled-generate");
    let sampling = sampling(1);
    let options = GenerateOptions { max_new_tokens: 12, sampling, seed: 3 };
    let text = |session: &mut Session, prompt: &[u32]| {
        block_on(generate(session, prompt, options, |_| ControlFlow::Continue(()))).unwrap()
    };
    let mut own = session(&decoder, 4, 80);
    let want: Vec<u32> =
        alone(&decoder, PROMPTS[0], 12, Sampler::new(sampling, 3).unwrap()).iter().map(|drawn| drawn.token).collect();
    assert_eq!(text(&mut own, PROMPTS[0]), want);
    let without = GenerateOptions { sampling: Sampling { penalties: Penalties::default(), ..sampling }, ..options };
    let unpenalised = block_on(generate(&mut own, PROMPTS[0], without, |_| ControlFlow::Continue(()))).unwrap();
    assert_ne!(unpenalised, want);

    let sequence = own.insert();
    let best = BestOfOptions { samples: 1, generate: options, ..Default::default() };
    let samples = block_on(best_of(&mut own, sequence, PROMPTS[0], best)).unwrap();
    let continued = block_on(continue_sequence(&mut own, sequence, PROMPTS[0], options, |_| ControlFlow::Continue(())));
    assert_eq!((samples[0].tokens.clone(), continued.unwrap()), (want.clone(), want));

    // A tiny top_k is greedy, and so is a guesser with it.
    let one = Sampling { top_k: 1, ..Sampling::new(1.3, 1.0) };
    let greedy = GenerateOptions { sampling: Sampling::default(), ..options };
    let [one, greedy] = [GenerateOptions { sampling: one, ..options }, greedy]
        .map(|options| block_on(generate(&mut own, PROMPTS[2], options, |_| ControlFlow::Continue(()))).unwrap());
    assert_eq!(one, greedy);
    let lookup = || Drafter::Lookup { max_ngram: 3, min_ngram: 1 };
    let cut = GenerateOptions { sampling: Sampling { top_k: 1, ..Sampling::new(1.3, 1.0) }, ..options };
    let guess = SpeculativeOptions { generate: cut, ..Default::default() };
    let guessed = block_on(generate_speculative(&mut own, lookup(), PROMPTS[2], guess, |_| ControlFlow::Continue(())));
    assert_eq!(guessed.unwrap().tokens, greedy);
    let guess = SpeculativeOptions { generate: options, ..guess };
    let refused = block_on(generate_speculative(&mut own, lookup(), PROMPTS[2], guess, |_| ControlFlow::Continue(())));
    assert!(message(refused).starts_with("penalties: repetition 1.3"));
}

/// Multiples of a number, so many of them; it fails at one of them.
#[derive(Debug)]
struct Multiples {
    of: u32,
    taken: usize,
    most: usize,
    fails_at: usize,
}

impl Constraint for Multiples {
    fn allow(&mut self, mask: &mut TokenMask) -> Result<()> {
        match self.taken == self.fails_at {
            true if self.of == 5 => panic!("the constraint of a test"),
            true if self.of == 7 => Ok(()), // none
            true => Err(Error::from(ErrorKind::Argument { name: "mine", why: "enough".into() })),
            false => {
                (0..mask.vocab() as u32).filter(|token| token % self.of == 0).for_each(|token| mask.allow(token));
                Ok(())
            }
        }
    }

    fn take(&mut self, token: u32) -> Result<()> {
        assert_eq!(token % self.of, 0, "what was not allowed");
        self.taken += 1;
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.taken == self.most
    }
}

#[test]
fn a_constraint_allows_what_it_says_and_ends_a_text() {
    let decoder = decoder("gqa", "sampled-constraint");
    let constrained = || sampler(1).with_constraint(Multiples { of: 3, taken: 0, most: 11, fails_at: 99 });
    let got = alone(&decoder, PROMPTS[0], 30, constrained());
    assert!(got.len() == 11 && got.iter().all(|drawn| drawn.token % 3 == 0), "{got:?}");
    let free: Vec<u32> = alone(&decoder, PROMPTS[0], 11, sampler(1)).iter().map(|drawn| drawn.token).collect();
    assert!(free.iter().any(|token| token % 3 != 0), "the constraint is for nothing: {free:?}");
    // The plain loop.
    let mut session = session(&decoder, 2, 40);
    let (sequence, mut own) = (session.insert(), [constrained()]);
    own[0].see(PROMPTS[0]);
    let mut input = PROMPTS[0].to_vec();
    for want in &got {
        let drawn = block_on(session.draw(&[(sequence, &input)], &mut own)).unwrap();
        assert_eq!(drawn[0], *want);
        input = vec![want.token];
    }
    // After the end it draws nothing, and says so.
    assert!(own[0].is_complete());
    let before = session.len(sequence).unwrap();
    let error = block_on(session.draw(&[(sequence, &input)], &mut own)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Grammar { .. }) && error.to_string().contains("complete"), "{error}");
    assert_eq!(session.len(sequence).unwrap(), before);
    // The scheduler.
    let mut scheduler = Scheduler::new(session);
    let mut request = request(0, 30);
    request.prompt = PROMPTS[0].to_vec();
    let id = scheduler.add_with(request, constrained()).unwrap();
    let mut all = All::default();
    all.steps(&mut scheduler, 100);
    let tokens: Vec<u32> = got.iter().map(|drawn| drawn.token).collect();
    assert_eq!(all.0[&id].tokens, tokens);
    assert!(matches!(all.0[&id].finished, Some(Finished::Complete)), "{:?}", all.0[&id]);
}

/// A constraint that fails, panics or allows nothing: its sequence is as before, and so are the others.
#[test]
fn a_constraint_that_fails_harms_nobody() {
    let decoder = decoder("gla", "sampled-fails");
    for of in [3, 5, 7] {
        let failing = || sampler(1).with_constraint(Multiples { of, taken: 0, most: 99, fails_at: 2 });
        let mut own = session(&decoder, 2, 40);
        let (a, b) = (own.insert(), own.insert());
        let mut both = [failing(), sampler(2)];
        let (mut first, mut second) = (PROMPTS[0].to_vec(), PROMPTS[1].to_vec());
        for _ in 0..2 {
            let drawn = block_on(own.draw(&[(a, &first), (b, &second)], &mut both)).unwrap();
            (first, second) = (vec![drawn[0].token], vec![drawn[1].token]);
        }
        let lengths = [own.len(a).unwrap(), own.len(b).unwrap()];
        for _ in 0..2 {
            let error = block_on(own.draw(&[(a, &first), (b, &second)], &mut both)).unwrap_err();
            let named = match of {
                3 => matches!(error.kind(), ErrorKind::Argument { name: "mine", .. }),
                _ => matches!(error.kind(), ErrorKind::Grammar { .. }),
            };
            assert!(named, "{error}");
            assert_eq!([own.len(a).unwrap(), own.len(b).unwrap()], lengths);
        }
        // Both go on without it.
        let mut others = [sampler(1), sampler(2)];
        block_on(own.draw(&[(a, &first), (b, &second)], &mut others)).unwrap();

        let mut scheduler = Scheduler::new(session(&decoder, 3, 60));
        let good = scheduler.add_with(request(4, 12), sampler(2)).unwrap();
        let bad = scheduler.add_with(request(5, 12), failing()).unwrap();
        let want: Vec<u32> = alone(&decoder, &request(4, 12).prompt, 12, sampler(2)).iter().map(|d| d.token).collect();
        let mut all = All::default();
        all.steps(&mut scheduler, 100);
        assert_eq!(all.0[&good].tokens, want);
        assert!(all.0[&bad].tokens.len() == 2, "{:?}", all.0[&bad]);
        match &all.0[&bad].finished {
            Some(Finished::Failed(error)) if of == 3 => {
                assert!(matches!(error.kind(), ErrorKind::Argument { name: "mine", .. }), "{error}");
            }
            Some(Finished::Failed(error)) => assert!(matches!(error.kind(), ErrorKind::Grammar { .. }), "{error}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(scheduler.session().stats().used, 0);
    }
}

/// Three dispatches for rows with more than temperature and nucleus, two for log-probabilities, and no others; and nothing is made
/// after the first steps.
#[test]
fn options_cost_what_they_say_and_only_where_they_are_on() {
    let gpu = gpu_with(GpuOptions::default());
    let folder = crate::tiny::Tiny::new("gqa", 5).write("sampled-counters");
    let decoder = Decoder::load(&gpu, folder.path(), latten::DType::F32).unwrap();
    let cost = |make: &dyn Fn() -> Vec<Sampler>| {
        let mut session = session(&decoder, 2, 60);
        let (ids, mut samplers) = ([session.insert(), session.insert()], make());
        let mut step = || {
            let batch = ids.map(|id| (id, &[9u32][..]));
            block_on(session.draw(&batch, &mut samplers)).unwrap();
        };
        (0..6).for_each(|_| step());
        let before = gpu.counters();
        (0..10).for_each(|_| step());
        let after = gpu.counters();
        assert_eq!((after.buffers, after.pipelines), (before.buffers, before.pipelines));
        assert_eq!(after.bind_groups, before.bind_groups);
        [after.dispatches - before.dispatches, after.submits - before.submits, after.readbacks - before.readbacks]
    };
    let of = |sampling: Sampling| Sampler::new(sampling, 1).unwrap();
    let plain = cost(&|| vec![of(sampling(0)), of(sampling(0))]);
    assert_eq!(plain[1..], [10, 10]);
    let with = |dispatches: u64| [plain[0] + 10 * dispatches, 10, 10];
    assert_eq!(cost(&|| vec![of(sampling(0)), of(sampling(2))]), with(3));
    // Nobody is left for the plain kernel.
    assert_eq!(cost(&|| vec![of(sampling(1)), of(sampling(2))]), with(2));
    assert_eq!(cost(&|| vec![of(sampling(0)).with_logprobs(5).unwrap(), of(sampling(0))]), with(2));
    // The draws of constrained rows are a submit of their own, behind that of the logits.
    let constrained = || of(sampling(0)).with_constraint(Multiples { of: 3, taken: 0, most: 99, fails_at: 99 });
    let [dispatches, submits, readbacks] = cost(&|| vec![constrained(), of(sampling(0))]);
    assert_eq!([dispatches, readbacks], [plain[0] + 30, 10]);
    assert!((20..=30).contains(&submits), "{submits} submits");
}

#[test]
fn what_samplers_cannot_do_is_refused() {
    let decoder = decoder("gqa", "sampled-refused");
    let mut session = session(&decoder, 2, 40);
    let id = session.insert();
    let batch: [(SeqId, &[u32]); 1] = [(id, &[1, 2])];
    let hot = Draw { sampling: sampling(1), u: 0.5 };
    assert_kind!(block_on(session.next_tokens(&batch, &[hot])), ErrorKind::Argument { name: "penalties", .. });
    // Cuts need no tokens.
    let cut = Draw { sampling: Sampling { top_k: 3, ..Sampling::new(1.0, 1.0) }, u: 0.5 };
    block_on(session.next_tokens(&batch, &[cut])).unwrap();
    assert_kind!(block_on(session.draw(&batch, &mut [])), ErrorKind::Shape { .. });
    assert_kind!(session.stream_with(&batch, Vec::new()).map(drop), ErrorKind::Shape { .. });
    let past = || Sampler::new(Sampling::default(), 0).unwrap().with_bias(&[(100_000, 1.0)]).unwrap();
    assert_kind!(block_on(session.draw(&batch, &mut [past()])), ErrorKind::Argument { name: "bias", .. });
    let mut scheduler = Scheduler::new(session);
    assert_kind!(scheduler.add_with(request(1, 4), past()), ErrorKind::Argument { name: "bias", .. });
    assert!(scheduler.is_idle());
}
