//! What the numbers of a weight are on the device.

use super::blocks::{BlockType, WORD};
use super::weight::float_parts;
use crate::error::{Error, ErrorKind, Result};
use crate::gpu::{Consts, DType, ShaderPart};
use std::fmt;
use std::str::FromStr;

/// What the numbers of a [`Weight`](super::Weight) are. Made of a [`DType`] or a [`BlockType`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WeightType {
    /// F32, F16, BF16, or I8, which has a scale for each row of a matrix.
    Plain(DType),
    /// Blocks, as files hold them.
    Blocks(BlockType),
}

impl From<DType> for WeightType {
    fn from(dtype: DType) -> Self {
        WeightType::Plain(dtype)
    }
}

impl From<BlockType> for WeightType {
    fn from(block: BlockType) -> Self {
        WeightType::Blocks(block)
    }
}

impl fmt::Display for WeightType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WeightType::Plain(dtype) => dtype.fmt(f),
            WeightType::Blocks(block) => block.fmt(f),
        }
    }
}

impl FromStr for WeightType {
    type Err = Error;

    /// From what it displays as: `f16`, `q4_k`.
    fn from_str(text: &str) -> Result<Self> {
        let dtype = text.parse::<DType>().ok().filter(|dtype| !matches!(dtype, DType::U32 | DType::I4));
        let found = dtype.map(WeightType::Plain).or_else(|| text.parse().ok().map(WeightType::Blocks));
        found.ok_or_else(|| {
            let blocks = BlockType::ALL.map(|block| block.to_string()).join(", ");
            ErrorKind::argument("weight type", format!("{text:?} is none of f32, f16, bf16, i8, {blocks}"))
        })
    }
}

impl WeightType {
    /// The block type, if it is one.
    pub fn blocks(self) -> Option<BlockType> {
        match self {
            WeightType::Plain(_) => None,
            WeightType::Blocks(block) => Some(block),
        }
    }

    /// Whether it is this dtype.
    pub(crate) fn is(self, dtype: DType) -> bool {
        self == WeightType::Plain(dtype)
    }

    /// Elements of a word, in which kernels read rows: of 16 bytes, or of 32 elements.
    pub(crate) fn per_word(self) -> usize {
        match self {
            WeightType::Plain(dtype) => dtype.per_vec4(),
            WeightType::Blocks(_) => WORD,
        }
    }

    /// Bytes of a word, in the larger plane of two.
    pub(crate) fn word_bytes(self) -> usize {
        self.blocks().map_or(16, BlockType::word_bytes)
    }

    /// Fails where rows of so many elements are no whole blocks.
    pub(crate) fn check_in_dim(self, shape: [usize; 3]) -> Result<()> {
        match self.blocks() {
            Some(block) if !shape[2].is_multiple_of(block.elements()) => {
                let want = format!("(_,_,a multiple of {}), the elements of a block of {block}", block.elements());
                Err(ErrorKind::shape("weight", &shape, want))
            }
            _ => Ok(()),
        }
    }

    /// The slots that load and unpack words, and scale the rows of a matrix; and their constants.
    pub(crate) fn parts(self) -> Result<(Vec<ShaderPart>, Consts)> {
        match self {
            WeightType::Plain(dtype) => Ok((float_parts(dtype)?.to_vec(), Vec::new())),
            WeightType::Blocks(block) => Ok(block.parts()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back() {
        let plain = [DType::F32, DType::F16, DType::BF16, DType::I8].map(WeightType::from);
        for kind in plain.into_iter().chain(BlockType::ALL.map(WeightType::from)) {
            assert_eq!(kind.to_string().parse::<WeightType>().unwrap(), kind);
        }
        for odd in ["u32", "i4", "q9", ""] {
            assert!(odd.parse::<WeightType>().unwrap_err().to_string().contains("q4_k"), "{odd}");
        }
    }
}
