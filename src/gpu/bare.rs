//! WGSL without comments and indentation, which are a third of its bytes in a browser's .wasm. Pure, and done by the compiler.
#![cfg(any(test, target_arch = "wasm32"))]

/// Directives are comments that stay.
const DIRECTIVE: &[u8] = b"// unroll";

const fn begins(text: &[u8], at: usize, with: &[u8]) -> bool {
    let mut i = 0;
    while i < with.len() {
        if at + i >= text.len() || text[at + i] != with[i] {
            return false;
        }
        i += 1;
    }
    true
}

/// The next line's code from `at` on: its first byte, the byte behind its last, and where the line ends.
const fn code(text: &[u8], at: usize) -> (usize, usize, usize) {
    let mut first = at;
    while first < text.len() && text[first] == b' ' {
        first += 1;
    }
    let kept = begins(text, first, DIRECTIVE);
    let (mut last, mut end) = (first, first);
    let mut comment = false;
    while end < text.len() && text[end] != b'\n' {
        comment = comment || !kept && begins(text, end, b"//");
        end += 1;
        if !comment && text[end - 1] != b' ' {
            last = end;
        }
    }
    (first, last, end)
}

/// Bytes of [`bare`].
pub(crate) const fn bare_len(text: &str) -> usize {
    let text = text.as_bytes();
    let (mut at, mut len) = (0, 0);
    while at < text.len() {
        let (first, last, end) = code(text, at);
        len += last - first + 1;
        at = end + 1;
    }
    len
}

/// The text without comments and indentation; each line stays the line that it is.
pub(crate) const fn bare<const N: usize>(text: &str) -> [u8; N] {
    let text = text.as_bytes();
    let (mut out, mut at, mut len) = ([b'\n'; N], 0, 0);
    while at < text.len() {
        let (first, last, end) = code(text, at);
        let mut i = first;
        while i < last {
            out[len] = text[i];
            len += 1;
            i += 1;
        }
        len += 1;
        at = end + 1;
    }
    out
}

/// The text of [`bare`]'s bytes, which are UTF-8 as those of the whole text are.
pub(crate) const fn text_of(bytes: &[u8]) -> &str {
    match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(_) => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_indentation_go_and_lines_stay() {
        const TEXT: &str =
            "// head\nfn f() { // why\n\n    // unroll\n    for (;;) {   \n        a = b / c; // d // e\n    }\n}\n";
        const BARE: [u8; bare_len(TEXT)] = bare(TEXT);
        let bare = text_of(&BARE);
        assert_eq!(bare, "\nfn f() {\n\n// unroll\nfor (;;) {\na = b / c;\n}\n}\n");
        assert_eq!(bare.lines().count(), TEXT.lines().count());
    }

    /// Each line of each shader by another rule: what is before its comment, without the spaces around it.
    #[test]
    fn every_shader_keeps_its_code() {
        let mut seen = 0;
        let mut folders = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders"))];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let text = std::fs::read_to_string(&path).unwrap();
                let want = |line: &str| match line.trim() {
                    "// unroll" => "// unroll\n".to_string(),
                    _ => format!("{}\n", line.split("//").next().unwrap_or("").trim()),
                };
                let want: String = text.lines().map(want).collect();
                assert!(!want.contains("/*") && !want.contains(['\t', '\r']), "{}", path.display());
                let all: [u8; 1 << 16] = bare(&text);
                assert_eq!(bare_len(&text), want.len(), "{}", path.display());
                assert_eq!(text_of(&all[..want.len()]), want, "{}", path.display());
                seen += 1;
            }
        }
        assert!(seen > 50, "{seen} shaders");
    }
}
