//! The block types that are read, as numbers: those of GGUF files, and of AWQ's and GPTQ's groups.
#![warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use crate::error::{Error, ErrorKind, Result};
use std::fmt;
use std::str::FromStr;

/// How a run of weights is quantised together: a block of [`BlockType::elements`] in [`BlockType::bytes`]. Layouts and names are
/// those of GGUF files, but of the last two types, which are this crate's; what a block stands for is [`reference::dequantised`](crate::reference::dequantised).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[allow(non_camel_case_types)] // the names that files and users know
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
pub enum BlockType {
    /// 4 bits and a scale: `d (q - 8)`.
    Q4_0,
    /// 4 bits, a scale and an offset: `d q + m`.
    Q4_1,
    /// 5 bits and a scale: `d (q - 16)`.
    Q5_0,
    /// 5 bits, a scale and an offset: `d q + m`.
    Q5_1,
    /// 8 bits and a scale: `d q`.
    Q8_0,
    /// 2 bits; 16 runs with scales and offsets of 4 bits.
    Q2_K,
    /// 3 bits; 16 runs with scales of 6 bits.
    Q3_K,
    /// 4 bits; 8 runs with scales and offsets of 6 bits.
    Q4_K,
    /// 5 bits; 8 runs with scales and offsets of 6 bits.
    Q5_K,
    /// 6 bits; 16 runs with scales of 8 bits.
    Q6_K,
    /// 4 bits that index a table of 16 values, and a scale.
    IQ4_NL,
    /// The same in 8 runs with scales of 6 bits.
    IQ4_XS,
    /// 4-bit floats and a power of two: the microscaling format of OCP.
    MXFP4,
    /// 4 bits, an f16 scale and a whole zero, as AWQ and GPTQ have them: `d (q - z)`, exactly. A block is d, z in a byte, a byte
    /// that says nothing, and the integers as in [`BlockType::Q4_0`]. Groups of 32 elements, or of a multiple, each with its scale.
    Q4_G32,
    /// The same of groups of 128: the integers of 32 elements lie behind those of the 32 before.
    Q4_G128,
}

impl BlockType {
    /// All of them.
    pub const ALL: [Self; 15] = [
        BlockType::Q4_0,
        BlockType::Q4_1,
        BlockType::Q5_0,
        BlockType::Q5_1,
        BlockType::Q8_0,
        BlockType::Q2_K,
        BlockType::Q3_K,
        BlockType::Q4_K,
        BlockType::Q5_K,
        BlockType::Q6_K,
        BlockType::IQ4_NL,
        BlockType::IQ4_XS,
        BlockType::MXFP4,
        BlockType::Q4_G32,
        BlockType::Q4_G128,
    ];

    /// GGUF id (0 for none), elements and bytes of a block, name.
    const fn row(self) -> (u32, usize, usize, &'static str) {
        match self {
            BlockType::Q4_0 => (2, 32, 18, "q4_0"),
            BlockType::Q4_1 => (3, 32, 20, "q4_1"),
            BlockType::Q5_0 => (6, 32, 22, "q5_0"),
            BlockType::Q5_1 => (7, 32, 24, "q5_1"),
            BlockType::Q8_0 => (8, 32, 34, "q8_0"),
            BlockType::Q2_K => (10, 256, 84, "q2_k"),
            BlockType::Q3_K => (11, 256, 110, "q3_k"),
            BlockType::Q4_K => (12, 256, 144, "q4_k"),
            BlockType::Q5_K => (13, 256, 176, "q5_k"),
            BlockType::Q6_K => (14, 256, 210, "q6_k"),
            BlockType::IQ4_NL => (20, 32, 18, "iq4_nl"),
            BlockType::IQ4_XS => (23, 256, 136, "iq4_xs"),
            BlockType::MXFP4 => (39, 32, 17, "mxfp4"),
            BlockType::Q4_G32 => (0, 32, 20, "q4_g32"),
            BlockType::Q4_G128 => (0, 128, 68, "q4_g128"),
        }
    }

    /// The number of the type in GGUF files (`ggml_type`), if they have it.
    pub const fn gguf_id(self) -> Option<u32> {
        match self.row().0 {
            0 => None,
            id => Some(id),
        }
    }

    /// The type of this number in GGUF files; none where it is another type's, or no block type's.
    pub fn from_gguf_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|block| block.gguf_id() == Some(id))
    }

    /// Elements of a block: 32, 128 or 256.
    pub const fn elements(self) -> usize {
        self.row().1
    }

    /// Bytes of a block in a file.
    pub const fn bytes(self) -> usize {
        self.row().2
    }

    /// Bytes of a row of `in_dim` elements in a file; none where that is no whole number of blocks, or past the address space.
    pub fn row_bytes(self, in_dim: usize) -> Option<usize> {
        let whole = in_dim.is_multiple_of(self.elements());
        whole.then(|| in_dim.checked_div(self.elements())?.checked_mul(self.bytes())).flatten()
    }
}

impl fmt::Display for BlockType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().3)
    }
}

impl FromStr for BlockType {
    type Err = Error;

    /// From what it displays as, in capitals or not: `q4_k`, `Q4_K`.
    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|block| block.row().3.eq_ignore_ascii_case(text));
        found.ok_or_else(|| {
            let names = Self::ALL.map(|block| block.row().3).join(", ");
            ErrorKind::argument("block type", format!("{text:?} is none of {names}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_lead_back() {
        for block in BlockType::ALL {
            assert_eq!(block.to_string().parse::<BlockType>().unwrap(), block);
            assert_eq!(block.to_string().to_uppercase().parse::<BlockType>().unwrap(), block);
            let own = [BlockType::Q4_G32, BlockType::Q4_G128].contains(&block);
            assert_eq!(block.gguf_id().and_then(BlockType::from_gguf_id), (!own).then_some(block));
            assert_eq!(block.row_bytes(3 * block.elements()), Some(3 * block.bytes()));
            assert_eq!(block.row_bytes(block.elements() + 1), None);
            assert_eq!(block.row_bytes(usize::MAX), None);
        }
        assert_eq!(BlockType::from_gguf_id(0), None);
        let error = "q9_k".parse::<BlockType>().unwrap_err().to_string();
        assert!(error.contains("q9_k") && error.contains("iq4_xs"), "{error}");
    }
}
