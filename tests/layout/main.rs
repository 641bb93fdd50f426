//! Who may import whom: the rooms of `src/`, each of which may name itself and those listed beside it. ARCHITECTURE.md has the
//! same table in words. Tests within files, and files of tests, are free.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, which clippy.toml does not reach

mod names;
mod slots;

use std::fs;
use std::path::{Path, PathBuf};

/// A room, and the rooms that it may name. `error` and `sizes` are everyone's.
const MAY: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("sizes", &[]),
    ("io", &[]),
    ("rope", &[]),
    ("gpu", &["io"]),
    ("parallel", &[]),
    ("kv", &["gpu", "rope", "parallel"]),
    ("attention", &["kv", "gpu", "rope"]),
    ("cache", &["kv", "gpu", "rope", "io"]),
    ("nn", &["gpu", "rope", "kv"]),
    ("reference", &["kv", "rope"]),
    ("model/config", &["nn", "kv", "rope", "io", "parallel"]),
    ("model/weights", &["model/config", "nn", "cache", "gpu", "io"]),
    ("model/layers", &["model/weights", "model/config", "attention", "cache", "nn", "kv", "rope", "gpu", "parallel"]),
    ("model/decoder", &["model/layers", "model/weights", "model/config", "cache", "nn", "kv", "gpu", "io", "parallel"]),
    ("model/sampler", &["nn"]),
    (
        "model/session",
        &[
            "model/decoder",
            "model/layers",
            "model/config",
            "model/sampler",
            "attention",
            "cache",
            "nn",
            "kv",
            "rope",
            "gpu",
            "io",
            "parallel",
        ],
    ),
    ("model/text", &["io"]),
    ("model/grammar", &["model/sampler", "model/text"]),
    ("model/generate", &["model/session", "model/sampler", "model/text", "cache", "nn"]),
    ("model/chat", &["model/generate", "model/session", "model/sampler", "model/text", "cache", "nn"]),
    ("model/serve", &["model/generate", "model/session", "model/sampler", "model/text", "cache", "nn"]),
];

/// The room of a path of modules: its first part, or the first two in `model`.
fn room(modules: &[&str]) -> String {
    match modules {
        ["model", part, ..] if MAY.iter().any(|(room, _)| *room == format!("model/{part}")) => format!("model/{part}"),
        [first, ..] => (*first).into(),
        [] => String::new(),
    }
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        match entry.is_dir() {
            true => files(&entry, found),
            false if entry.extension().is_some_and(|e| e == "rs") => found.push(entry),
            false => {}
        }
    }
}

/// What a file names of this crate: paths that begin with `crate::` or `super::`, as whole paths of modules.
fn named(text: &str, own: &[&str]) -> Vec<String> {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or("");
    let lines = code.lines().map(str::trim_start).filter(|line| !line.starts_with("//"));
    let mut all = Vec::new();
    for line in lines {
        for word in line.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')) {
            let mut parts: Vec<&str> = word.split("::").filter(|part| !part.is_empty()).collect();
            let ups = parts.iter().take_while(|part| **part == "super").count();
            let path = match parts.first() {
                Some(&"crate") => parts.split_off(1),
                Some(&"super") if ups <= own.len() => [&own[..own.len() - ups], &parts[ups..]].concat(),
                _ => continue,
            };
            all.push(path.join("::"));
        }
    }
    all
}

#[test]
fn rooms_name_only_the_rooms_below_them() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&source, &mut all);
    assert!(all.len() > 100, "only {} files", all.len());
    let mut wrong = Vec::new();
    for file in all {
        let path = file.strip_prefix(&source).unwrap().with_extension("");
        let mut own: Vec<&str> = path.iter().map(|part| part.to_str().unwrap()).collect();
        if own.iter().any(|part| part.contains("test")) {
            continue;
        }
        own.retain(|part| *part != "mod");
        let here = room(&own);
        let Some((_, may)) = MAY.iter().find(|(name, _)| *name == here) else { continue }; // lib.rs and its like see all
        for path in named(&fs::read_to_string(&file).unwrap(), &own) {
            let there = room(&path.split("::").collect::<Vec<_>>());
            let known = MAY.iter().any(|(name, _)| *name == there);
            if known && there != here && there != "error" && there != "sizes" && !may.contains(&there.as_str()) {
                wrong.push(format!("{}: {here} may not name {path}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_have_at_most_400_lines() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&source, &mut all);
    for file in all {
        let name = file.strip_prefix(&source).unwrap().to_string_lossy().replace('\\', "/");
        let lines = fs::read_to_string(&file).unwrap().lines().count();
        assert!(name.contains("test") || lines <= 400, "{name}: {lines} lines, wanted at most 400");
    }
}
