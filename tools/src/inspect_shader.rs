//! Prints the kernels as they are given to wgpu.
//!
//! ```text
//! cargo run -p latten-tools -- inspect_shader                   lists the variants
//! cargo run -p latten-tools -- inspect_shader decode gla-2 f16  prints the first whose name and label contain these words
//! cargo run -p latten-tools -- inspect_shader --annotated merge .. with each line's origin
//! ```

use std::error::Error;
use std::io::{ErrorKind, Write};

/// The kernels as they are given to wgpu: all names, or the text of one
#[derive(clap::Args)]
pub(crate) struct Args {
    /// With each line's origin
    #[arg(long)]
    annotated: bool,
    /// Of a kernel's name and label; the first that has them all is printed. Without words all are listed
    words: Vec<String>,
}

pub(crate) fn main(args: &Args) -> Result<(), String> {
    match print(args.annotated, &args.words) {
        // The reader (head, less) has seen enough.
        Err(e) if e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe) => Ok(()),
        result => result.map_err(|e| e.to_string()),
    }
}

fn print(annotated: bool, words: &[String]) -> Result<(), Box<dyn Error>> {
    let variants = latten::inspect::variants()?;
    let mut out = std::io::stdout().lock();
    let line = |v: &latten::inspect::Variant| format!("{} {}", v.name, v.label);
    if words.is_empty() {
        for v in &variants {
            writeln!(out, "{} ({} lines, {} workgroup bytes)", line(v), v.wgsl.lines().count(), v.workgroup_bytes)?;
        }
        return Ok(());
    }
    match variants.iter().find(|v| words.iter().all(|w| line(v).contains(w.as_str()))) {
        Some(v) => {
            writeln!(out, "// {}", line(v))?;
            out.write_all(if annotated { v.annotated.as_bytes() } else { v.wgsl.as_bytes() })?;
            Ok(())
        }
        None => Err(format!("no variant contains {words:?}; without words all are listed").into()),
    }
}
