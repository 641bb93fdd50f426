//! A word names one thing: no two files of `src/` define a type of the same name. Files and modules of tests are free.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Names that two files may have: the reference has its own copy of what it checks, and shares no code with it.
const ALLOWED: &[(&str, [&str; 2])] =
    &[("Rope", ["reference/rope.rs", "rope/angles.rs"]), ("RopePairs", ["reference/rope.rs", "rope/angles.rs"])];

/// The structs, enums, unions, traits and type aliases that a file defines, outside its tests. What an `impl` says of its trait's
/// types is no alias.
fn types(text: &str) -> BTreeSet<&str> {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or("");
    code.lines().filter_map(|line| type_of(line.trim_start(), line.starts_with(' '))).collect()
}

/// The name of the type whose definition begins in this line.
fn type_of(line: &str, indented: bool) -> Option<&str> {
    let mut rest = line;
    if let Some(after) = rest.strip_prefix("pub") {
        rest = match after.strip_prefix('(') {
            Some(scope) => scope.split_once(')')?.1.trim_start(),
            None => after.strip_prefix(' ')?,
        };
    }
    let (keyword, rest) = rest.strip_prefix("unsafe ").unwrap_or(rest).split_once(' ')?;
    match keyword {
        "struct" | "enum" | "union" | "trait" => {}
        "type" if !indented => {}
        _ => return None,
    }
    let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
    // A macro's `struct $name` has none; nor has `union` where it is a variable.
    Some(&rest[..end]).filter(|name| name.starts_with(|c: char| c.is_alphabetic()))
}

/// The names that more than one file defines, and those files.
fn doubles<'a>(files: &[(String, &'a str)]) -> BTreeMap<&'a str, BTreeSet<String>> {
    let mut all: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (file, text) in files {
        for name in types(text) {
            all.entry(name).or_default().insert(file.clone());
        }
    }
    all.retain(|_, files| files.len() > 1);
    all
}

#[test]
fn a_word_names_one_type() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths: Vec<PathBuf> = Vec::new();
    super::files(&source, &mut paths);
    let read = |path: &PathBuf| {
        let name = path.strip_prefix(&source).unwrap().to_string_lossy().replace('\\', "/");
        (name, fs::read_to_string(path).unwrap())
    };
    let all: Vec<(String, String)> = paths.iter().map(read).filter(|(name, _)| !of_tests(name)).collect();
    let all: Vec<(String, &str)> = all.iter().map(|(name, text)| (name.clone(), text.as_str())).collect();
    let defined: usize = all.iter().map(|(_, text)| types(text).len()).sum();
    assert!(defined > 200, "only {defined} types");

    let found = doubles(&all);
    let allowed: BTreeMap<&str, BTreeSet<String>> =
        ALLOWED.iter().map(|(name, files)| (*name, files.iter().map(|file| (*file).into()).collect())).collect();
    assert_eq!(found, allowed, "left: names of types that two files define; right: those that may be");
}

/// Whether a file is of tests: `x_tests.rs`, or in a folder `tests`.
fn of_tests(file: &str) -> bool {
    file.ends_with("_tests.rs") || file.split('/').any(|part| part == "tests" || part == "tests.rs")
}

#[test]
fn definitions_are_found() {
    let text = "#[cfg(test)]\nmod more_tests;\nstruct A;\npub struct B<'a> {\npub(crate) enum C {\n    pub(super) trait D: E {\npub(in crate::x) type F = u8;\n    \
                type G = u8;\n// struct H\n        struct $name {\nlet structure = I;\n#[cfg(test)]\nmod tests {\n    struct J;\n}\n";
    assert_eq!(types(text).into_iter().collect::<Vec<_>>(), ["A", "B", "C", "D", "F"]);
    let files = [("a.rs".to_string(), "struct A;\nstruct B;"), ("b.rs".to_string(), "type A = u8;\nenum C {}")];
    let both = BTreeSet::from(["a.rs".to_string(), "b.rs".to_string()]);
    assert_eq!(doubles(&files), BTreeMap::from([("A", both)]));
}

#[test]
fn files_of_tests_are_free() {
    for file in ["self_test_tests.rs", "cache/table/tests/world.rs", "gpu/tests.rs"] {
        assert!(of_tests(file), "{file}");
    }
    for file in ["self_test.rs", "model/latest.rs"] {
        assert!(!of_tests(file), "{file}");
    }
}
