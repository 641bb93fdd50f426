//! One sequence of a saved cache: its numbers. Pure.

use super::format::malformed;
use crate::error::SavedFault;
use std::ops::Range;

/// One sequence of a saved cache.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SavedSequence {
    /// Its committed tokens. The rows of all but those of `gap` are in the file.
    pub len: usize,
    /// Tokens of its sliding window, or 0 where it has none.
    pub window: usize,
    /// First tokens that it keeps beside the window, whole pages of them.
    pub keep_first: usize,
    /// Tokens whose rows its window has freed.
    pub gap: Range<usize>,
    /// Token ids, as the caller gave them or the cache knew them: none, or `len` and any number that are not cached yet.
    pub tokens: Vec<u32>,
}

impl SavedSequence {
    /// Tokens whose rows are in the file.
    pub(crate) fn rows(&self) -> usize {
        self.len.saturating_sub(self.gap.len())
    }

    /// What the file says, with `gone` one past the gap or 0: refused unless a window comes to it by itself.
    pub(crate) fn windowed(len: u64, [window, keep_first, gone]: [u64; 3]) -> Result<Self, SavedFault> {
        let number = |name, value: u64, most| {
            let number = usize::try_from(value).ok().filter(|_| value <= most);
            number.ok_or_else(|| malformed(name, value, "beyond all sequences"))
        };
        let most = u64::from(u32::MAX);
        let (len, keep_first, gone) = (
            number("sequence length", len, most)?,
            number("first tokens", keep_first, most)?,
            number("gap", gone, most)?,
        );
        let window = number("window", window, u64::MAX)?;
        if window == 0 && keep_first > 0 {
            return Err(malformed("first tokens", keep_first as u64, "not 0 without a window"));
        }
        // The next token sees none of the gap.
        let unseen = if window == 0 { 0 } else { len.saturating_add(1).saturating_sub(window) };
        let gap = match gone {
            0 => 0..0,
            end if keep_first < end && end <= unseen => keep_first..end,
            _ => return Err(malformed("gap", gone as u64, "not between the first tokens and the window")),
        };
        Ok(SavedSequence { len, window, keep_first, gap, tokens: Vec::new() })
    }
}
