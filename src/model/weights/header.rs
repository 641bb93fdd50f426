//! The headers of safetensors files and their index, read entry by entry where they lie: none of them is copied as a whole,
//! whatever it holds. Pure.

use crate::error::{Error, Result};
use safetensors::tensor::Dtype;
use serde::de::{DeserializeOwned, DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::rc::Rc;

/// Dimensions of a tensor at most; numpy and PyTorch have 64.
const MOST_DIMS: usize = 64;

/// What a header says of a tensor.
#[derive(Deserialize)]
pub(crate) struct Info {
    pub(crate) dtype: Dtype,
    pub(crate) shape: TensorShape,
    /// First byte and the one past the last, from the end of the header.
    pub(crate) data_offsets: (u64, u64),
}

impl Info {
    /// Bytes by shape and dtype; none where that is no whole number of 64 bits.
    fn bytes(&self) -> Option<u64> {
        let elements = self.shape.0.iter().try_fold(1u64, |n, d| n.checked_mul(*d as u64));
        let bits = elements.and_then(|n| n.checked_mul(self.dtype.bitsize() as u64));
        bits.filter(|bits| bits.is_multiple_of(8)).map(|bits| bits / 8)
    }

    /// The tensor's bytes, if its offsets, shape and dtype fit each other.
    ///
    /// Errors: in words.
    pub(crate) fn checked_bytes(&self) -> Result<usize, String> {
        let (start, end) = self.data_offsets;
        let found = end.checked_sub(start).ok_or_else(|| format!("begins at byte {start} and ends at {end}"))?;
        let (dims, dtype) = (crate::error::shape_text(&self.shape.0), self.dtype);
        match self.bytes() {
            None => Err(format!("has shape {dims} in {dtype:?}, which is no number of bytes")),
            Some(wanted) if wanted != found => {
                Err(format!("has {found} bytes, its shape {dims} in {dtype:?} {wanted}"))
            }
            Some(_) => usize::try_from(found).map_err(|_| format!("has {found} bytes")),
        }
    }
}

/// Sizes, slowest first.
pub(crate) struct TensorShape(pub(crate) Box<[usize]>);

impl<'de> Deserialize<'de> for TensorShape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Dims)
    }
}

struct Dims;

impl<'de> Visitor<'de> for Dims {
    type Value = TensorShape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "up to {MOST_DIMS} sizes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<TensorShape, A::Error> {
        let mut dims = Vec::new();
        while let Some(dim) = entries.next_element()? {
            if dims.len() == MOST_DIMS {
                return Err(A::Error::custom(format!("a shape of more than {MOST_DIMS} dimensions")));
            }
            dims.push(dim);
        }
        Ok(TensorShape(dims.into()))
    }
}

/// Why a text was not read to its end.
pub(crate) enum Fault {
    /// It is not what it should be.
    Json(serde_json::Error),
    /// Of who was told of an entry.
    Entry(Error),
}

/// Tells `each` of every entry of a JSON object, in the text's order, but not of the one called `skipped`.
pub(crate) fn each_entry<T: DeserializeOwned>(
    json: &[u8],
    skipped: &str,
    each: &mut dyn FnMut(String, T) -> Result<()>,
) -> Result<(), Fault> {
    read(json, |failed| Entries { skipped, each, failed, of: PhantomData })
}

/// The same of the object that is the entry `key` of the text's object, which it must have.
pub(crate) fn each_entry_of<T: DeserializeOwned>(
    json: &[u8],
    key: &'static str,
    each: &mut dyn FnMut(String, T) -> Result<()>,
) -> Result<(), Fault> {
    read(json, |failed| Within { key, entries: Entries { skipped: "", each, failed, of: PhantomData } })
}

fn read<S: for<'de> DeserializeSeed<'de, Value = ()>>(
    json: &[u8],
    seed: impl FnOnce(Rc<Cell<Option<Error>>>) -> S,
) -> Result<(), Fault> {
    let failed = Rc::default();
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let read = seed(Rc::clone(&failed)).deserialize(&mut deserializer).and_then(|()| deserializer.end());
    match (failed.take(), read) {
        (Some(error), _) => Err(Fault::Entry(error)),
        (None, read) => read.map_err(Fault::Json),
    }
}

struct Entries<'f, T> {
    skipped: &'f str,
    each: &'f mut dyn FnMut(String, T) -> Result<()>,
    /// The error of `each`, which serde's errors cannot hold.
    failed: Rc<Cell<Option<Error>>>,
    of: PhantomData<T>,
}

impl<'de, T: DeserializeOwned> DeserializeSeed<'de> for Entries<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, T: DeserializeOwned> Visitor<'de> for Entries<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(key) = entries.next_key::<String>()? {
            if !self.skipped.is_empty() && key == self.skipped {
                entries.next_value::<IgnoredAny>()?;
                continue;
            }
            let value = entries.next_value()?;
            if let Err(e) = (self.each)(key, value) {
                self.failed.set(Some(e));
                return Err(A::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}

struct Within<'f, T> {
    key: &'static str,
    entries: Entries<'f, T>,
}

impl<'de, T: DeserializeOwned> DeserializeSeed<'de> for Within<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, T: DeserializeOwned> Visitor<'de> for Within<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with the key {}", self.key)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut outer: A) -> Result<(), A::Error> {
        let mut wanted = Some(self.entries);
        while let Some(key) = outer.next_key::<String>()? {
            match wanted.take_if(|_| key == self.key) {
                Some(entries) => outer.next_value_seed(entries)?,
                None => {
                    outer.next_value::<IgnoredAny>()?;
                }
            }
        }
        match wanted {
            Some(_) => Err(A::Error::missing_field(self.key)),
            None => Ok(()),
        }
    }
}
