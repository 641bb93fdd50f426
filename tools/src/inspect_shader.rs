//! Prints the kernels as they are given to wgpu.
//!
//! ```text
//! cargo run -p latten-tools -- inspect_shader                   lists the variants
//! cargo run -p latten-tools -- inspect_shader decode gla-2 f16  prints the first whose name and label contain these words
//! cargo run -p latten-tools -- inspect_shader --annotated merge .. with each line's origin
//! ```

use std::error::Error;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

pub(crate) fn main() -> Result<ExitCode, Box<dyn Error>> {
    let (flags, words): (Vec<String>, Vec<String>) = std::env::args().skip(2).partition(|a| a.starts_with("--"));
    if let Some(flag) = flags.iter().find(|f| *f != "--annotated") {
        eprintln!("unknown option {flag}; usage: inspect_shader [--annotated] [words of a name and label]");
        return Ok(ExitCode::FAILURE);
    }
    match print(!flags.is_empty(), &words) {
        // The reader (head, less) has seen enough.
        Err(e) if e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe) => {
            Ok(ExitCode::SUCCESS)
        }
        result => result,
    }
}

fn print(annotated: bool, words: &[String]) -> Result<ExitCode, Box<dyn Error>> {
    let variants = latten::inspect::variants()?;
    let mut out = std::io::stdout().lock();
    let line = |v: &latten::inspect::Variant| format!("{} {}", v.name, v.label);
    if words.is_empty() {
        for v in &variants {
            writeln!(out, "{} ({} lines, {} workgroup bytes)", line(v), v.wgsl.lines().count(), v.workgroup_bytes)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    match variants.iter().find(|v| words.iter().all(|w| line(v).contains(w.as_str()))) {
        Some(v) => {
            writeln!(out, "// {}", line(v))?;
            out.write_all(if annotated { v.annotated.as_bytes() } else { v.wgsl.as_bytes() })?;
            Ok(ExitCode::SUCCESS)
        }
        None => {
            eprintln!("no variant contains {words:?}; without words all are listed");
            Ok(ExitCode::FAILURE)
        }
    }
}
