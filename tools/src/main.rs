//! Programs that measure latten and check models. They are for those who work on latten, and not part of its package.
//!
//! `cargo run --release -p latten-tools -- --help` lists them, `.. -- kernel_table --help` the options of one.

mod common;
mod inspect_shader;
mod kernel_table;
mod linear_table;
mod load_speed;
mod logits;
mod perplexity;
mod prefill_table;
mod save_speed;
mod shard_table;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, which clippy.toml does not reach
mod tests;

use clap::{CommandFactory, Parser, Subcommand};
use common::arguments::Checked;
use std::process::ExitCode;

/// Programs that measure latten and check models.
#[derive(Parser)]
#[command(name = "latten-tools")]
struct Cli {
    #[command(subcommand)]
    tool: Tool,
}

#[derive(Subcommand)]
#[command(rename_all = "snake_case")]
enum Tool {
    InspectShader(inspect_shader::Args),
    KernelTable(kernel_table::Args),
    LinearTable(linear_table::Args),
    LoadSpeed(load_speed::Args),
    Logits(logits::Args),
    Perplexity(perplexity::Args),
    PrefillTable(prefill_table::Args),
    SaveSpeed(save_speed::Args),
    ShardTable(shard_table::Args),
}

/// Runs a tool, and says which.
fn run(tool: Tool) -> (&'static str, Result<(), String>) {
    match tool {
        Tool::InspectShader(args) => ("inspect_shader", inspect_shader::main(&args)),
        Tool::KernelTable(args) => ("kernel_table", kernel_table::main(&checked("kernel_table", args))),
        Tool::LinearTable(args) => ("linear_table", linear_table::main(args)),
        Tool::LoadSpeed(args) => ("load_speed", load_speed::main(&args)),
        Tool::Logits(args) => ("logits", logits::main(&checked("logits", args))),
        Tool::Perplexity(args) => ("perplexity", perplexity::main(&checked("perplexity", args))),
        Tool::PrefillTable(args) => ("prefill_table", prefill_table::main(&checked("prefill_table", args))),
        Tool::SaveSpeed(args) => ("save_speed", save_speed::main(&args)),
        Tool::ShardTable(args) => ("shard_table", shard_table::main(&checked("shard_table", args))),
    }
}

/// The arguments, if they go together; else the program ends as clap ends it.
fn checked<A: Checked>(name: &str, args: A) -> A {
    if let Err(why) = args.check() {
        let mut command = Cli::command();
        command.build();
        if let Some(command) = command.find_subcommand_mut(name) {
            command.error(clap::error::ErrorKind::ArgumentConflict, why).exit();
        }
    }
    args
}

fn main() -> ExitCode {
    common::warnings::print_warnings();
    match run(Cli::parse().tool) {
        (_, Ok(())) => ExitCode::SUCCESS,
        (name, Err(message)) => {
            eprintln!("{name}: {message}");
            ExitCode::FAILURE
        }
    }
}
