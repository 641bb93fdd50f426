//! Dtypes and rotations as a saved cache has them, and how its table is read piece by piece. Pure.

use super::format::malformed;
use crate::error::SavedFault;
use crate::gpu::DType;
use crate::rope::RopePairs;

/// U32 is no dtype of a cache and has code 0.
pub(super) fn dtype_code(dtype: DType) -> u32 {
    match dtype {
        DType::U32 => 0,
        DType::F32 => 1,
        DType::F16 => 2,
        DType::BF16 => 3,
        DType::I8 => 4,
        DType::I4 => 5,
    }
}

pub(super) fn dtype(code: u32) -> Result<DType, SavedFault> {
    let all = [DType::F32, DType::F16, DType::BF16, DType::I8, DType::I4];
    all.into_iter().find(|d| dtype_code(*d) == code).ok_or(malformed("dtype", code.into(), "no code of a dtype"))
}

pub(super) fn rotation_code(rotation: RopePairs) -> u32 {
    match rotation {
        RopePairs::None => 0,
        RopePairs::Half => 1,
        RopePairs::Interleaved => 2,
    }
}

pub(super) fn rotation(code: u32) -> Result<RopePairs, SavedFault> {
    let all = [RopePairs::None, RopePairs::Half, RopePairs::Interleaved];
    let found = all.into_iter().find(|r| rotation_code(*r) == code);
    found.ok_or(malformed("rotation", code.into(), "no code of a rotation"))
}

/// A table being read.
pub(super) struct Cursor<'a> {
    pub(super) rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(super) fn take(&mut self, bytes: u64) -> Result<&'a [u8], SavedFault> {
        let split = usize::try_from(bytes).ok().and_then(|bytes| self.rest.split_at_checked(bytes));
        let (taken, rest) = split.ok_or(malformed("table entry", bytes, "more bytes than are left of the table"))?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn u64(&mut self) -> Result<u64, SavedFault> {
        Ok(self.take(8)?.first_chunk().map_or(0, |b| u64::from_le_bytes(*b)))
    }

    pub(super) fn u32s(&mut self, count: u64) -> Result<impl Iterator<Item = u32> + 'a, SavedFault> {
        let bytes = self.take(count.saturating_mul(4))?;
        Ok(bytes.chunks_exact(4).map(|b| b.first_chunk().map_or(0, |b| u32::from_le_bytes(*b))))
    }
}
