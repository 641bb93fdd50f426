//! Grammars: what they allow, what comes out of a model by them, and what is refused. The feature `constrained`.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, which clippy.toml does not reach

#[path = "../common/mod.rs"]
mod common;
#[allow(dead_code)] // each test has its own use for it
#[path = "../model/tiny.rs"]
mod tiny;

use common::*;
use latten::model::{
    continue_with, Constraint, Decoder, Finished, GenerateOptions, Grammar, GrammarCompiler, Request, Sampler,
    Scheduler, Session, SessionOptions, TokenMask, Tokenizer,
};
use latten::nn::Sampling;
use latten::{DType, ErrorKind};
use pollster::block_on;
use serde_json::Value;
use std::ops::ControlFlow;

const SCHEMA: &str = r##"{
    "type": "object",
    "properties": {
        "name": { "type": "string", "maxLength": 6 },
        "age": { "type": "integer", "minimum": 3, "maximum": 120 },
        "kind": { "enum": ["cat", "dog", null] },
        "tags": { "type": "array", "items": { "$ref": "#/$defs/tag" }, "maxItems": 3 }
    },
    "required": ["name", "age", "kind", "tags"],
    "additionalProperties": false,
    "$defs": { "tag": { "type": "boolean" } }
}"##;

/// What [`SCHEMA`] says, in other words.
fn assert_fits(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let object = value.as_object().unwrap();
    assert_eq!(object.len(), 4, "{text}");
    assert!(object["name"].as_str().unwrap().chars().count() <= 6, "{text}");
    assert!((3..=120).contains(&object["age"].as_i64().unwrap()), "{text}");
    assert!(["cat", "dog"].contains(&object["kind"].as_str().unwrap_or("cat")), "{text}");
    let tags = object["tags"].as_array().unwrap();
    assert!(tags.len() <= 3 && tags.iter().all(Value::is_boolean), "{text}");
}

fn bytes(vocab: usize) -> GrammarCompiler {
    GrammarCompiler::new(&Tokenizer::bytes(), vocab).unwrap()
}

fn allowed(grammar: &mut Grammar, vocab: usize) -> Vec<u32> {
    let mut mask = TokenMask::none(vocab);
    grammar.allow(&mut mask).unwrap();
    (0..vocab as u32).filter(|token| mask.allows(*token)).collect()
}

/// A text that a grammar allows: a token of chance each time.
fn walk(mut grammar: Grammar, vocab: usize, rng: &mut Rng) -> Vec<u32> {
    let mut tokens = Vec::new();
    while !grammar.is_complete() {
        let next = allowed(&mut grammar, vocab);
        assert!(!next.is_empty() && tokens.len() < 5000, "{} tokens, then {next:?}", tokens.len());
        tokens.push(next[rng.below(next.len())]);
        grammar.take(tokens[tokens.len() - 1]).unwrap();
    }
    tokens
}

fn text(tokens: &[u32]) -> String {
    String::from_utf8(tokens.iter().map(|token| *token as u8).collect()).unwrap()
}

/// By hand: what may follow each beginning of a text.
#[test]
fn masks_are_the_bytes_that_may_follow() {
    let compiler = bytes(256);
    let same = [compiler.regex("(ab|ac)d{1,2}").unwrap(), compiler.lark("start: (\"ab\" | \"ac\") /d{1,2}/").unwrap()];
    for mut grammar in same {
        for (token, follows) in [("", "a"), ("a", "bc"), ("c", "d"), ("d", "d")] {
            token.bytes().for_each(|byte| grammar.take(byte.into()).unwrap());
            assert_eq!(text(&allowed(&mut grammar, 256)), follows, "after {token}");
            assert!(!grammar.is_complete());
        }
        grammar.take(b'd'.into()).unwrap();
        assert!(grammar.is_complete());
    }
    let mut word = compiler.regex("[α-ω]").unwrap();
    assert_eq!(allowed(&mut word, 256), [0xce, 0xcf]);
}

#[test]
fn texts_of_chance_fit_their_schema() {
    let (compiler, mut rng) = (bytes(300), Rng(5));
    let grammar = compiler.json_schema(SCHEMA).unwrap();
    let texts: Vec<String> = (0..40).map(|_| text(&walk(grammar.clone(), 300, &mut rng))).collect();
    texts.iter().for_each(|text| assert_fits(text));
    for part in ["null", "true", "[]", "\\"] {
        assert!(texts.iter().any(|text| text.contains(part)), "none of 40 has {part}");
    }
}

#[test]
fn what_cannot_be_compiled_is_a_typed_error() {
    let compiler = bytes(256);
    let refused = [
        compiler.json_schema("{").map(drop),
        compiler.json_schema(r#"{ "type": "nothing" }"#).map(drop),
        compiler.json_schema(r##"{ "$ref": "#/$defs/missing" }"##).map(drop),
        compiler.json_schema(r#"{ "$ref": "https://example.org/schema" }"#).map(drop),
        compiler.json_schema("7").map(drop),
        compiler.regex("(").map(drop),
        compiler.regex("(?=a)").map(drop),
        compiler.lark("start: missing").map(drop),
        compiler.lark("").map(drop),
        compiler.lark("start: \"a").map(drop),
    ];
    for (i, result) in refused.into_iter().enumerate() {
        let error = result.expect_err(&format!("number {i}"));
        assert!(matches!(error.kind(), ErrorKind::Grammar { why } if !why.is_empty()), "number {i}: {error}");
    }
    for vocab in [0, (1 << 24) + 1] {
        let error = GrammarCompiler::new(&Tokenizer::bytes(), vocab).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Argument { name: "vocab", .. }), "{error}");
    }
    // One of another vocabulary.
    let mut mask = TokenMask::none(257);
    let error = compiler.regex("a").unwrap().allow(&mut mask).unwrap_err();
    assert!(error.to_string().contains("256") && error.to_string().contains("257"), "{error}");
}

fn decoder() -> (Decoder, usize) {
    let model = tiny::Tiny::new("gqa", 5);
    let vocab = model.size("vocab_size");
    (Decoder::load(gpu(), model.write("constrained").path(), DType::F32).unwrap(), vocab)
}

fn session(decoder: &Decoder) -> Session {
    let options = SessionOptions { max_batch: 3, cache_tokens: 640, kv_dtype: DType::F32, ..Default::default() };
    Session::new(decoder, options).unwrap()
}

fn sampler(seed: u64) -> Sampler {
    Sampler::new(Sampling::new(1.0, 1.0), seed).unwrap()
}

/// Of a model of random weights, alone and among others; those that share its steps get what they get without it.
#[test]
fn a_model_writes_what_the_grammar_says() {
    let (decoder, vocab) = decoder();
    let compiler = GrammarCompiler::new(&Tokenizer::bytes(), vocab).unwrap();
    // Short, since the model's positions are few.
    let grammar = compiler.lark(r#"start: "{\"n\":" /[1-9][0-9]{0,3}/ ",\"b\":" ("true" | "false") "}""#).unwrap();
    let prompt: Vec<u32> = "ab".bytes().map(u32::from).collect();
    let mut alone = Vec::new();
    for seed in 0..3 {
        let mut own = session(&decoder);
        let (sequence, mut sampler) = (own.insert(), sampler(seed).with_constraint(grammar.clone()));
        let ask = continue_with(&mut own, sequence, &prompt, 38, &mut sampler, |_| ControlFlow::Continue(()));
        let tokens = block_on(ask).unwrap();
        let value: Value = serde_json::from_str(&text(&tokens)).unwrap();
        assert!(value["n"].is_u64() && value["b"].is_boolean(), "{value}");
        assert!(sampler.is_complete());
        alone.push(tokens);
    }
    let request = |max_new_tokens| Request {
        prompt: prompt.clone(),
        generate: GenerateOptions { max_new_tokens, ..Default::default() },
        ..Default::default()
    };
    let mut scheduler = Scheduler::new(session(&decoder));
    let mut ids = Vec::new();
    for seed in 0..3 {
        let sampler = sampler(seed).with_constraint(grammar.clone());
        ids.push(scheduler.add_with(request(38), sampler).unwrap());
    }
    let free = scheduler.add(request(9)).unwrap();
    let mut got = vec![Vec::new(); 4];
    block_on(scheduler.run(|event| {
        let place = ids.iter().position(|id| *id == event.id).unwrap_or(3);
        got[place].extend(event.token);
        if let Some(finished) = event.finished {
            let right = if event.id == free {
                matches!(finished, Finished::Length)
            } else {
                matches!(finished, Finished::Complete)
            };
            assert!(right, "{place}: {finished:?}");
        }
        ControlFlow::Continue(())
    }))
    .unwrap();
    assert_eq!(got[..3], alone);
    assert_eq!(got[3].len(), 9);
}

/// A grammar of words that the model has no token for.
#[test]
fn a_grammar_that_no_token_continues_harms_nobody() {
    let (decoder, vocab) = decoder();
    // Tokens below 100 are all that this tokenizer would have.
    let compiler = GrammarCompiler::new(&Tokenizer::bytes(), vocab).unwrap();
    let mut own = session(&decoder);
    let sequence = own.insert();
    let stuck = compiler.regex("AB").unwrap();
    let mut samplers = [sampler(1).with_constraint(Few(stuck, 66))];
    let input: Vec<u32> = vec![70, 71];
    let first = block_on(own.draw(&[(sequence, &input)], &mut samplers)).unwrap();
    assert_eq!(first[0].token, 65);
    let error = block_on(own.draw(&[(sequence, &[65])], &mut samplers)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Grammar { .. }), "{error}");
    assert_eq!(own.len(sequence).unwrap(), 2);
    block_on(own.draw(&[(sequence, &[65])], &mut [sampler(1)])).unwrap();
}

/// A grammar, of tokens below a number.
#[derive(Debug)]
struct Few(Grammar, u32);

impl Constraint for Few {
    fn allow(&mut self, mask: &mut TokenMask) -> latten::Result<()> {
        let mut all = TokenMask::none(mask.vocab());
        self.0.allow(&mut all)?;
        (0..self.1).filter(|token| all.allows(*token)).for_each(|token| mask.allow(token));
        Ok(())
    }

    fn take(&mut self, token: u32) -> latten::Result<()> {
        self.0.take(token)
    }

    fn is_complete(&self) -> bool {
        self.0.is_complete()
    }
}

/// Tokens of several bytes, and one that ends a text.
#[cfg(feature = "tokenizers")]
#[test]
fn words_of_a_published_tokenizer_make_the_text() {
    const END: u32 = 262;
    let folder = tiny::Folder::new("constrained-words");
    let vectors: Value =
        serde_json::from_slice(&std::fs::read(checkout::checkout("tests/vectors/tokenizers/byte_level.json")).unwrap())
            .unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), vectors.to_string()).unwrap();
    std::fs::write(folder.path().join("config.json"), r#"{ "eos_token_id": 262 }"#).unwrap();
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    assert_eq!(tokenizer.end_tokens(), [END]);
    let (vocab, mut rng) = (300, Rng(8));
    let compiler = GrammarCompiler::new(&tokenizer, vocab).unwrap();
    let grammar = compiler.json_schema(SCHEMA).unwrap();
    let mut long = 0;
    for _ in 0..20 {
        let tokens = walk(grammar.clone(), vocab, &mut rng);
        let bytes: Vec<Vec<u8>> = tokens.iter().map(|token| tokenizer.token_bytes(*token)).collect();
        long += bytes.iter().filter(|bytes| bytes.len() > 1).count();
        assert_fits(&String::from_utf8(bytes.concat()).unwrap());
    }
    assert!(long > 0, "no token of several bytes was allowed");
    // Where a text may end or go on, the end is among what is allowed, and it ends it.
    let mut word = compiler.regex("a+").unwrap();
    let a = (0..vocab as u32).find(|token| tokenizer.token_bytes(*token) == b"a").unwrap();
    assert!(!allowed(&mut word, vocab).contains(&END));
    word.take(a).unwrap();
    assert!(allowed(&mut word, vocab).contains(&END) && !word.is_complete());
    word.take(END).unwrap();
    assert!(word.is_complete());
}
