//! The tool `perplexity`: its numbers against those of tokens fed one by one.

use super::{checkout, complaint, parsed};
use crate::perplexity;
use latten::model::{Decoder, Session, SessionOptions};
use latten::{DType, Gpu};
use pollster::block_on;

fn held_out() -> Vec<u8> {
    std::fs::read(checkout("tests/vectors/held_out.txt")).unwrap()
}

fn run(args: &str) -> Result<(Vec<perplexity::Report>, String), String> {
    let (text, models) = (checkout("tests/vectors/held_out.txt"), checkout("examples/models"));
    let args = format!("{text} --models {models} {args}");
    let mut out = Vec::new();
    let reports = block_on(perplexity::run(&parsed(&args)?, &mut out))?;
    Ok((reports, String::from_utf8(out).unwrap()))
}

/// Bits of all bytes but the first, each from the logits after the context that the policy gives it, token by token: a
/// context begins at a multiple of the stride, as early as leaves the predicted byte within the window.
fn bits(variant: &str, text: &[u8], window: usize, stride: usize) -> f64 {
    let gpu = block_on(Gpu::new()).unwrap();
    let decoder = Decoder::load(&gpu, checkout(&format!("examples/models/{variant}")), DType::F32).unwrap();
    let options = SessionOptions { kv_dtype: DType::F32, ..Default::default() };
    let mut session = Session::new(&decoder, options).unwrap();
    let (mut bits, mut sequence, mut fed) = (0.0, session.insert(), 0..0);
    for target in 1..text.len() {
        let start = target.saturating_sub(window).div_ceil(stride) * stride;
        if start != fed.start {
            session.remove(sequence).unwrap();
            (sequence, fed) = (session.insert(), start..start);
        }
        let mut logits = Vec::new();
        for token in &text[fed.end..target] {
            let fed = block_on(session.logits(&[(sequence, &[u32::from(*token)])])).unwrap();
            logits = fed[0].iter().map(|l| f64::from(*l)).collect();
        }
        fed.end = target;
        let probability = logits[text[target] as usize].exp() / logits.iter().map(|l| l.exp()).sum::<f64>();
        bits -= probability.log2();
    }
    bits
}

#[test]
fn perplexity_is_that_of_tokens_fed_one_by_one() {
    let text = held_out();
    for (variant, count, window, stride, more) in [
        ("gla", 60, 16, 7, "--batch 3 --chunk 20"),
        ("gta", 34, 16, 16, "--batch 1 --chunk 7"),
        ("gqa", 30, 64, 64, "--prefill explicit"),
    ] {
        let args =
            format!("--variant {variant} --bytes {count} --window {window} --stride {stride} --dtype f32 {more}");
        let (reports, out) = run(&args).unwrap();
        let [report] = &reports[..] else { panic!("{out}") };
        let want = bits(variant, &text[..count], window, stride);
        assert!((report.bits - want).abs() < 1e-5 * want, "{args}: {} bits, wanted {want}", report.bits);
        assert_eq!((report.tokens, report.bytes), (count - 1, count - 1), "{args}");
        assert!(out.contains(&format!("{:.6}", want / (count - 1) as f64)[..6]), "{out}");
    }
}

/// Each token but the first is predicted once, with no less context than is promised.
#[test]
fn windows_of_perplexity_count_each_token_once() {
    for (tokens, window, stride) in
        [(2, 1, 1), (10, 8, 4), (33, 16, 16), (32, 16, 1), (100, 7, 3), (5, 64, 64), (18, 16, 16)]
    {
        let windows = perplexity::windows::cut(tokens, window, stride);
        let counted: Vec<usize> = windows.iter().flat_map(|w| w.first..w.input.end).collect();
        assert_eq!(counted, (0..tokens - 1).collect::<Vec<_>>(), "{tokens} {window} {stride}");
        for (i, w) in windows.iter().enumerate() {
            assert!(w.input.len() <= window && w.input.start == i * stride, "{w:?}");
            assert!(i == 0 || w.first - w.input.start >= window - stride, "{w:?}");
        }
    }
}

#[test]
fn perplexity_is_not_a_number_where_logits_are_none() {
    assert!((perplexity::code_length(&[1e4; 256], 7).unwrap() - 8.0).abs() < 1e-12);
    assert!((perplexity::code_length(&[-2e4, 0.0], 0).unwrap() - 2e4 / std::f64::consts::LN_2).abs() < 1e-6);
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(perplexity::code_length(&[0.0, odd, 1.0], 0), None, "{odd}");
    }
    assert_eq!(perplexity::code_length(&[0.0], 1), None);
}

#[test]
fn perplexity_says_what_is_wrong_with_its_arguments() {
    for (args, why) in [
        ("", "<TEXT_FILE>"),
        ("text --window 0", "invalid value '0' for '--window <N>': not a number"),
        ("text --stride", "a value is required for '--stride <N>'"),
        ("text --variant gla,rwkv", "[possible values: gqa, gta, gla, mla]"),
        ("text --variant gla --model x", "cannot be used with"),
        ("text --dtype i4", "[possible values: f16, f32, i8, q8_0, q4_0]"),
        ("text --kv-dtype u32", "[possible values: f32, f16, bf16, i8, i4]"),
        ("text --prefill implicit", "[possible values: absorbed, explicit, auto]"),
        ("text --batch 8 --chunk 7", "--chunk 7 is less than"),
        ("text more", "unexpected argument 'more'"),
        ("text --more", "unexpected argument '--more'"),
    ] {
        let message = complaint::<perplexity::Args>(args);
        assert!(message.contains(why), "{args}: {message}");
    }
    for (args, why) in [
        ("--window 1025", "--window 1025: "),
        ("--window 64 --stride 65", "--stride 65: more than the window of 64"),
        ("--bytes 1", "1 tokens, of which the first"),
        ("--bytes 40000", "--bytes 40000: "),
        ("--model no/such", "no/such"),
    ] {
        let message = run(args).unwrap_err();
        assert!(message.contains(why), "{args}: {message}");
    }
    let missing = parsed(&format!("no/such/text --models {}", checkout("examples/models"))).unwrap();
    assert!(block_on(perplexity::run(&missing, &mut Vec::new())).unwrap_err().contains("no/such/text: "));
}
