//! Values of a file's metadata. Pure.
#![warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use std::fmt;

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValueKind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl ValueKind {
    /// By the file's number.
    pub(crate) fn of(number: u32) -> Option<ValueKind> {
        use ValueKind::{Array, Bool, Text, F32, F64, I16, I32, I64, I8, U16, U32, U64, U8};
        let all = [U8, I8, U16, I16, U32, I32, F32, Bool, Text, Array, U64, I64, F64];
        usize::try_from(number).ok().and_then(|number| all.get(number).copied())
    }

    /// Bytes of one, where all have as many.
    pub(crate) fn bytes(self) -> Option<u64> {
        match self {
            ValueKind::U8 | ValueKind::I8 | ValueKind::Bool => Some(1),
            ValueKind::U16 | ValueKind::I16 => Some(2),
            ValueKind::U32 | ValueKind::I32 | ValueKind::F32 => Some(4),
            ValueKind::U64 | ValueKind::I64 | ValueKind::F64 => Some(8),
            ValueKind::Text | ValueKind::Array => None,
        }
    }

    /// The value of so many bytes as the kind has; none for what has no such, and for a boolean that is neither.
    pub(crate) fn value(self, bytes: &[u8]) -> Option<MetadataValue> {
        let mut all = [0u8; 8];
        all.get_mut(..bytes.len())?.copy_from_slice(bytes);
        let [a, b, c, d, ..] = all;
        Some(match self {
            ValueKind::U8 | ValueKind::U16 | ValueKind::U32 | ValueKind::U64 => {
                MetadataValue::Unsigned(u64::from_le_bytes(all))
            }
            ValueKind::I8 => MetadataValue::Signed(i64::from(i8::from_le_bytes([a]))),
            ValueKind::I16 => MetadataValue::Signed(i64::from(i16::from_le_bytes([a, b]))),
            ValueKind::I32 => MetadataValue::Signed(i64::from(i32::from_le_bytes([a, b, c, d]))),
            ValueKind::I64 => MetadataValue::Signed(i64::from_le_bytes(all)),
            ValueKind::F32 => MetadataValue::Float(f64::from(f32::from_le_bytes([a, b, c, d]))),
            ValueKind::F64 => MetadataValue::Float(f64::from_le_bytes(all)),
            ValueKind::Bool if a <= 1 => MetadataValue::Bool(a == 1),
            ValueKind::Bool | ValueKind::Text | ValueKind::Array => return None,
        })
    }
}

/// A value.
#[derive(Clone, PartialEq)]
pub(crate) enum MetadataValue {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    List(ValueList),
}

/// An array, as it lies in the file, where it was checked: no copy of a large vocabulary is made of it.
#[derive(Clone, PartialEq)]
pub(crate) struct ValueList {
    pub(crate) kind: ValueKind,
    pub(crate) count: u64,
    pub(crate) bytes: Vec<u8>,
}

impl ValueList {
    /// Its strings; none where it holds something else.
    #[cfg_attr(not(feature = "tokenizers"), allow(dead_code))]
    pub(crate) fn texts(&self) -> Option<impl Iterator<Item = &[u8]>> {
        let mut rest = &self.bytes[..];
        let next = move || {
            let (size, after) = rest.split_first_chunk::<8>()?;
            let size = usize::try_from(u64::from_le_bytes(*size)).ok()?;
            let (text, after) = after.split_at_checked(size)?;
            rest = after;
            Some(text)
        };
        (self.kind == ValueKind::Text).then(|| std::iter::from_fn(next))
    }

    /// Its numbers or booleans; none where it holds something else.
    pub(crate) fn values(&self) -> Option<impl Iterator<Item = MetadataValue> + '_> {
        let size = usize::try_from(self.kind.bytes()?).ok()?;
        Some(self.bytes.chunks_exact(size).filter_map(|bytes| self.kind.value(bytes)))
    }
}

impl MetadataValue {
    /// A whole number, of whatever kind.
    pub(crate) fn whole(&self) -> Option<i128> {
        match self {
            MetadataValue::Unsigned(n) => Some(i128::from(*n)),
            MetadataValue::Signed(n) => Some(i128::from(*n)),
            _ => None,
        }
    }

    /// A number, of whatever kind.
    pub(crate) fn number(&self) -> Option<f64> {
        match self {
            MetadataValue::Unsigned(n) => Some(*n as f64),
            MetadataValue::Signed(n) => Some(*n as f64),
            MetadataValue::Float(n) => Some(*n),
            _ => None,
        }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            MetadataValue::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// For messages: not all of what is long.
impl fmt::Display for MetadataValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetadataValue::Unsigned(n) => n.fmt(f),
            MetadataValue::Signed(n) => n.fmt(f),
            MetadataValue::Float(n) => n.fmt(f),
            MetadataValue::Bool(b) => b.fmt(f),
            MetadataValue::Text(text) => match text.char_indices().nth(60) {
                Some((end, _)) => write!(f, "{:?}..", text.get(..end).unwrap_or_default()),
                None => write!(f, "{text:?}"),
            },
            MetadataValue::List(list) => write!(f, "a list of {} values", list.count),
        }
    }
}
