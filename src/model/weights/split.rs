//! A matrix that is more than the device binds at once: several products, each of some of its rows.

use crate::error::Result;
use crate::gpu::Capabilities;
use crate::nn::{Linear, LinearArgs, WeightType};
use std::ops::Range;

/// One linear, or several whose outputs lie one behind the other. An output is the same, to the bit, however many there
/// are: its sum is formed by itself, in an order that does not hang on the other rows of the matrix.
pub(crate) struct Split {
    parts: Vec<Linear>,
}

impl Split {
    pub(crate) fn new(parts: Vec<Linear>) -> Self {
        Split { parts }
    }

    /// The same with something fused with each.
    pub(crate) fn map(self, fuse: impl Fn(Linear) -> Result<Linear>) -> Result<Self> {
        Ok(Split { parts: self.parts.into_iter().map(fuse).collect::<Result<_>>()? })
    }

    /// The same with something beside the first alone.
    pub(crate) fn map_first(mut self, fuse: impl FnOnce(Linear) -> Result<Linear>) -> Result<Self> {
        if !self.parts.is_empty() {
            let first = fuse(self.parts.remove(0))?;
            self.parts.insert(0, first);
        }
        Ok(self)
    }

    /// The linear, if it is one.
    pub(crate) fn whole(&self) -> Option<&Linear> {
        self.parts.first().filter(|_| self.parts.len() == 1)
    }

    /// Inputs of a row.
    pub(crate) fn in_dim(&self) -> usize {
        self.parts.first().map_or(0, |part| part.weight().in_dim())
    }

    #[cfg(test)]
    pub(super) fn weights(&self) -> impl Iterator<Item = &crate::nn::Weight> {
        self.parts.iter().map(Linear::weight)
    }

    /// [`Linear::run`] of each part. A rest is that of the first.
    pub(crate) fn run(&self, args: LinearArgs<'_>) -> Result<()> {
        let mut next = args;
        for part in &self.parts {
            part.run(next)?;
            next = LinearArgs { y: next.y.offset(next.y.offset.saturating_add(part.outputs())), rest: None, ..next };
        }
        Ok(())
    }

    /// [`Linear::prepare`].
    pub(crate) fn prepare(&self, rows: usize) -> Result<()> {
        self.parts.iter().try_for_each(|part| part.prepare(rows))
    }
}

/// Rows of a part are a multiple of this where there is room, so that few tiles of rows are cut.
const TILE: usize = 64;

/// The runs of `count` outputs, of so many rows of `in_dim` each, that one binding holds: one where all fit; as few as can be,
/// about equal, where not. One too where not even an output fits, which is an error later.
pub(crate) fn runs(
    capabilities: &Capabilities,
    count: usize,
    rows: usize,
    in_dim: usize,
    kind: impl Into<WeightType>,
) -> Vec<Range<usize>> {
    let kind = kind.into();
    let one = capabilities.max_binding_bytes.min(capabilities.max_buffer_bytes);
    let row_bytes = (kind.word_bytes() * in_dim.div_ceil(kind.per_word())) as u64;
    let most = usize::try_from(one / row_bytes.saturating_mul(rows as u64).max(1)).unwrap_or(usize::MAX);
    if count <= most || most == 0 {
        return std::iter::once(0..count).collect();
    }
    let step = count.div_ceil(count.div_ceil(most)).next_multiple_of(TILE).min(most);
    (0..count).step_by(step).map(|first| first..count.min(first.saturating_add(step))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{DType, Gpu};

    #[test]
    fn runs_are_few_and_fit() {
        let gpu = pollster::block_on(Gpu::new()).expect("a GPU adapter, software ones count");
        let with = |max_binding_bytes| Capabilities {
            max_binding_bytes,
            max_buffer_bytes: 1 << 40,
            ..gpu.capabilities().clone()
        };
        // Qwen2.5-0.5B by size.
        let parts = runs(&with(128 << 20), 151_936, 1, 896, DType::F16);
        assert_eq!(parts.iter().map(Range::len).collect::<Vec<_>>(), [50_688, 50_688, 50_560]);
        for bytes in [16 * 7, 1000, 1 << 12, 1 << 20] {
            for (count, rows, in_dim, dtype) in
                [(1, 1, 1, DType::F32), (257, 1, 20, DType::F16), (999, 2, 50, DType::I8)]
            {
                let parts = runs(&with(bytes), count, rows, in_dim, dtype);
                let output = (16 * in_dim.div_ceil(dtype.per_vec4()) * rows) as u64;
                assert_eq!(parts.iter().cloned().flatten().collect::<Vec<_>>(), (0..count).collect::<Vec<_>>());
                let fit = parts.iter().all(|part| part.len() as u64 * output <= bytes);
                assert!(fit || (output > bytes && parts.len() == 1), "{bytes} {count}: {parts:?}");
                let least = (count as u64).div_ceil((bytes / output).max(1));
                assert!(parts.len() as u64 == least || bytes < output, "{bytes} {count}: {parts:?}, not {least}");
            }
        }
    }
}
