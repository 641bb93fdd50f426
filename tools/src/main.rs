//! Programs that measure latten and check models. They are for those who work on latten, and not part of the package.
//!
//! `cargo run --release -p latten-tools -- kernel_table --list`
#![allow(clippy::print_stdout)]

mod common;
mod inspect_shader;
mod kernel_table;
mod linear_table;
mod load_speed;
mod logits;
mod perplexity;
mod prefill_table;
mod save_speed;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, which clippy.toml does not reach
mod tests;

use std::process::ExitCode;

const USAGE: &str = "usage: latten-tools inspect_shader|kernel_table|linear_table|load_speed|logits|perplexity|prefill_table|save_speed ..";

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("inspect_shader") => return inspect_shader::main().unwrap_or(ExitCode::FAILURE),
        Some("kernel_table") => kernel_table::main(),
        Some("linear_table") => linear_table::main(),
        Some("load_speed") => return load_speed::main(),
        Some("logits") => return logits::main(),
        Some("perplexity") => return perplexity::main(),
        Some("prefill_table") => prefill_table::main(),
        Some("save_speed") => return save_speed::main(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
