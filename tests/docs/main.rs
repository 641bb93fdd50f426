//! The documents of the repository: their lengths, their links, and the paths and commands that they name. Needs no GPU.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, which clippy.toml does not reach

use std::fs;
use std::path::{Path, PathBuf};

/// Records keep the names of their day.
const RECORDS: &str = "benches/results/";
/// Folders of the repository whose paths, in backticks, must exist.
const ROOMS: [&str; 7] = ["src/", "shaders/", "tests/", "tools/", "examples/", "benches/", "docs/"];
/// Stand for a name in a path.
const PLACEHOLDERS: [&str; 4] = ["NAME", "DATE", "WORD", "VERSION"];
/// Characters of a line that is neither code nor of a table.
const LINE: usize = 150;

/// A document: its path from the root, with slashes, and its text.
struct Page {
    name: String,
    text: String,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every .md file, but for those of builds, packages and hidden folders.
fn pages() -> Vec<Page> {
    let mut found = Vec::new();
    collect(&root(), "", &mut found);
    assert!(found.len() > 20, "{} documents", found.len());
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

fn collect(folder: &Path, prefix: &str, found: &mut Vec<Page>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = entry.path();
        if path.is_dir() {
            if !name.starts_with('.') && name != "target" && name != "node_modules" {
                collect(&path, &format!("{prefix}{name}/"), found);
            }
        } else if name.ends_with(".md") {
            found.push(Page { name: format!("{prefix}{name}"), text: fs::read_to_string(&path).unwrap() });
        }
    }
}

/// Lines outside code blocks, with their numbers.
fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut code = false;
    let mut lines = Vec::new();
    for (i, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            code = !code;
        } else if !code {
            lines.push((i + 1, line));
        }
    }
    lines
}

/// What stands between backticks in a line.
fn spans(line: &str) -> Vec<&str> {
    line.split('`').skip(1).step_by(2).collect()
}

/// The line without what stands between backticks.
fn plain(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join("")
}

/// Targets of `[text](target)`.
fn links(line: &str) -> Vec<String> {
    let text = plain(line);
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    targets.map(|(target, _)| target.to_string()).collect()
}

/// The anchor that a heading gets.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars()
        .filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-' || *c == '_')
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

fn anchors(text: &str) -> Vec<String> {
    prose(text).iter().filter(|(_, line)| line.starts_with('#')).map(|(_, line)| anchor(line)).collect()
}

/// The words that follow `mark`, where they begin with a small letter: names of commands and programs.
fn words_after(text: &str, mark: &str) -> Vec<String> {
    let mut found = Vec::new();
    for rest in text.split(mark).skip(1) {
        let word: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_' || *c == '-').collect();
        if word.starts_with(|c: char| c.is_ascii_lowercase()) {
            found.push(word);
        }
    }
    found
}

fn no_faults(faults: &[String]) {
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn lengths() {
    let mut faults = Vec::new();
    for page in pages() {
        let most = match page.name.as_str() {
            "README.md" => 170,
            "ARCHITECTURE.md" => 220,
            "benches/RESULTS.md" => 60,
            name if name.starts_with("docs/design/") => 150,
            _ => continue,
        };
        let lines = page.text.lines().count();
        if lines > most {
            faults.push(format!("{}: {lines} lines, at most {most}", page.name));
        }
    }
    no_faults(&faults);
}

#[test]
fn lines_are_not_too_long() {
    let mut faults = Vec::new();
    for page in pages() {
        let ours = page.name.starts_with("docs/")
            || ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "benches/RESULTS.md"]
                .contains(&page.name.as_str());
        if !ours {
            continue;
        }
        for (number, line) in prose(&page.text) {
            let length = line.chars().count();
            if length > LINE && !line.starts_with('|') {
                faults.push(format!("{}:{number}: {length} characters, at most {LINE}", page.name));
            }
        }
    }
    no_faults(&faults);
}

#[test]
fn links_lead_somewhere() {
    let mut faults = Vec::new();
    for page in pages() {
        let here = root().join(&page.name);
        for (number, line) in prose(&page.text) {
            for link in links(line) {
                if link.contains("://") || link.starts_with("mailto:") {
                    continue;
                }
                let (file, heading) = link.split_once('#').unwrap_or((link.as_str(), ""));
                let target = if file.is_empty() { here.clone() } else { here.parent().unwrap().join(file) };
                if !target.exists() {
                    faults.push(format!("{}:{number}: {link} does not exist", page.name));
                } else if !heading.is_empty() {
                    let text = fs::read_to_string(&target).unwrap();
                    if !anchors(&text).contains(&heading.to_string()) {
                        faults.push(format!("{}:{number}: {link}: no such heading", page.name));
                    }
                }
            }
        }
    }
    no_faults(&faults);
}

#[test]
fn named_paths_exist() {
    let mut faults = Vec::new();
    for page in pages().iter().filter(|page| !page.name.starts_with(RECORDS)) {
        for (number, line) in prose(&page.text) {
            for span in spans(line) {
                let path = span.split(':').next().unwrap();
                let is_path = ROOMS.iter().any(|room| path.starts_with(room))
                    && path.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
                if !is_path || PLACEHOLDERS.iter().any(|word| path.contains(word)) {
                    continue;
                }
                if !root().join(path).exists() {
                    faults.push(format!("{}:{number}: {path} does not exist", page.name));
                }
            }
        }
    }
    no_faults(&faults);
}

/// Is there a program of this name in this folder?
fn program(folder: &str, name: &str) -> bool {
    let folder = root().join(folder);
    folder.join(format!("{name}.rs")).is_file() || folder.join(name).join("main.rs").is_file()
}

/// Is there a tool of this name?
fn tool(name: &str) -> bool {
    let folder = root().join("tools/src");
    folder.join(format!("{name}.rs")).is_file() || folder.join(name).join("mod.rs").is_file()
}

#[test]
fn named_commands_exist() {
    let dev = words_after(&fs::read_to_string(root().join("dev")).unwrap(), "\n./dev ");
    assert!(dev.contains(&"test".to_string()), "{dev:?}");
    let mut faults = Vec::new();
    for page in pages().iter().filter(|page| !page.name.starts_with(RECORDS)) {
        for word in words_after(&page.text, "./dev ") {
            if !dev.contains(&word) {
                faults.push(format!("{}: ./dev {word} does not exist", page.name));
            }
        }
        for (mark, folder) in [("--example ", "examples"), ("--bench ", "benches"), ("--test ", "tests")] {
            for name in words_after(&page.text, mark) {
                if !program(folder, &name) {
                    faults.push(format!("{}: {mark}{name} does not exist", page.name));
                }
            }
        }
        for name in words_after(&page.text, "-p latten-tools -- ") {
            if !tool(&name) {
                faults.push(format!("{}: no tool {name}", page.name));
            }
        }
        if page.name == "docs/examples.md" {
            for (number, line) in prose(&page.text) {
                let name = line.strip_prefix("| `").and_then(|rest| rest.split_once('`')).map_or("", |(name, _)| name);
                if !name.is_empty() && !name.contains(' ') && !program("examples", name) && !tool(name) {
                    faults.push(format!("{}:{number}: no example or tool {name}", page.name));
                }
            }
        }
    }
    no_faults(&faults);
}

#[test]
fn the_helpers_see_what_they_should() {
    assert_eq!(spans("a `b c` d `e`"), ["b c", "e"]);
    assert_eq!(links("see [`x`](a.md#b) and [y](../c) `[no](d)`"), ["a.md#b", "../c"]);
    assert_eq!(anchor("## How it's done, `fast`"), "how-its-done-fast");
    assert_eq!(
        words_after("./dev test --full and ./dev NAME, ./dev test-browser.", "./dev "),
        ["test", "test-browser"]
    );
    assert_eq!(prose("a\n```text\nb\n```\nc"), [(1, "a"), (5, "c")]);
    assert!(program("tests", "docs") && !program("tests", "no_such_test"));
    assert!(tool("save_speed") && tool("kernel_table") && !tool("no_such_tool"));
}

/// Lines of the documentation of each public function that returns a `Result`, with its declaration's line.
fn fallible(text: &str) -> Vec<(usize, &str, bool)> {
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap();
    let lines: Vec<&str> = code.lines().collect();
    let mut found = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let declared = line.trim_start();
        if !["pub fn ", "pub async fn ", "pub const fn "].iter().any(|word| declared.starts_with(word)) {
            continue;
        }
        let rest = lines[i..].iter().position(|line| line.ends_with('{')).map_or(lines.len(), |end| i + end + 1);
        if !lines[i..rest].concat().contains("-> Result<") {
            continue;
        }
        let above = lines[..i].iter().rev().map(|line| line.trim_start());
        let mut above = above.take_while(|line| line.starts_with("///") || line.starts_with("#["));
        found.push((i + 1, declared, above.any(|line| line == "/// # Errors")));
    }
    found
}

#[test]
fn fallible_functions_say_when_they_fail() {
    let mut sources = Vec::new();
    rust_files(&root().join("src"), &mut sources);
    let (mut faults, mut functions) = (Vec::new(), 0);
    for file in sources {
        let name = file.strip_prefix(root().join("src")).unwrap().to_string_lossy().replace('\\', "/");
        if name.contains("test") && name != "self_test.rs" {
            continue;
        }
        for (line, declared, says) in fallible(&fs::read_to_string(&file).unwrap()) {
            functions += 1;
            if !says {
                faults.push(format!("src/{name}:{line}: {declared}: no heading `# Errors`"));
            }
        }
    }
    assert!(functions > 200, "only {functions} functions");
    no_faults(&faults);
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        match path.is_dir() {
            true => rust_files(&path, found),
            false if path.extension().is_some_and(|end| end == "rs") => found.push(path),
            false => {}
        }
    }
}

#[test]
fn headings_are_found() {
    let text = "/// Good.\n///\n/// # Errors\n///\n/// Some.\n#[inline]\npub fn good(\n    x: u8,\n) -> Result<u8> {\n}\n\n/// Bad. Errors: some.\npub async fn bad() -> Result<()> {\n}\npub fn cannot_fail() {\n}\n";
    assert_eq!(fallible(text), [(7, "pub fn good(", true), (13, "pub async fn bad() -> Result<()> {", false)]);
}

/// Programs in the documents that are parts of files: a line "From `PATH`:" above the code.
#[test]
fn programs_are_those_of_their_files() {
    let (mut faults, mut programs) = (Vec::new(), 0);
    for page in pages() {
        for part in page.text.split("\nFrom `").skip(1) {
            let (path, rest) = part.split_once('`').unwrap();
            let code = rest.split_once("```").and_then(|(_, rest)| rest.split_once('\n')).map_or("", |(_, code)| code);
            let code = code.split("\n```").next().unwrap();
            programs += 1;
            if code.is_empty() || !fs::read_to_string(root().join(path)).unwrap().contains(code) {
                faults.push(format!("{}: its {programs}. program is not in {path}", page.name));
            }
        }
    }
    assert!(programs >= 3, "only {programs}");
    no_faults(&faults);
}
