//! Any numbers to the public API: an error or a thing that works, never a panic, nor a request for memory that no one has.
//!
//! Each case is a few calls with numbers that mostly fit each other, so that they reach what lies behind the checks, and now
//! and then are 0, off by one, or at the end of 32 or 64 bits. On wgpu's noop device, which validates and computes nothing.
//! A failure prints its seed; `LATTEN_FUZZ_SEED=<seed>` runs that case alone and prints its numbers and calls,
//! `LATTEN_FUZZ_FIRST=<seed>` begins elsewhere. Overflow checks should be on, as in `./dev test`.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, which clippy.toml does not reach

#[path = "../common/mod.rs"]
mod common;
mod device;
mod gguf;
mod known;
mod memory;
mod models;
mod nn;
mod numbers;
mod plans;
mod pure;
mod references;
mod tables;
#[allow(dead_code)] // of the models' f64 side
#[path = "../model/tiny.rs"]
mod tiny;
#[path = "../common/gguf.rs"]
mod written;

use device::World;
use numbers::{Gen, Tally};
use std::cell::RefCell;
use std::panic::{catch_unwind, AssertUnwindSafe};

/// Cases of one world: parameter blocks, which a `Gpu` keeps, stay few.
const CASES_OF_A_WORLD: u64 = 100_000;
/// Failures that are enough.
const MOST_FAILURES: usize = 20;

thread_local! {
    /// Message and place of the last panic, of a thread that runs cases.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

fn one(g: &mut Gen, world: &World) {
    match g.below(1000) {
        0..=9 => models::case(g, world),
        10..=249 => nn::case(g, world),
        250..=349 => plans::case(g, world),
        350..=449 => device::case(g, world),
        450..=599 => tables::case(g),
        600..=799 => references::case(g),
        _ => pure::case(g),
    }
}

/// Runs cases and returns what they came to, and what failed.
fn run(cases: u64) -> (Tally, Vec<String>) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (only, first) = (number("LATTEN_FUZZ_SEED"), number("LATTEN_FUZZ_FIRST").unwrap_or(0));
    let (seeds, trace) = (only.map_or(first..first + cases, |seed| seed..seed + 1), only.is_some());
    PANIC.set(Some(String::new()));
    let others = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| match PANIC.with_borrow(Option::is_some) {
        true => PANIC.set(Some(info.to_string())),
        false => others(info),
    }));
    let (mut g, mut failures) = (Gen::new(trace), Vec::new());
    let mut world = World::new();
    for seed in seeds {
        if seed % 1_000_000 == 0 {
            println!("case {seed}, {} failures so far", failures.len());
        }
        if seed % CASES_OF_A_WORLD == CASES_OF_A_WORLD - 1 {
            world = World::new();
        }
        memory::begin(seed);
        g.begin(seed);
        let done = catch_unwind(AssertUnwindSafe(|| one(&mut g, &world)));
        if done.is_err() {
            failures.push(format!("case {seed}: {}", PANIC.with_borrow(|panic| panic.clone().unwrap_or_default())));
            world = World::new();
        }
        if let Some(bytes) = memory::too_much() {
            failures.push(format!("case {seed}: asked for {bytes} bytes at once"));
        }
        if failures.len() >= MOST_FAILURES {
            break;
        }
    }
    PANIC.set(None);
    (g.tally, failures)
}

fn check(cases: u64) {
    let (tally, failures) = run(cases);
    println!("{tally}");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    if std::env::var_os("LATTEN_FUZZ_SEED").is_none() {
        tally.check();
    }
}

#[test]
fn any_numbers() {
    check(100_000);
}

#[test]
#[ignore = "long: half an hour"]
fn any_numbers_of_ten_million_cases() {
    check(10_000_000);
}
