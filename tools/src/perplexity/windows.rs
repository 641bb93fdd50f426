//! A text cut into windows that a model has positions for. Pure.

use std::ops::Range;

/// Tokens that are fed as one sequence. The logits after token `i` of the text are about token `i + 1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Window {
    /// What is fed.
    pub(crate) input: Range<usize>,
    /// From this token on the logits count; what is before is context, and counted by an earlier window.
    pub(crate) first: usize,
}

/// Windows of `window` inputs that begin `stride` tokens apart (at most a window), so that each of a text's tokens but the first is
/// predicted by one of them: the first window counts whole, each further one its last `stride` tokens. The last may be
/// shorter.
pub(crate) fn cut(tokens: usize, window: usize, stride: usize) -> Vec<Window> {
    let mut windows = Vec::new();
    let (mut start, mut first) = (0, 0);
    // The last token is fed to nobody: nothing after it is known.
    while first + 1 < tokens {
        let end = (start + window).min(tokens - 1);
        windows.push(Window { input: start..end, first });
        (start, first) = (start + stride, end);
    }
    windows
}
