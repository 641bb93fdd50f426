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
#[allow(dead_code)]
#[path = "../../examples/own_device.rs"]
mod own_device;
#[allow(dead_code)]
#[path = "../../examples/own_layer/main.rs"]
mod own_layer;
#[allow(dead_code)]
#[path = "../../examples/quickstart.rs"]
mod quickstart;
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

/// Outputs of about 1, through sums of some hundred f32s. Where products are made by cooperative matrices, these are f16's.
fn close(worst: f64) -> bool {
    let gpu = pollster::block_on(latten::Gpu::new()).unwrap();
    worst > 0.0 && worst < if gpu.capabilities().tier == latten::Tier::Matrix { 2e-2 } else { 2e-5 }
}

#[test]
fn layers_of_ones_own_agree_with_the_reference() {
    let [gqa, gla] = pollster::block_on(own_layer::run()).unwrap();
    assert!(close(gqa) && close(gla), "{gqa} {gla}");
}

#[test]
fn a_pass_of_ones_own_agrees_with_the_reference() {
    let worst = pollster::block_on(own_device::run()).unwrap();
    assert!(close(worst), "{worst}");
}

#[test]
fn the_quick_start_writes_the_text_of_generate() {
    use latten::model::{generate, Decoder, GenerateOptions, Session, SessionOptions};
    let (folder, prompt) = (checkout("examples/models/gla"), "ROMEO:\n");
    let mut text = Vec::new();
    pollster::block_on(quickstart::run(&folder, prompt, &mut text)).unwrap();
    let gpu = pollster::block_on(latten::Gpu::new()).unwrap();
    let decoder = Decoder::load(&gpu, folder, latten::DType::F16).unwrap();
    let mut session = Session::new(&decoder, SessionOptions::default()).unwrap();
    let tokens: Vec<u32> = prompt.bytes().map(u32::from).collect();
    let go_on = |_| std::ops::ControlFlow::Continue(());
    let want = pollster::block_on(generate(&mut session, &tokens, GenerateOptions::default(), go_on)).unwrap();
    let want: Vec<u8> = want.iter().map(|token| *token as u8).collect();
    assert_eq!(String::from_utf8_lossy(&text), String::from_utf8_lossy(&want));
}
