//! How the elements of a tensor are stored in a file, and their numbers. Pure.

use crate::io::gguf::GgmlLayout;
use crate::nn::BlockType;
use half::f16;
use half::slice::HalfFloatSliceExt;
use safetensors::tensor::Dtype;
use std::fmt;

/// What is kept in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stored {
    F32,
    F16,
    BF16,
    /// Of GGUF files.
    Blocks(BlockType),
    /// Of safetensors files, and not read.
    Other(Dtype),
    /// Of GGUF files, and not read.
    OtherBlocks(GgmlLayout),
}

impl Stored {
    pub(crate) fn of_safetensors(dtype: Dtype) -> Stored {
        match dtype {
            Dtype::F32 => Stored::F32,
            Dtype::F16 => Stored::F16,
            Dtype::BF16 => Stored::BF16,
            other => Stored::Other(other),
        }
    }

    /// By ggml's number.
    pub(crate) fn of_gguf(number: u32, layout: GgmlLayout) -> Stored {
        match (layout.name, BlockType::from_gguf_id(number)) {
            ("F32", _) => Stored::F32,
            ("F16", _) => Stored::F16,
            ("BF16", _) => Stored::BF16,
            (_, Some(block)) => Stored::Blocks(block),
            (_, None) => Stored::OtherBlocks(layout),
        }
    }

    /// The numbers of whole rows' bytes; none of what is not read.
    pub(crate) fn decoded(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Stored::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Stored::F16 => halves(bytes),
            Stored::BF16 => {
                let bits = bytes.chunks_exact(2).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
                bits.map(f32::from_bits).collect()
            }
            Stored::Blocks(block) => {
                let mut values = vec![0.0; bytes.len() / block.bytes() * block.elements()];
                match block.dequantise(bytes, &mut values) {
                    Ok(()) => values,
                    Err(_) => Vec::new(), // rows are whole blocks
                }
            }
            Stored::Other(_) | Stored::OtherBlocks(_) => Vec::new(),
        }
    }

    /// Whether weights may be this.
    pub(crate) fn is_read(self) -> bool {
        !matches!(self, Stored::Other(_) | Stored::OtherBlocks(_))
    }

    /// What it should be instead, for messages.
    pub(crate) fn wanted(self) -> String {
        match self {
            Stored::OtherBlocks(_) => {
                let of_files = BlockType::ALL.into_iter().filter(|block| block.gguf_id().is_some());
                let blocks: Vec<String> = of_files.map(|block| block.to_string().to_uppercase()).collect();
                format!("F32, F16, BF16, {}", blocks.join(", "))
            }
            _ => "F32, F16 or BF16".into(),
        }
    }
}

/// f16 numbers, by the processor's own conversion where it has one.
pub(crate) fn halves(bytes: &[u8]) -> Vec<f32> {
    let halves: Vec<f16> = bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect();
    halves.to_f32_vec()
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stored::Other(dtype) => write!(f, "{dtype:?}"),
            Stored::OtherBlocks(layout) => f.write_str(layout.name),
            Stored::Blocks(block) => f.write_str(&block.to_string().to_uppercase()),
            own => write!(f, "{own:?}"),
        }
    }
}
