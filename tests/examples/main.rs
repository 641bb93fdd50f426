//! The examples as programs: what they accept, what they refuse, and with which exit code.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, which clippy.toml does not reach
#![allow(clippy::duplicate_mod)] // examples share files, and each is a program of its own

// Included rather than started: a test binary cannot know whether the example beside it is the present one.
#[allow(dead_code)]
#[path = "../../examples/chats.rs"]
mod chats;
#[allow(dead_code)] // its main
#[path = "../../examples/check_vector/main.rs"]
mod check_vector;
#[path = "../common/checkout.rs"]
mod checkout;
#[allow(dead_code)]
#[path = "../../examples/decode.rs"]
mod decode;
#[allow(dead_code)]
#[path = "../../examples/generate/main.rs"]
mod generate;
mod several;
mod texts;
mod vectors;

use checkout::checkout;

fn words(args: &str) -> impl Iterator<Item = String> + '_ {
    args.split_whitespace().map(str::to_string)
}

#[test]
fn decode_agrees_with_the_reference() {
    let worst = pollster::block_on(decode::run()).unwrap();
    assert!(worst < 2e-5, "{worst}");
}
