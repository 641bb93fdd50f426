//! Rows of a weight as they lie on the device. Pure, so that any thread may make them.

use super::weight::packed;
use super::weight_type::WeightType;
use crate::error::{ErrorKind, Result};

/// Rows as they lie on the device: what [`RowPacker`] makes, and a writer takes.
#[derive(Default)]
pub(crate) struct PackedRows {
    /// Of the plane of rows, or of words. Rows that lie in files as on the device are put here by whoever reads them.
    pub(crate) rows: Vec<u8>,
    /// Of blocks: of the plane of scales.
    pub(super) side: Vec<u8>,
    /// Of I8: one for each row.
    pub(super) scales: Vec<f32>,
    /// Blocks that end a group of which others came before.
    pub(super) head: Vec<u8>,
    /// Blocks that begin a group of which others come after.
    pub(super) tail: Vec<u8>,
    /// Blocks of all of it.
    pub(super) blocks: usize,
}

/// Makes rows of a weight what they are on the device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowPacker {
    pub(super) kind: WeightType,
    pub(super) in_dim: usize,
    /// Of blocks: how many come before.
    pub(super) first: usize,
}

impl PackedRows {
    /// Nothing, in the same memory.
    pub(crate) fn clear(&mut self) {
        let PackedRows { rows, side, scales, head, tail, blocks } = self;
        [rows, side, head, tail].into_iter().for_each(Vec::clear);
        scales.clear();
        *blocks = 0;
    }
}

impl RowPacker {
    /// The same of what lies so many rows behind.
    pub(crate) fn behind(self, rows: usize) -> Self {
        let of_row = self.kind.blocks().map_or(0, |block| self.in_dim / block.elements());
        RowPacker { first: self.first + rows * of_row, ..self }
    }

    /// Appends whole rows of numbers. Errors: as [`Weight::new`](super::Weight::new).
    pub(crate) fn values(&self, values: &[f32], made: &mut PackedRows) -> Result<()> {
        let dtype = match self.kind {
            WeightType::Blocks(block) => return self.blocks(&block.quantise(values)?, made),
            WeightType::Plain(dtype) => dtype,
        };
        let (bytes, scales) = packed(values, self.in_dim, dtype)?;
        made.rows.extend_from_slice(&bytes);
        made.scales.extend(scales);
        Ok(())
    }

    /// Appends whole blocks of the weight's type. Errors: as [`Weight::from_blocks`](super::Weight::from_blocks).
    pub(crate) fn blocks(&self, blocks: &[u8], made: &mut PackedRows) -> Result<()> {
        let Some(block) = self.kind.blocks().filter(|block| blocks.len().is_multiple_of(block.bytes())) else {
            let why = format!("{} bytes of blocks for a weight in {}", blocks.len(), self.kind);
            return Err(ErrorKind::argument("blocks", why));
        };
        block.check(blocks, self.first + made.blocks)?;
        made.blocks += blocks.len() / block.bytes();
        let group = block.group_blocks() * block.bytes();
        let missing = self.first.next_multiple_of(block.group_blocks()) - self.first;
        let missing = missing * block.bytes() - made.head.len();
        let (head, rest) = blocks.split_at(blocks.len().min(missing));
        made.head.extend_from_slice(head);
        let mut rest = rest;
        if !made.tail.is_empty() {
            let (filling, after) = rest.split_at(rest.len().min(group - made.tail.len()));
            made.tail.extend_from_slice(filling);
            rest = after;
            if made.tail.len() == group {
                block.repack(&made.tail, &mut made.rows, &mut made.side);
                made.tail.clear();
            }
        }
        let (groups, rest) = rest.split_at(rest.len() / group * group);
        block.repack(groups, &mut made.rows, &mut made.side);
        made.tail.extend_from_slice(rest);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::BlockType;

    /// However blocks are cut into runs, packed apart and joined, their planes are the same.
    #[test]
    fn runs_of_blocks_join_to_the_same_planes() {
        for block in BlockType::ALL {
            let count = 23;
            let bytes: Vec<u8> = (0..count * block.bytes()).map(|i| (i * 7 / 3) as u8 & 0x3b).collect();
            let (mut words, mut side) = (Vec::new(), Vec::new());
            block.repack(&bytes, &mut words, &mut side);
            for cuts in [vec![], vec![1], vec![3, 4, 5, 16], vec![2, 2, 21], vec![8, 22]] {
                let (mut rows, mut scales, mut open) = (Vec::new(), Vec::new(), Vec::new());
                let ends = cuts.iter().copied().chain([count]);
                let mut first = 0;
                for end in ends {
                    let (mut made, packer) =
                        (PackedRows::default(), RowPacker { kind: block.into(), in_dim: block.elements(), first: 0 });
                    // In two calls, which go on from each other.
                    let (run, half) = (&bytes[first * block.bytes()..end * block.bytes()], (end - first) / 2);
                    let packer = packer.behind(first);
                    packer.blocks(&run[..half * block.bytes()], &mut made).unwrap();
                    packer.blocks(&run[half * block.bytes()..], &mut made).unwrap();
                    assert_eq!(made.blocks, end - first);
                    open.extend(made.head);
                    if open.len() == block.group_blocks() * block.bytes() {
                        block.repack(&open, &mut rows, &mut scales);
                        open.clear();
                    }
                    rows.extend(made.rows);
                    scales.extend(made.side);
                    open.extend(made.tail);
                    first = end;
                }
                block.repack(&open, &mut rows, &mut scales);
                assert!(rows == words && scales == side, "{block} {cuts:?}");
            }
        }
    }
}
