//! A slot of the shaders is a folder, and whoever names one of its files may name any other: all define the same functions, with
//! the same parameters, and what only some define is nobody's but their own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Functions of one file by name: parameters and result, with widths left out (`array<vec4<f32>, 2>` and `vec2<u32>` are
/// `array<vec<f32>, _>` and `vec<u32>`), since a slot may be a choice of widths. Of an entry point only that it is there: its
/// builtins are the choice's own.
fn functions(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut rest = text;
    while let Some(at) = rest.find("\nfn ") {
        let (before, after) = (&rest[..at], &rest[at + 4..]);
        let (signature, _) = after.split_once('{').unwrap();
        let (name, parameters) = signature.split_once('(').unwrap();
        let entry = before.lines().last().is_some_and(|line| line.starts_with(concat!("@", "compute")));
        found.insert(name.into(), if entry { "entry point".into() } else { without_widths(parameters) });
        rest = after;
    }
    found
}

fn without_widths(parameters: &str) -> String {
    let mut text: String = parameters.split_whitespace().collect();
    for width in ["vec2<", "vec3<", "vec4<"] {
        text = text.replace(width, "vec<");
    }
    // The length of an array: what stands between the last comma and a closing bracket.
    let mut parts = text.split('>');
    let mut whole = parts.next().unwrap_or_default().to_string();
    for part in parts {
        if let Some((before, length)) = whole.rsplit_once(',') {
            if !length.is_empty() && length.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_') {
                whole = format!("{before},_");
            }
        }
        whole = format!("{whole}>{part}");
    }
    whole
}

fn shaders(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        match entry.is_dir() {
            true => shaders(&entry, found),
            false => found.push(entry),
        }
    }
}

/// `rope` is a slot without a room; the folders of the other rooms hold kernels.
fn is_slot(folder: &Path, root: &Path) -> bool {
    folder.strip_prefix(root).unwrap().components().count() == 2 || folder.ends_with("rope")
}

/// Does a text call this function?
fn calls(text: &str, function: &str) -> bool {
    text.match_indices(&format!("{function}("))
        .any(|(at, _)| !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') && !text[..at].ends_with("fn "))
}

#[test]
fn all_choices_of_a_slot_define_the_same_functions() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let mut all = Vec::new();
    shaders(&root, &mut all);
    let texts: BTreeMap<&Path, String> = all.iter().map(|f| (f.as_path(), fs::read_to_string(f).unwrap())).collect();
    let mut slots: BTreeMap<&Path, Vec<&Path>> = BTreeMap::new();
    for file in texts.keys() {
        let folder = file.parent().unwrap();
        if is_slot(folder, &root) {
            slots.entry(folder).or_default().push(file);
        }
    }
    assert!(slots.len() > 20, "only {} slots", slots.len());
    let mut wrong = Vec::new();
    for (slot, files) in &slots {
        let defined: Vec<_> = files.iter().map(|file| functions(&texts[file])).collect();
        assert!(files.len() > 1, "{} has one choice", slot.display());
        for (file, own) in files.iter().zip(&defined) {
            for (name, signature) in own {
                let elsewhere = defined.iter().filter(|other| other.get(name) == Some(signature)).count();
                let used = texts.iter().any(|(other, text)| other != file && calls(text, name));
                if elsewhere < files.len()
                    && (used || defined.iter().filter(|other| other.contains_key(name)).count() > 1)
                {
                    wrong.push(format!("{}: {name}({signature} is not in all of its siblings", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The table of `docs/design/slots.md` names each slot, all of its choices, and functions that all of them define.
#[test]
fn the_table_of_slots_is_complete() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/design/slots.md")).unwrap();
    let mut rows = BTreeMap::new();
    for line in page.lines().filter(|line| line.starts_with("| `shaders/")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        rows.insert(root.join(cells[1].trim_matches('`')).components().collect::<PathBuf>(), (cells[2], cells[3]));
    }
    let (mut all, mut wrong) = (Vec::new(), Vec::new());
    shaders(&root.join("shaders"), &mut all);
    let mut choices: BTreeMap<PathBuf, Vec<PathBuf>> = BTreeMap::new();
    for file in all.into_iter().filter(|file| is_slot(file.parent().unwrap(), &root.join("shaders"))) {
        choices.entry(file.parent().unwrap().into()).or_default().push(file);
    }
    for (slot, files) in &choices {
        let Some((named, called)) = rows.remove(slot) else {
            wrong.push(format!("{} is not in the table", slot.display()));
            continue;
        };
        let mut named: Vec<&str> = named.split(", ").collect();
        named.sort_unstable();
        let mut there: Vec<&str> = files.iter().map(|file| file.file_stem().unwrap().to_str().unwrap()).collect();
        there.sort_unstable();
        if named != there {
            wrong.push(format!("{}: the table has {named:?}, the folder {there:?}", slot.display()));
        }
        for file in files {
            let defined = functions(&fs::read_to_string(file).unwrap());
            for name in called.split('`').skip(1).step_by(2).filter(|name| !defined.contains_key(*name)) {
                wrong.push(format!("{} does not define {name}", file.display()));
            }
        }
    }
    wrong.extend(rows.keys().map(|slot| format!("{} is no slot", slot.display())));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Kernels of cooperative matrices, which a driver makes slower of functions (their heads have the figures): they may only shrink.
const LONG_MAINS: &[(&str, usize)] =
    &[("matrix_step/joint.wgsl", 211), ("matrix_step/own.wgsl", 200), ("linear_matrix.wgsl", 137)];

#[test]
fn mains_have_at_most_120_lines() {
    let mut all = Vec::new();
    shaders(&Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders"), &mut all);
    let mut long = Vec::new();
    for file in &all {
        let text = fs::read_to_string(file).unwrap();
        let Some((_, main)) = text.split_once("\nfn main(") else { continue };
        let lines = main.lines().position(|line| line == "}").unwrap() + 1;
        let most = LONG_MAINS.iter().find(|(name, _)| file.ends_with(name)).map_or(120, |(_, most)| *most);
        if lines > most {
            long.push(format!("{}: {lines} lines of main", file.display()));
        }
    }
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn widths_are_left_out_and_nothing_else() {
    let text = "\nfn f(raw: vec4<u32>) -> array<vec4<f32>, 2> {\n\nfn g(a: u32) {\n@ENTRY @workgroup_size(4)\nfn main(x: u32) {";
    // tests/shaders looks for WGSL in Rust by this word.
    let found = functions(&text.replace("ENTRY", "compute"));
    assert_eq!(found["f"], "raw:vec<u32>)->array<vec<f32>,_>");
    assert_eq!(found["g"], "a:u32)");
    assert_eq!(found["main"], "entry point");
}
