//! A window that writes with a model, on the device that draws the window.
//!
//! `cargo run --release -p latten-desktop`: a model is chosen in the window. `--model FILE` takes one at once.
//!
//! The framework (eframe) makes the device; `device.rs` says what it is to ask for, and hands it to latten. A thread of its own reads
//! prompts and draws tokens (`engine.rs`) in steps that are short enough for frames between them (`pace.rs`).

mod app;
mod args;
mod device;
mod engine;
mod frames;
mod memory;
mod pace;
mod shipped;

use clap::Parser;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

fn main() -> ExitCode {
    let args = args::Args::parse();
    let report = Arc::new(Mutex::new(None));
    let given = report.clone();
    let start: eframe::AppCreator<'_> =
        Box::new(move |creation| Ok(Box::new(app::Window::new(creation, args, given)?)));
    if let Err(error) = eframe::run_native("latten", device::native_options(), start) {
        eprintln!("latten-desktop: {error}");
        return ExitCode::FAILURE;
    }
    let failed = report.lock().ok().and_then(|mut report| report.take());
    match failed {
        None => ExitCode::SUCCESS,
        Some(why) => {
            eprintln!("latten-desktop: {why}");
            ExitCode::FAILURE
        }
    }
}
