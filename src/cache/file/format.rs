//! The bytes of a saved cache. Pure: nothing of a device, and no panic whatever the bytes.
//!
//! ```text
//! head     96 bytes: "lattenKV", then u32s: version, dtype, the seven numbers of the layout, rotation, frequencies,
//!          page size, layers, words of a row, tokens of a block, sequences, bytes of the fingerprint, wide channels of a group;
//!          then u64s: bytes of the table, XXH64 of the 88 bytes before
//! table    fingerprint; frequencies (f32); wide channels (u32), if there are any, by layer and group; of version 3 three u32s (rank,
//!          ranks, tokens of a turn: the rows of other ranks' tokens are in their files); of each sequence:
//!          committed tokens (u64), from version 2 on three u64s (the tokens of its window or 0 for all, the first tokens
//!          that are kept beside it, one past the last token between these and the window whose row is gone, or 0 where
//!          none is), token ids (u64 count, then u32 each)
//!          then the XXH64 of that, seeded with the head's
//! blocks   for each sequence, for each layer: the rows that it holds, in order, cut into blocks of so many rows, each
//!          followed by its XXH64, seeded with the table's plus the block's index
//! ```
//!
//! A file without windowed sequences and wide channels is of version 1, for older programs to read; else of version 2, or 3 where ranks
//! divide sequences by context.
//!
//! All numbers are little-endian. A block is laid out as a page of just its tokens: planes of 16-byte words as in
//! [`StateLayout`]. So a page's part of a plane is one run in the file too, and nothing but one number in the head depends on
//! the page size: a cache of any other reads the file. Layers come one after the other, so that a block is of one pool. The
//! seeds make a block of another file, or of another place in this one, a damaged block.

use super::codes::{dtype, dtype_code, rotation, rotation_code, Cursor};
use super::input::Input;
pub use super::saved_sequence::SavedSequence;
use crate::error::{Result, SavedFault};
use crate::gpu::DType;
use crate::io::xxh64;
use crate::kv::append::rotated_dim;
use crate::kv::layout::StateLayout;
use crate::kv::turns::TokenShare;
use crate::kv::{Gqa, HeadLayout, WideChannels};
use crate::rope::RopePairs;
use std::io::Read;

const MAGIC: &[u8; 8] = b"lattenKV";
/// The last version, which is written of a rank's part of sequences; else it is that of what is in the file, down to 1.
pub(crate) const VERSION: u32 = 3;
const HEAD_BYTES: usize = 96;
/// A checksum.
pub(crate) const SUM_BYTES: usize = 8;
/// Rows of a block: small enough for second-level caches and the smallest binding limits, large enough that a block's
/// dispatch, copy and write cost little beside it (1 MiB, or one row).
const BLOCK_BYTES: usize = 1 << 20;
/// Of a file, so that hostile numbers ask for no memory to speak of, nor for a dispatch that no device has (2^18 rows of 16
/// bytes are 2^15 workgroups).
const MOST_BLOCK_BYTES: usize = 4 << 20;

/// What the head of a saved cache says: see [`saved_info`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SavedInfo {
    /// The layout of its rows.
    pub heads: HeadLayout,
    /// Element type of its rows.
    pub dtype: DType,
    /// How the cache rotated keys.
    pub rotation: RopePairs,
    /// The rotation's frequencies, radians per token.
    pub inv_freq: Vec<f32>,
    /// Which channels of keys are in f16 beside their integers, of a layout that has such.
    pub wide: Option<WideChannels>,
    /// Tokens per page of the cache that was saved; the loading one may have others.
    pub page_size: usize,
    /// Layers.
    pub layers: usize,
    /// What the caller gave to know the model by.
    pub fingerprint: Vec<u8>,
    /// The sequences, in the order of the call that saved them.
    pub sequences: Vec<SavedSequence>,
    pub(crate) block_tokens: usize,
    /// Whose tokens have their rows here, where ranks divide sequences by context.
    pub(crate) share: Option<TokenShare>,
}

/// Some rows of one layer of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowBlock {
    pub(crate) sequence: usize,
    pub(crate) layer: usize,
    /// First token, a multiple of the file's block; those of the sequence's gap are not counted.
    pub(crate) first: usize,
    pub(crate) tokens: usize,
}

/// Tokens of a block of such rows.
pub(crate) fn block_tokens(row_bytes: usize) -> usize {
    (BLOCK_BYTES / row_bytes.max(1)).max(1)
}

impl SavedInfo {
    /// Bytes of one row.
    pub(crate) fn row_bytes(&self) -> usize {
        16 * StateLayout::new(&self.heads, self.dtype).row_words(self.heads.groups())
    }

    /// Rows of a sequence that are in the file.
    pub(crate) fn rows(&self, sequence: &SavedSequence) -> usize {
        self.share.map_or(sequence.rows(), |share| share.count(sequence.rows()))
    }

    /// The most of any sequence.
    pub(crate) fn most_rows(&self) -> usize {
        self.sequences.iter().map(|sequence| self.rows(sequence)).max().unwrap_or(0)
    }

    /// The blocks of the file in order.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = RowBlock> + '_ {
        let step = self.block_tokens;
        self.sequences.iter().enumerate().flat_map(move |(sequence, s)| {
            (0..self.layers).flat_map(move |layer| {
                let rows = self.rows(s);
                let firsts = (0..rows.div_ceil(step)).map(move |i| i * step);
                firsts.map(move |first| RowBlock { sequence, layer, first, tokens: step.min(rows - first) })
            })
        })
    }

    /// Bytes of all blocks, their checksums included; None past 64 bits.
    pub(crate) fn blocks_bytes(&self) -> Option<u64> {
        let row = self.row_bytes() as u128;
        let of = |s: &SavedSequence| {
            let rows = self.rows(s);
            rows as u128 * row + rows.div_ceil(self.block_tokens) as u128 * SUM_BYTES as u128
        };
        let bytes = self.sequences.iter().map(of).sum::<u128>() * self.layers as u128;
        u64::try_from(bytes).ok()
    }

    /// Head and table, and the seed of the blocks.
    pub(crate) fn encode(&self) -> (Vec<u8>, u64) {
        let table = self.table();
        let mut bytes = MAGIC.to_vec();
        let h = &self.heads;
        let numbers = [h.q_heads, h.groups, h.state_dim, h.nope_dim, h.rope_dim, h.v_offset, h.v_dim];
        let mut put = |number: usize| bytes.extend((number as u32).to_le_bytes()); // no truncation: all are checked
        put(self.version() as usize);
        put(dtype_code(self.dtype) as usize);
        numbers.into_iter().for_each(&mut put);
        put(rotation_code(self.rotation) as usize);
        for number in [self.inv_freq.len(), self.page_size, self.layers, self.row_bytes() / 16, self.block_tokens] {
            put(number);
        }
        [self.sequences.len(), self.fingerprint.len(), h.wide_dim].into_iter().for_each(put);
        bytes.extend((table.len() as u64).to_le_bytes());
        debug_assert_eq!(bytes.len(), HEAD_BYTES - SUM_BYTES);
        let sum = xxh64(&bytes, 0);
        bytes.extend(sum.to_le_bytes());
        let seed = xxh64(&table, sum);
        bytes.extend(table);
        bytes.extend(seed.to_le_bytes());
        (bytes, seed)
    }

    /// The first version that can hold it.
    fn version(&self) -> u32 {
        match self.share {
            Some(_) => 3,
            None => 1 + u32::from(self.wide.is_some() || self.sequences.iter().any(|s| s.window > 0)),
        }
    }

    fn table(&self) -> Vec<u8> {
        let (mut bytes, windowed) = (self.fingerprint.clone(), self.version() > 1);
        bytes.extend(self.inv_freq.iter().flat_map(|f| f.to_le_bytes()));
        let wide = self.wide.iter().flat_map(|wide| wide.numbers());
        bytes.extend(wide.flat_map(|channel| channel.to_le_bytes()));
        let share = self.share.iter().flat_map(TokenShare::numbers);
        bytes.extend(share.flat_map(|number| number.to_le_bytes()));
        for s in &self.sequences {
            bytes.extend((s.len as u64).to_le_bytes());
            if windowed {
                let numbers = [s.window, s.keep_first, s.gap.end].map(|number| (number as u64).to_le_bytes());
                bytes.extend(numbers.as_flattened());
            }
            bytes.extend((s.tokens.len() as u64).to_le_bytes());
            bytes.extend(s.tokens.iter().flat_map(|t| t.to_le_bytes()));
        }
        bytes
    }

    /// Reads head and table; also the seed of the blocks.
    pub(crate) fn read<R: Read>(input: &mut Input<'_, R>) -> Result<(SavedInfo, u64)> {
        let mut head = [0u8; HEAD_BYTES];
        // What tells a foreign or newer file comes first, for a file of those may be shorter than our head.
        input.exact(&mut head[..12], || "head".into())?;
        known(&head).map_err(|fault| input.fault(fault))?;
        input.exact(&mut head[12..], || "head".into())?;
        let sum = check_sum(&head, 0, 0, || "head".into()).map_err(|fault| input.fault(fault))?;
        let head = Head::decode(&head);
        let first = input.at;
        let table = input.vec(head.table_bytes.saturating_add(SUM_BYTES as u64), "table")?;
        let seed = check_sum(&table, sum, first, || "table".into()).map_err(|fault| input.fault(fault))?;
        let info = head.info(&table[..table.len() - SUM_BYTES]).map_err(|fault| input.fault(fault))?;
        Ok((info, seed))
    }
}

/// Whether a file that begins with these 12 bytes is one of ours, of a version that is known here.
fn known(bytes: &[u8; HEAD_BYTES]) -> Result<(), SavedFault> {
    let mut found = [0; 8];
    found.copy_from_slice(&bytes[..8]);
    let version = u32_at(bytes, 8);
    match version {
        _ if found != *MAGIC => Err(SavedFault::Foreign { found }),
        1..=VERSION => Ok(()),
        0 => Err(SavedFault::Malformed { name: "version", value: 0, why: "versions start at 1" }),
        _ => Err(SavedFault::Newer { version, known: VERSION }),
    }
}

/// The checksum in the last eight bytes, if it fits those before.
pub(crate) fn check_sum(bytes: &[u8], seed: u64, first: u64, part: impl Fn() -> String) -> Result<u64, SavedFault> {
    let (data, want) = bytes.split_at(bytes.len().saturating_sub(SUM_BYTES));
    let (got, want) = (xxh64(data, seed), want.first_chunk().map_or(0, |sum| u64::from_le_bytes(*sum)));
    match got == want {
        true => Ok(got),
        false => Err(SavedFault::Damaged { part: part(), first, got, want }),
    }
}

/// The head's numbers as they are in the file.
struct Head {
    version: u32,
    dtype: u32,
    layout: [u32; 7],
    rotation: u32,
    frequencies: u32,
    page_size: u32,
    layers: u32,
    row_words: u32,
    block_tokens: u32,
    sequences: u32,
    fingerprint_bytes: u32,
    wide: u32,
    table_bytes: u64,
}

impl Head {
    fn decode(bytes: &[u8; HEAD_BYTES]) -> Head {
        let at = |i: usize| u32_at(bytes, 12 + 4 * i);
        let table_bytes = u64::from(u32_at(bytes, 80)) | u64::from(u32_at(bytes, 84)) << 32;
        Head {
            version: u32_at(bytes, 8),
            dtype: at(0),
            layout: [at(1), at(2), at(3), at(4), at(5), at(6), at(7)],
            rotation: at(8),
            frequencies: at(9),
            page_size: at(10),
            layers: at(11),
            row_words: at(12),
            block_tokens: at(13),
            sequences: at(14),
            fingerprint_bytes: at(15),
            wide: at(16),
            table_bytes,
        }
    }

    /// With the table, whose checksum has been found right.
    fn info(self, table: &[u8]) -> Result<SavedInfo, SavedFault> {
        let mut table = Cursor { rest: table };
        let fingerprint = table.take(self.fingerprint_bytes.into())?.to_vec();
        let inv_freq = table.u32s(self.frequencies.into())?.map(f32::from_bits).collect();
        self.bounded()?;
        let heads = heads(self.layout, self.wide)?;
        let wide = wide(&heads, self.layers, &mut table)?;
        let share = if self.version > 2 { Some(share(&mut table)?) } else { None };
        let mut sequences = Vec::new();
        for _ in 0..self.sequences {
            let len = table.u64()?;
            if len > u64::from(u32::MAX) {
                return Err(malformed("sequence length", len, "lengths have 32 bits"));
            }
            let seen = if self.version > 1 { [table.u64()?, table.u64()?, table.u64()?] } else { [0; 3] };
            let sequence = SavedSequence::windowed(len, seen)?;
            let count = table.u64()?;
            let tokens: Vec<u32> = table.u32s(count)?.collect();
            if count != 0 && count < len {
                return Err(malformed("token count", count, "fewer than there are rows"));
            }
            sequences.push(SavedSequence { tokens, ..sequence });
        }
        if !table.rest.is_empty() {
            return Err(malformed("table size", self.table_bytes, "more than it holds"));
        }
        let info = SavedInfo {
            heads,
            wide,
            dtype: dtype(self.dtype)?,
            rotation: rotation(self.rotation)?,
            inv_freq,
            page_size: self.page_size as usize,
            layers: self.layers as usize,
            fingerprint,
            sequences,
            block_tokens: self.block_tokens as usize,
            share,
        };
        let integers = matches!(info.dtype, DType::I8 | DType::I4);
        if info.wide.is_some() && (!integers || self.version == 1) {
            return Err(malformed("wide channels", self.wide.into(), "not of this version and dtype"));
        }
        if info.version() != self.version {
            let why = "of windowed sequences or wide channels, and there is none";
            return Err(malformed("version", self.version.into(), why));
        }
        if info.row_bytes() / 16 != self.row_words as usize {
            return Err(malformed("row size", self.row_words.into(), "not that of its layout and dtype"));
        }
        if 2 * info.inv_freq.len() != rotated_dim(&info.heads, info.rotation) {
            return Err(malformed(
                "number of frequencies",
                self.frequencies.into(),
                "not half of what its layout rotates",
            ));
        }
        let block_bytes = info.block_tokens.checked_mul(info.row_bytes());
        if block_bytes.is_none_or(|bytes| bytes > MOST_BLOCK_BYTES.max(info.row_bytes())) {
            return Err(malformed("block size", self.block_tokens.into(), "tokens of more than 4 MiB"));
        }
        if info.blocks_bytes().is_none() {
            return Err(malformed("sequence count", self.sequences.into(), "more rows than 64 bits count"));
        }
        Ok(info)
    }

    fn bounded(&self) -> Result<(), SavedFault> {
        for (name, value, fits, why) in [
            (
                "page size",
                self.page_size,
                self.page_size.is_power_of_two() && self.page_size <= 4096,
                "not a power of two up to 4096",
            ),
            ("layer count", self.layers, (1..=1 << 16).contains(&self.layers), "not in 1..=65536"),
            ("block size", self.block_tokens, self.block_tokens > 0, "not at least 1"),
        ] {
            if !fits {
                return Err(malformed(name, value.into(), why));
            }
        }
        Ok(())
    }
}

/// A layout that one of its constructors makes.
fn heads(numbers: [u32; 7], wide: u32) -> Result<HeadLayout, SavedFault> {
    let [q_heads, groups, state_dim, nope_dim, rope_dim, v_offset, v_dim] = numbers.map(|n| n as usize);
    let wide_dim = wide as usize;
    let heads = HeadLayout { q_heads, groups, state_dim, nope_dim, rope_dim, v_offset, v_dim, wide_dim };
    if wide > 0 {
        let made = HeadLayout::gqa_wide(Gqa { q_heads, kv_heads: groups, head_dim: nope_dim }, wide_dim).ok();
        return made.filter(|made| *made == heads).ok_or(malformed("wide channels", wide.into(), "not of its layout"));
    }
    heads.remade().ok_or(SavedFault::Layout { numbers })
}

/// The channels of a layout that has wide ones.
fn wide(heads: &HeadLayout, layers: u32, table: &mut Cursor<'_>) -> Result<Option<WideChannels>, SavedFault> {
    if heads.wide_dim == 0 {
        return Ok(None);
    }
    let numbers: Vec<u32> = table.u32s(heads.rope_dim as u64 * u64::from(layers))?.collect();
    let known = WideChannels::from_numbers(heads, &numbers);
    known.map(Some).map_err(|_| malformed("wide channels", heads.wide_dim as u64, "not so many elements of a key"))
}

/// Whose tokens' rows the file has.
fn share(table: &mut Cursor<'_>) -> Result<TokenShare, SavedFault> {
    let numbers: Vec<u32> = table.u32s(3)?.collect();
    let share = numbers.first_chunk().and_then(|numbers| TokenShare::of_numbers(*numbers));
    share.ok_or_else(|| malformed("rank", numbers.first().copied().unwrap_or(0).into(), "no rank that divides pages"))
}

pub(crate) fn malformed(name: &'static str, value: u64, why: &'static str) -> SavedFault {
    SavedFault::Malformed { name, value, why }
}

/// Of four bytes that are there.
fn u32_at(bytes: &[u8; HEAD_BYTES], at: usize) -> u32 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}

/// Reads the head of a saved cache, and no more: what it is of, how long its sequences are, and their tokens.
///
/// # Errors
///
/// [`ErrorKind::Saved`](crate::ErrorKind::Saved), [`ErrorKind::Io`](crate::ErrorKind::Io).
pub fn saved_info(reader: impl Read) -> Result<SavedInfo> {
    Ok(SavedInfo::read(&mut Input::new(reader, ""))?.0)
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
