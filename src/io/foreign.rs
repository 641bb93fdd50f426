//! What a file or folder is that is not what was wanted, for people who have a model in another form.

use crate::error::{Error, ErrorKind};
use std::path::Path;

/// What latten reads, for messages.
const READS: &str =
    "latten reads GGUF files, and folders with config.json and model.safetensors (or model.safetensors.index.json with the \
                     files that it names), as transformers' save_pretrained writes them";

const INDEX: &str = "model.safetensors.index.json";

/// What begins like this and is no safetensors file and no JSON, if it is known.
pub(crate) fn kind_of(start: &[u8]) -> Option<String> {
    let start = start.get(..1024).unwrap_or(start);
    let words = String::from_utf8_lossy(start);
    let words = words.trim_start_matches('\u{feff}').trim_start();
    let lower = words.to_ascii_lowercase();
    if words.starts_with("version https://git-lfs") {
        let bytes = words.lines().find_map(|line| line.strip_prefix("size ")).unwrap_or("an unknown number of");
        return Some(format!(
            "it is a Git LFS pointer to a file of {bytes} bytes, not that file: fetch it with `git lfs pull`"
        ));
    }
    let what = if ["<!doctype", "<html", "<head", "<?xml"].iter().any(|tag| lower.starts_with(tag)) {
        "it is an HTML page, as a failed download leaves it: download the file again"
    } else if start.starts_with(b"GGUF") {
        "it is a GGUF file"
    } else if start.starts_with(b"PK\x03\x04") || matches!(start, [0x80, 2..=5, ..]) {
        "it is a file of PyTorch's (pickled), which latten does not read"
    } else if start.starts_with(b"\x89HDF") {
        "it is an HDF5 file, which latten does not read"
    } else if start.starts_with(&[0x1f, 0x8b]) {
        "it is compressed by gzip: unpack it first"
    } else if start.starts_with(b"lattenKV") {
        "it is a saved cache"
    } else {
        let text = std::str::from_utf8(start).ok().map(str::trim);
        let text = text.filter(|t| !t.is_empty() && !t.contains(|c: char| c.is_control() && !c.is_whitespace()));
        return text.map(|text| format!("it is the text {:?}", text.chars().take(60).collect::<String>()));
    };
    Some(what.into())
}

/// What of a name in a folder tells of another form of models.
fn form_of(name: &str) -> Option<&'static str> {
    let lower = name.to_ascii_lowercase();
    let ends = |end: &str| lower.ends_with(end);
    if ends(".gguf") {
        Some("a GGUF file, which is opened by its own name")
    } else if lower.starts_with("adapter_") {
        Some("part of a LoRA adapter: merge it into its model first")
    } else if lower == "params.json" || lower.starts_with("consolidated.") {
        Some("a model as its authors publish it, with names of their own")
    } else if lower.starts_with("pytorch_model") || ends(".pth") || ends(".pt") || ends(".bin") {
        Some("a file of PyTorch's (pickled), which latten does not read")
    } else if ends(".h5") || ends(".msgpack") || ends(".onnx") || ends(".ot") || ends(".mlmodel") {
        Some("weights of another library")
    } else if ends(".safetensors") {
        Some("a safetensors file that no model.safetensors.index.json names")
    } else {
        None
    }
}

/// The error of a file of a model's folder that could not be opened: it says what the folder has in its place.
pub(crate) fn missing(file: &Path, error: std::io::Error) -> Error {
    let folder = file.parent().unwrap_or(Path::new("."));
    let indexed = folder.join(INDEX).exists();
    let message = match indexed && file.extension().is_some_and(|end| end == "safetensors") {
        true => format!("{error}; {INDEX} names this file"),
        false => format!("{error}; {}{READS}", found_in(folder, indexed)),
    };
    Error::from(ErrorKind::Io { path: file.display().to_string(), message }).caused_by(error)
}

fn found_in(folder: &Path, indexed: bool) -> String {
    if folder.is_file() {
        let start = std::fs::File::open(folder).and_then(|file| {
            let mut start = Vec::new();
            std::io::Read::read_to_end(&mut std::io::Read::take(file, 1024), &mut start).map(|_| start)
        });
        let kind = start.ok().and_then(|start| kind_of(&start)).map_or(String::new(), |kind| format!(" ({kind})"));
        return format!("{} is a file, not a folder{kind}; ", folder.display());
    }
    let Ok(entries) = std::fs::read_dir(folder) else { return String::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    // Of many such files the first by name: what is at hand says it best.
    let names = names.filter(|name| !(indexed && name.ends_with(".safetensors")));
    let forms = names.filter_map(|name| form_of(&name).map(|form| (name, form)));
    forms.min().map_or(String::new(), |(name, form)| format!("the folder has {name}, {form}; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_named() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 988097824\n";
        for (start, want) in [
            (&pointer[..], "a Git LFS pointer to a file of 988097824 bytes"),
            (b"\n<!DOCTYPE html>\n<html>", "an HTML page"),
            (b"<HTML><body>", "an HTML page"),
            (b"GGUF\x03\0\0\0", "a GGUF file"),
            (b"PK\x03\x04\0\0\x08\x08", "PyTorch"),
            (b"\x80\x02\x8a\x0al\xfc", "PyTorch"),
            (b"\x1f\x8b\x08\0", "gzip"),
            (b"lattenKV\x01\0\0\0", "a saved cache"),
            (b"Entry not found", "the text \"Entry not found\""),
        ] {
            assert!(kind_of(start).is_some_and(|kind| kind.contains(want)), "{start:?}: {:?}", kind_of(start));
        }
        for start in [&b""[..], b" \n", b"\x10\0\0\0\0\0\0\0", b"\xff\xfe\0"] {
            assert_eq!(kind_of(start), None, "{start:?}");
        }
    }
}
