//! The f64 reference against the independent oracle's vectors, and the identities that attention must satisfy.
//! Needs no GPU. All names start with what they test: `vectors`, `blocks`, `identities`, `integers`, `pieces`, `options`, `sampling`, `malformed`.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy.toml allows them in #[test] functions; these are helpers"
)]

mod blocks;
mod identities;
mod integers;
mod malformed;
mod options;
mod pieces;
#[allow(dead_code)] // the part that the f64 reference needs
#[path = "../common/random.rs"]
mod random;
mod sampling;
#[path = "../common/vector.rs"]
mod vector;
mod vectors;

use std::path::PathBuf;

use vector::Vector;

/// Allowed gap, relative to 1 + |wanted|. Both sides compute in f64; the oracle sums exactly, the reference plainly, whose
/// rounding grows with the number of terms (below 200 here) times 2^-53 = 1.1e-16 times their size (below 100), and a score
/// passes it on through exp: about 2e-13 at the very worst (measured on the vectors: below 1e-15).
/// A wrong index or factor is off by 1e-3 and more.
const BOUND: f64 = 1e-12;

/// Fails where `got` and `want` differ in size, in where they are infinite, or by more than [`BOUND`].
fn assert_close(case: &str, got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{case}: number of elements");
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let close = got == want || (got - want).abs() <= BOUND * (1.0 + want.abs());
        assert!(close, "{case}: element {i} is {got}, wanted {want}");
    }
}

/// Every committed vector whose file name starts with `prefix`, in order of name; at least `at_least` of them.
fn vector_files(prefix: &str, at_least: usize) -> Vec<(String, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        if name.starts_with(prefix) && name.ends_with(".json") {
            files.push((name, std::fs::read(&path).unwrap()));
        }
    }
    assert!(files.len() >= at_least, "only {} files {prefix}*.json in {}", files.len(), folder.display());
    files.sort();
    files
}

/// The committed vectors, parsed.
fn vectors(prefix: &str, at_least: usize) -> Vec<(String, Vector)> {
    let parse = |(name, json): (String, Vec<u8>)| {
        let vector = Vector::parse(&json).unwrap_or_else(|error| panic!("{name}: {error}"));
        (name, vector)
    };
    vector_files(prefix, at_least).into_iter().map(parse).collect()
}
