//! The package of the crate, as `cargo package` makes it: what it leaves out is said to be missing where it is asked for.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, which clippy.toml does not reach

#[path = "../common/checkout.rs"]
mod checkout;

use checkout::repository;
use std::path::{Path, PathBuf};
use std::process::Command;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn cargo(folder: &Path, args: &[&str]) -> String {
    let program = std::env::var("CARGO").unwrap_or("cargo".into());
    let output = Command::new(program).current_dir(folder).args(args).output().unwrap();
    assert!(output.status.success(), "cargo {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Paths of the package's files.
fn packaged() -> Vec<String> {
    let list = cargo(Path::new(ROOT), &["package", "--list", "--allow-dirty", "--offline"]);
    list.lines().map(|line| line.replace('\\', "/")).collect()
}

/// The paths that Cargo.toml excludes, without the slash at their beginning.
fn excluded() -> Vec<String> {
    let toml = std::fs::read_to_string(format!("{ROOT}/Cargo.toml")).unwrap();
    let (_, list) = toml.split_once("\nexclude = [").unwrap();
    let list = list.split_once("\n]").unwrap().0;
    list.lines().filter_map(|line| Some(line.trim().strip_prefix("\"/")?.strip_suffix("\",")?.to_string())).collect()
}

/// The text without comments to the ends of lines.
fn code(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or_default().to_string() + "\n").collect()
}

/// Files that name what the package lacks, and do not ask `checkout` or `repository::here` for it, which say so.
fn silent(packaged: &[String], excluded: &[String], read: impl Fn(&str) -> String) -> Vec<String> {
    let sources = packaged.iter().filter(|path| path.ends_with(".rs") && !path.ends_with("/repository.rs"));
    let mut found = Vec::new();
    for path in sources {
        let code = code(&read(path));
        let names = excluded.iter().filter(|name| name.contains('/') && code.contains(*name));
        let says = code.contains("checkout(") || code.contains("repository::here");
        found.extend(names.filter(|_| !says).map(|name| format!("{path} names {name}")));
    }
    found
}

/// Whatever a packaged source includes is packaged.
fn lost(packaged: &[String], read: impl Fn(&str) -> String) -> Vec<String> {
    let mut found = Vec::new();
    for path in packaged.iter().filter(|path| path.ends_with(".rs")) {
        let folder = Path::new(path).parent().unwrap();
        for line in read(path).lines() {
            for mark in ["#[path = \"", "include_str!(\"", "include_bytes!(\""] {
                let Some(name) = line.split_once(mark).and_then(|(_, rest)| rest.split('"').next()) else { continue };
                let parts = folder.join(name);
                // Joined by hand: the folders that `..` passes need not exist.
                let whole = parts.components().fold(PathBuf::new(), |mut whole, part| {
                    if part.as_os_str() == ".." {
                        whole.pop()
                    } else {
                        whole.push(part);
                        true
                    };
                    whole
                });
                let whole = whole.to_string_lossy().replace('\\', "/");
                if !packaged.contains(&whole) {
                    found.push(format!("{path} includes {whole}"));
                }
            }
        }
    }
    found
}

#[test]
fn what_the_package_lacks_is_said_by_those_who_ask_for_it() {
    let (packaged, excluded) = (packaged(), excluded());
    assert!(packaged.len() > 200 && excluded.len() > 10, "{} files, {} excluded", packaged.len(), excluded.len());
    for name in ["examples/models", "tests/vectors"] {
        assert!(excluded.iter().any(|path| path == name), "{name} is not excluded");
        assert!(!packaged.iter().any(|path| path.starts_with(name)), "{name} is in the package");
    }
    let read = |path: &str| std::fs::read_to_string(format!("{ROOT}/{path}")).unwrap();
    assert_eq!(silent(&packaged, &excluded, read), Vec::<String>::new());
    assert_eq!(lost(&packaged, read), Vec::<String>::new());
    // Neither is silent by never finding anything.
    let one = ["tests/a.rs".to_string()];
    let text = |_: &str| "#[path = \"../examples/b.rs\"]\nlet f = \"examples/models/gla\"; // checkout(\n".to_string();
    assert_eq!(silent(&one, &excluded, text), ["tests/a.rs names examples/models"]);
    assert_eq!(lost(&one, text), ["tests/a.rs includes examples/b.rs"]);
}

#[test]
fn what_is_missing_is_named_with_where_to_get_it() {
    let message = repository::here("/no/where/examples/models/gla").unwrap_err();
    assert!(message.starts_with("/no/where/examples/models/gla is missing: examples/models is in latten's repository"));
    assert!(repository::here("/no/where/tests/vectors/kernel_gla_1.json").unwrap_err().contains("checkout"));
    // What is there, and what the user named.
    assert_eq!(repository::here(checkout::checkout("examples/models/gla")), Ok(()));
    assert_eq!(repository::here("/no/where/gla"), Ok(()));
}

/// Examples, tests and benchmarks of the package compile without the rest of the repository.
#[test]
#[ignore = "long: compiles everything once more, minutes"]
fn all_targets_of_the_package_compile() {
    cargo(Path::new(ROOT), &["package", "--no-verify", "--allow-dirty", "--offline"]);
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or(format!("{ROOT}/target"));
    let folder = PathBuf::from(&target).join("package/unpacked");
    drop(std::fs::remove_dir_all(&folder));
    std::fs::create_dir_all(&folder).unwrap();
    let name = concat!("latten-", env!("CARGO_PKG_VERSION"));
    let archive = format!("{target}/package/{name}.crate");
    assert!(Command::new("tar").args(["-xzf", &archive, "-C"]).arg(&folder).status().unwrap().success());
    cargo(&folder.join(name), &["check", "--all-targets", "--offline", "--target-dir", &target]);
    std::fs::remove_dir_all(&folder).unwrap();
}
