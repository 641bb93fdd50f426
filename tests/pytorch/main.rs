//! The trained example models against PyTorch: its f32 logits, and 200 greedy tokens.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, which clippy.toml does not reach

#[path = "../common/mod.rs"]
mod common;

use common::gpu;
use latten::model::{Decoder, Draw, Session, SessionOptions};
use latten::{DType, SeqId, Tier};
use pollster::block_on;
use serde::Deserialize;

/// `tests/vectors/logits_*.json`, written by `training/`.
#[derive(Deserialize)]
struct Vectors {
    prompts: Vec<Prompt>,
    greedy: Greedy,
}

#[derive(Deserialize)]
struct Prompt {
    tokens: Vec<u32>,
    /// Where logits were kept.
    positions: Vec<usize>,
    /// (positions, vocab)
    logits: Vec<Vec<f32>>,
}

#[derive(Deserialize)]
struct Greedy {
    prompt: Vec<u32>,
    tokens: Vec<u32>,
    /// Least distance of the first logit from the second.
    min_gap: f32,
}

/// Of logits of about 10. Where prompts are multiplied by cooperative matrices, each of 28 products (7 in each of 4 layers)
/// has its input rounded to f16, by 2^-12 on the mean: 10 * 2^-12 * sqrt(28) = 1.3e-2. Greedy tokens must not differ.
fn tolerance() -> f32 {
    if gpu().capabilities().tier == Tier::Matrix {
        2e-2
    } else {
        2e-3
    }
}

struct Model {
    decoder: Decoder,
    vectors: Vectors,
}

impl Model {
    fn load(variant: &str) -> Model {
        let root = env!("CARGO_MANIFEST_DIR");
        let json = std::fs::read_to_string(format!("{root}/tests/vectors/logits_{variant}.json")).unwrap();
        let decoder = Decoder::load(gpu(), format!("{root}/examples/models/{variant}"), DType::F16).unwrap();
        Model { decoder, vectors: serde_json::from_str(&json).unwrap() }
    }

    fn session(&self, max_batch: usize, chunk: usize) -> Session {
        let options =
            SessionOptions { max_batch, chunk, cache_tokens: 3000, kv_dtype: DType::F32, ..Default::default() };
        Session::new(&self.decoder, options).unwrap()
    }

    /// Greedy tokens after each prompt, all in one batch.
    fn greedy(&self, session: &mut Session, prompts: &[&[u32]]) -> Vec<Vec<u32>> {
        let ids: Vec<SeqId> = prompts.iter().map(|_| session.insert()).collect();
        let draws = vec![Draw::default(); prompts.len()];
        let mut made: Vec<Vec<u32>> = vec![Vec::new(); prompts.len()];
        for _ in 0..self.vectors.greedy.tokens.len() {
            let input = |i: usize| made[i].last().map_or(prompts[i], std::slice::from_ref);
            let batch: Vec<(SeqId, &[u32])> = ids.iter().enumerate().map(|(i, id)| (*id, input(i))).collect();
            let tokens = block_on(session.next_tokens(&batch, &draws)).unwrap();
            made.iter_mut().zip(tokens).for_each(|(made, token)| made.push(token));
        }
        made
    }

    fn check_logits(&self, variant: &str) {
        let vocab = self.decoder.config().vocab_size;
        let (tolerance, mut worst, mut compared) = (tolerance(), 0f32, 0);
        for prompt in &self.vectors.prompts {
            for chunk in [128, 7] {
                let mut session = self.session(1, chunk);
                let sequence = session.insert();
                let fed = block_on(session.all_logits(&[(sequence, &prompt.tokens)])).unwrap();
                for (&position, want) in prompt.positions.iter().zip(&prompt.logits) {
                    let got = &fed[0][position * vocab..][..vocab];
                    assert_eq!(got.len(), want.len());
                    for (token, (g, w)) in got.iter().zip(want).enumerate() {
                        let length = prompt.tokens.len();
                        let case =
                            format!("{variant}, {length} tokens in chunks of {chunk}, logit {token} at {position}");
                        assert!((g - w).abs() <= tolerance, "{case}: {g}, PyTorch has {w}");
                        worst = worst.max((g - w).abs());
                        compared += 1;
                    }
                }
            }
        }
        assert!(compared >= 10 * 2 * vocab, "only {compared} logits compared");
        println!("{variant}: {compared} logits, at most {worst:.1e} off");
    }

    fn check_greedy(&self, variant: &str) {
        let Greedy { prompt, tokens, min_gap } = &self.vectors.greedy;
        assert_eq!(tokens.len(), 200);
        // Logits are some 4e-5 off: twenty times nearer than the closest two that decide a token.
        assert!(*min_gap > 1e-3, "{variant}: a gap of {min_gap} decides nothing");
        let alone = self.greedy(&mut self.session(1, 128), &[prompt]);
        assert_eq!(&alone[0], tokens, "{variant}: prompt at once");
        assert_eq!(&self.greedy(&mut self.session(1, 3), &[prompt])[0], tokens, "{variant}: prompt in chunks of 3");
        let mut session = self.session(1, 128);
        let one_by_one = self.one_by_one(&mut session);
        assert_eq!(&one_by_one, tokens, "{variant}: one token at a time");
        let others: Vec<&[u32]> = self.vectors.prompts.iter().map(|p| &p.tokens[..]).collect();
        let batch = [others[1], prompt, others[0]];
        assert_eq!(&self.greedy(&mut self.session(3, 128), &batch)[1], tokens, "{variant}: batched");
    }

    fn one_by_one(&self, session: &mut Session) -> Vec<u32> {
        let sequence = session.insert();
        let Greedy { prompt, tokens, .. } = &self.vectors.greedy;
        let mut made = Vec::new();
        let mut input = prompt.clone();
        for i in 0..prompt.len() + tokens.len() - 1 {
            let fed = block_on(session.next_tokens(&[(sequence, &input[i..=i])], &[Draw::default()])).unwrap();
            if i + 1 >= prompt.len() {
                made.push(fed[0]);
                input.push(fed[0]);
            }
        }
        made
    }
}

macro_rules! variants {
    ($($variant:ident),*) => {$(
        mod $variant {
            #[test]
            fn logits_equal_pytorchs() {
                super::Model::load(stringify!($variant)).check_logits(stringify!($variant));
            }

            #[test]
            fn greedy_tokens_equal_pytorchs() {
                super::Model::load(stringify!($variant)).check_greedy(stringify!($variant));
            }
        }
    )*};
}
variants!(gqa, gta, gla, mla);
