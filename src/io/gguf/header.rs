//! The header of a file, whatever its bytes: an error, or numbers that fit each other and the file. Pure but for the reading.
#![warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use super::source::{bad, Source};
use super::types::{layout, GgmlLayout};
use super::value::{MetadataValue, ValueKind, ValueList};
use super::{Gguf, StoredTensor, ALIGNMENT};
use crate::error::{shape_text, Result};
use crate::io::foreign::kind_of;
use std::collections::btree_map::Entry;
use std::collections::BTreeMap;
use std::io::Read;

pub(super) const MAGIC: &[u8; 4] = b"GGUF";
/// Versions that differ in nothing that is read here.
const VERSIONS: std::ops::RangeInclusive<u32> = 2..=3;
/// Bytes of a header at most: the largest known have some tens of millions, a vocabulary's.
const MOST_BYTES: u64 = 1 << 28;
/// Of a key and of a tensor's name; ggml has 64 for the latter.
const MOST_NAME: u64 = (1 << 16) - 1;
/// Of a value that is one string, as a chat template.
const MOST_TEXT: u64 = 1 << 24;
/// Dimensions of a tensor, as ggml has it.
const MOST_DIMS: u32 = 4;
/// Lists within lists.
const MOST_NESTED: u32 = 4;
/// What tensors' first bytes may be multiples of.
const MOST_ALIGNMENT: u64 = 1 << 20;
const DEFAULT_ALIGNMENT: u64 = 32;

/// Key and value, tensor: the least that they take in a file.
const LEAST_ENTRY: u64 = 8 + 1 + 4 + 1;
const LEAST_TENSOR: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// A tensor whose bytes' place is not yet known.
struct Told {
    at: u64,
    block: GgmlLayout,
    number: u32,
    dims: Vec<u64>,
    bytes: u64,
    /// From the first byte of all tensors.
    offset: u64,
}

impl Gguf {
    /// Reads the header of a file of `len` bytes. `path` is for messages.
    ///
    /// Errors: [`ErrorKind::Weights`](crate::ErrorKind::Weights), [`ErrorKind::Io`](crate::ErrorKind::Io).
    pub(crate) fn read(path: &str, reader: impl Read, len: u64) -> Result<Gguf> {
        let mut source = Source::new(path, reader, len.min(MOST_BYTES));
        let version = begin(&mut source, path, len)?;
        let tensor_count = source.u64("the number of tensors")?;
        let value_count = source.u64("the number of metadata values")?;
        let least = tensor_count
            .checked_mul(LEAST_TENSOR)
            .and_then(|bytes| value_count.checked_mul(LEAST_ENTRY)?.checked_add(bytes));
        source.expect(least, &format!("{tensor_count} tensors and {value_count} metadata values"))?;
        let mut values = BTreeMap::new();
        for _ in 0..value_count {
            let at = source.at;
            let key = source.text(MOST_NAME, "a metadata key")?;
            let value = value(&mut source, &key)?;
            match values.entry(key) {
                Entry::Vacant(entry) => drop(entry.insert(value)),
                Entry::Occupied(entry) => {
                    return Err(bad(path, "", format!("key {}, at byte {at}: is there twice", entry.key())))
                }
            }
        }
        let alignment = alignment(&source, values.get(ALIGNMENT))?;
        let mut told = BTreeMap::new();
        for _ in 0..tensor_count {
            let (name, tensor) = tensor(&mut source, alignment)?;
            if let Some(before) = told.insert(name.clone(), tensor) {
                return Err(bad(path, &name, format!("is there twice, at byte {} too", before.at)));
            }
        }
        let first = source.at.checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
        let tensors = placed(path, told, first, len)?;
        Ok(Gguf { path: path.into(), version, values, tensors })
    }
}

/// Magic number and version.
fn begin<R: Read>(source: &mut Source<'_, R>, path: &str, len: u64) -> Result<u32> {
    if len < 24 {
        return Err(bad(path, "", format!("not a GGUF file: {len} bytes")));
    }
    let magic: [u8; 4] = source.array("the magic number")?;
    if magic != *MAGIC {
        let kind = kind_of(&magic).map_or(String::new(), |kind| format!("; {kind}"));
        let why = format!("not a GGUF file: begins with {}{kind}", crate::error::bytes_text(&magic));
        return Err(bad(path, "", why));
    }
    let version = source.u32("the version")?;
    if VERSIONS.contains(&version) {
        return Ok(version);
    }
    let why = match VERSIONS.contains(&version.swap_bytes()) {
        true => "is of the other byte order (big endian), which is not read".into(),
        false => format!("its format is version {version}, known are 2 and 3"),
    };
    Err(bad(path, "", why))
}

fn kind<R: Read>(source: &mut Source<'_, R>, what: &str) -> Result<ValueKind> {
    let number = source.u32(what)?;
    ValueKind::of(number).ok_or_else(|| source.bad(what, &format!("a value of type {number}, known are 0 to 12")))
}

fn value<R: Read>(source: &mut Source<'_, R>, key: &str) -> Result<MetadataValue> {
    if key.is_empty() {
        return Err(source.bad("a metadata key", "is empty"));
    }
    let what = format!("key {key}");
    match kind(source, &what)? {
        ValueKind::Text => Ok(MetadataValue::Text(source.text(MOST_TEXT, &what)?)),
        ValueKind::Array => {
            let kind = kind(source, &what)?;
            let mut list = ValueList { kind, count: source.u64(&what)?, bytes: Vec::new() };
            elements(source, (list.kind, list.count), &mut list.bytes, &what, 1)?;
            Ok(MetadataValue::List(list))
        }
        single => scalar(source, single, &what),
    }
}

fn scalar<R: Read>(source: &mut Source<'_, R>, kind: ValueKind, what: &str) -> Result<MetadataValue> {
    let mut bytes = Vec::new();
    source.append(kind.bytes().unwrap_or(0), &mut bytes, what)?;
    kind.value(&bytes).ok_or_else(|| source.bad(what, "a boolean that is neither 0 nor 1"))
}

/// The elements of a list as they lie in the file, each of them checked.
fn elements<R: Read>(
    source: &mut Source<'_, R>,
    (kind, count): (ValueKind, u64),
    all: &mut Vec<u8>,
    what: &str,
    nested: u32,
) -> Result<()> {
    if let Some(bytes) = kind.bytes() {
        let bytes = source.expect(count.checked_mul(bytes), what)?;
        let begin = all.len();
        source.append(bytes, all, what)?;
        let odd = kind == ValueKind::Bool && all.get(begin..).unwrap_or_default().iter().any(|b| *b > 1);
        return if odd { Err(source.bad(what, "a boolean that is neither 0 nor 1")) } else { Ok(()) };
    }
    // A string's length, or a list's kind and length.
    let least: u64 = if kind == ValueKind::Text { 8 } else { 12 };
    source.expect(count.checked_mul(least), what)?;
    if kind == ValueKind::Array && nested >= MOST_NESTED {
        return Err(source.bad(what, &format!("lists within lists, more than {MOST_NESTED} deep")));
    }
    for _ in 0..count {
        let begin = all.len();
        source.append(least, all, what)?;
        let head = all.get(begin..).unwrap_or_default();
        let (number, size) = head.split_at_checked(head.len().saturating_sub(8)).unwrap_or_default();
        let size = size.first_chunk().map_or(0, |size| u64::from_le_bytes(*size));
        if kind == ValueKind::Text {
            source.append(size, all, what)?;
            continue;
        }
        let number = number.first_chunk().map_or(u32::MAX, |number| u32::from_le_bytes(*number));
        let inner = ValueKind::of(number);
        let inner = inner.ok_or_else(|| source.bad(what, &format!("a value of type {number}, known are 0 to 12")))?;
        elements(source, (inner, size), all, what, nested.saturating_add(1))?;
    }
    Ok(())
}

fn alignment<R: Read>(source: &Source<'_, R>, value: Option<&MetadataValue>) -> Result<u64> {
    let Some(value) = value else { return Ok(DEFAULT_ALIGNMENT) };
    let alignment = value.whole().and_then(|n| u64::try_from(n).ok());
    let good = alignment.filter(|n| n.is_power_of_two() && *n <= MOST_ALIGNMENT);
    good.ok_or_else(|| {
        source.bad(&format!("key {ALIGNMENT}"), &format!("{value} is not a power of two up to {MOST_ALIGNMENT}"))
    })
}

/// What a header says of the next tensor.
fn tensor<R: Read>(source: &mut Source<'_, R>, alignment: u64) -> Result<(String, Told)> {
    let at = source.at;
    let name = source.text(MOST_NAME, "a tensor's name")?;
    if name.is_empty() {
        return Err(source.bad("a tensor's name", "is empty"));
    }
    let what = format!("tensor {name}");
    let count = source.u32(&what)?;
    if !(1..=MOST_DIMS).contains(&count) {
        return Err(source.bad(&what, &format!("{count} dimensions, known are 1 to {MOST_DIMS}")));
    }
    // The fastest comes first.
    let dims = (0..count).map(|_| source.u64(&what)).collect::<Result<Vec<_>>>()?;
    let number = source.u32(&what)?;
    let Some(block) = layout(number) else {
        return Err(source.bad(&what, &format!("is of type {number}, which is not known")));
    };
    let offset = source.u64(&what)?;
    let text = || dims_text(&dims);
    let first = dims.first().copied().unwrap_or(0);
    let elements = dims.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim));
    let Some(elements) = elements.filter(|n| *n > 0) else {
        return Err(source.bad(&what, &format!("has shape {}", text())));
    };
    if !first.is_multiple_of(block.elements) {
        let why = format!("has rows of {first}, no whole number of blocks of {} ({})", block.elements, block.name);
        return Err(source.bad(&what, &why));
    }
    let bytes = elements.checked_div(block.elements).and_then(|blocks| blocks.checked_mul(block.bytes));
    let Some(bytes) = bytes else {
        return Err(source.bad(&what, &format!("has shape {}", text())));
    };
    if !offset.is_multiple_of(alignment) {
        return Err(source.bad(&what, &format!("begins at {offset}, no multiple of {alignment}")));
    }
    Ok((name, Told { at, block, number, dims, bytes, offset }))
}

/// Slowest first.
fn dims_text(dims: &[u64]) -> String {
    let dims: Vec<usize> = dims.iter().rev().map(|dim| usize::try_from(*dim).unwrap_or(usize::MAX)).collect();
    shape_text(&dims)
}

/// Tensors whose bytes are all in the file, and no one's twice.
fn placed(path: &str, told: BTreeMap<String, Told>, first: u64, len: u64) -> Result<BTreeMap<String, StoredTensor>> {
    let mut order: Vec<(u64, u64, &str)> = Vec::new();
    for (name, tensor) in &told {
        let begin = first.checked_add(tensor.offset);
        let end = begin.and_then(|begin| begin.checked_add(tensor.bytes)).unwrap_or(u64::MAX);
        if end > len {
            let (begin, bytes) = (begin.unwrap_or(u64::MAX), tensor.bytes);
            return Err(bad(path, name, format!("has {bytes} bytes from byte {begin} on, the file ends at {len}")));
        }
        order.push((begin.unwrap_or(u64::MAX), end, name));
    }
    order.sort_unstable();
    for pair in order.windows(2) {
        if let [(_, end, before), (begin, _, name)] = pair {
            if begin < end {
                return Err(bad(path, name, format!("begins at byte {begin}, where {before} ends at {end}")));
            }
        }
    }
    let place = |(name, told): (String, Told)| {
        let shape = told.dims.iter().rev().map(|dim| usize::try_from(*dim).ok()).collect::<Option<Box<[usize]>>>();
        let shape = shape.ok_or_else(|| bad(path, &name, format!("has shape {}", dims_text(&told.dims))))?;
        let (first, block) = (first.saturating_add(told.offset), told.block);
        Ok((name, StoredTensor { number: told.number, block, shape, first, bytes: told.bytes }))
    };
    told.into_iter().map(place).collect()
}
