//! Shader assembly: a block of constants, then parts, concatenated into one WGSL text.
//!
//! Two mechanisms and one directive make every variant from one text per algorithm:
//! constants (numbers, printed here, which are also the pipeline-cache key), slots (two parts that define the same
//! function; the caller names one), and `// unroll`: a `for` loop with that comment on the line above it and a bound
//! that is a literal or one of the constants is written out, one block per step. WGSL has no unroll attribute, and
//! wgpu adds a counter to every loop to bound it, which keeps drivers from unrolling and so from holding arrays in
//! registers. Each file is valid WGSL with or without the directive.

use super::Tier;
use std::fmt::Write as _;

/// One shader file under `shaders/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ShaderPart {
    pub(crate) name: &'static str,
    pub(crate) text: &'static str,
    /// What its text uses. `tests/shaders` validates each kernel with its tier's capabilities alone.
    pub(crate) tier: Tier,
}

/// A file's text. A browser's .wasm has it bare.
#[cfg(not(target_arch = "wasm32"))]
macro_rules! text {
    ($path:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $path))
    };
}
#[cfg(target_arch = "wasm32")]
macro_rules! text {
    ($path:literal) => {{
        const TEXT: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $path));
        const BYTES: [u8; $crate::gpu::bare::bare_len(TEXT)] = $crate::gpu::bare::bare(TEXT);
        const BARE: &str = $crate::gpu::bare::text_of(&BYTES);
        BARE
    }};
}
pub(crate) use text;

/// A [`ShaderPart`] from its path under `shaders/`, and the tier that it needs where that is not [`Tier::Portable`].
macro_rules! part {
    ($path:literal) => {
        $crate::gpu::shader::part!($path, Portable)
    };
    ($path:literal, $tier:ident) => {
        $crate::gpu::shader::ShaderPart {
            name: $path,
            text: $crate::gpu::shader::text!($path),
            tier: $crate::gpu::Tier::$tier,
        }
    };
    // Of kernels that no browser can run: its .wasm is without their texts.
    ($path:literal, $tier:ident, native) => {
        $crate::gpu::shader::ShaderPart {
            text: if cfg!(target_arch = "wasm32") { "" } else { $crate::gpu::shader::part!($path, $tier).text },
            ..$crate::gpu::shader::part!($path, $tier)
        }
    };
}
pub(crate) use part;

/// The constants of a variant, in order of printing.
pub(crate) type Consts = Vec<(&'static str, Const)>;

/// One constant's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Const {
    U32(u32),
    /// A language extension: printed as `enable NAME;`, so it comes before all others.
    Enable,
    /// The bits of an f32, so that constants can be compared and hashed; see [`Const::f32`].
    F32(u32),
    /// A type: printed as `alias NAME = type;`.
    Alias(&'static str),
}

impl Const {
    /// A finite f32, printed so that it reads back as the same bits.
    pub(crate) fn f32(value: f32) -> Self {
        Const::F32(value.to_bits())
    }
}

/// Shorthand for a u32 constant from a host size.
pub(crate) fn number(value: usize) -> Const {
    Const::U32(u32::try_from(value).unwrap_or(u32::MAX))
}

/// Assembled WGSL, and where each of its lines came from.
pub(crate) struct Assembled {
    pub(crate) text: String,
    /// `(file, line)` of each line of `text`.
    lines: Vec<(&'static str, usize)>,
}

pub(crate) fn assemble(consts: &Consts, parts: &[ShaderPart]) -> Assembled {
    let mut out = Assembled { text: String::new(), lines: Vec::new() };
    for (i, (name, value)) in consts.iter().enumerate() {
        let line = match value {
            Const::U32(v) => format!("const {name} = {v}u;"),
            Const::Enable => format!("enable {name};"),
            Const::F32(bits) => format!("const {name} = {:?}f;", f32::from_bits(*bits)),
            Const::Alias(ty) => format!("alias {name} = {ty};"),
        };
        out.push(&line, ("constants", i + 1));
    }
    for part in parts {
        let lines: Vec<(usize, &str)> = part.text.lines().enumerate().map(|(i, l)| (i + 1, l)).collect();
        unroll(&lines, consts, part.name, &mut out);
    }
    out
}

impl Assembled {
    fn push(&mut self, line: &str, origin: (&'static str, usize)) {
        self.text.push_str(line);
        self.text.push('\n');
        self.lines.push(origin);
    }

    /// A compiler message with `wgsl:LINE:COLUMN` and ` at line N` turned into `file:line`.
    pub(crate) fn locate(&self, message: &str) -> String {
        let mut text = message.to_string();
        let found = message.lines().find_map(|l| {
            let rest = l.split_once("wgsl:")?.1;
            rest.split(':').next()?.trim().parse::<usize>().ok()
        });
        if let Some((file, line)) = found.and_then(|n| self.lines.get(n.wrapping_sub(1))) {
            let _ = write!(text, "\n  in shaders/{file}:{line}");
        }
        text
    }

    /// The text with each line's origin in a comment, for people.
    pub(crate) fn annotated(&self) -> String {
        let mut out = String::new();
        for (line, (file, number)) in self.text.lines().zip(&self.lines) {
            let _ = writeln!(out, "{line:<110} // {file}:{number}");
        }
        out
    }
}

/// Copies lines, writing out each loop under an `// unroll` comment (loops inside it too).
fn unroll(lines: &[(usize, &str)], consts: &Consts, file: &'static str, out: &mut Assembled) {
    let mut i = 0;
    while i < lines.len() {
        let (number, line) = lines[i];
        let header = (line.trim() == "// unroll").then(|| lines.get(i + 1)).flatten();
        let Some((variable, steps)) = header.and_then(|(_, l)| loop_header(l, consts)) else {
            out.push(line, (file, number));
            i += 1;
            continue;
        };
        let body_first = i + 2;
        let body_last = closing_brace(lines, i + 1);
        for step in 0..steps {
            out.push(&format!("{{ const {variable} = {step}u;"), (file, lines[i + 1].0));
            unroll(&lines[body_first..body_last], consts, file, out);
            out.push("}", (file, lines[body_last.min(lines.len() - 1)].0));
        }
        i = body_last + 1;
    }
}

/// `for (var r = 0u; r < ROWS; r++) {` -> ("r", value of ROWS).
fn loop_header<'a>(line: &'a str, consts: &Consts) -> Option<(&'a str, u32)> {
    let rest = line.trim().strip_prefix("for (var ")?;
    let (variable, rest) = rest.split_once(" = 0u; ")?;
    let rest = rest.strip_prefix(variable)?.strip_prefix(" < ")?;
    let (bound, rest) = rest.split_once("; ")?;
    if rest != format!("{variable}++) {{") {
        return None;
    }
    let literal = bound.strip_suffix('u').and_then(|n| n.parse().ok());
    let named = || match consts.iter().find(|(n, _)| *n == bound)?.1 {
        Const::U32(v) => Some(v),
        Const::F32(_) | Const::Alias(_) | Const::Enable => None,
    };
    Some((variable, literal.or_else(named)?))
}

/// The line whose brace closes the block opened at the end of line `open`.
fn closing_brace(lines: &[(usize, &str)], open: usize) -> usize {
    let mut depth = 0i32;
    for (i, (_, line)) in lines.iter().enumerate().skip(open) {
        let code = line.split("//").next().unwrap_or("");
        depth += code.matches('{').count() as i32 - code.matches('}').count() as i32;
        if depth == 0 {
            return i;
        }
    }
    lines.len() - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const NESTED: ShaderPart = ShaderPart {
        tier: Tier::Portable,
        name: "nested.wgsl",
        text: "fn f() {\n    // unroll\n    for (var r = 0u; r < ROWS; r++) {\n        a[r] = 1.0;\n        // unroll\n        for (var v = 0u; v < 2u; v++) {\n            b[r][v] = a[r];\n        }\n    }\n    let x = 1;\n}\n",
    };

    #[test]
    fn unrolls_nested_loops_and_keeps_the_line_map() {
        let got = assemble(&vec![("ROWS", Const::U32(3))], &[NESTED]);
        assert_eq!(got.text.matches("a[r] = 1.0;").count(), 3);
        assert_eq!(got.text.matches("b[r][v] = a[r];").count(), 6);
        assert!(!got.text.contains("for ("));
        let at = got.text.lines().position(|l| l.contains("let x")).unwrap();
        assert_eq!(got.lines[at], ("nested.wgsl", 10));
        assert!(got.locate(&format!("error: bad\n  ┌─ wgsl:{}:9", at + 1)).ends_with("shaders/nested.wgsl:10"));
    }

    #[test]
    fn a_loop_without_the_directive_or_with_a_runtime_bound_stays() {
        let plain = ShaderPart {
            tier: Tier::Portable,
            name: "p",
            text: "// unroll\nfor (var i = 0u; i < n; i++) {\n}\nfor (var i = 0u; i < 4u; i++) {\n}\n",
        };
        assert_eq!(assemble(&vec![], &[plain]).text.matches("for (").count(), 2);
    }

    #[test]
    fn zero_steps_leave_nothing() {
        let got = assemble(&vec![("ROWS", Const::U32(0))], &[NESTED]);
        assert!(!got.text.contains("a[r]"));
        assert!(got.text.contains("let x = 1;"));
    }
}
