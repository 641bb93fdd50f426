//! Keys of a `config.json`, asked for one by one. Pure.

use crate::error::{Error, ErrorKind, Result};
use crate::io::foreign::kind_of;
use serde_json::{Map, Value};

/// Bytes of a config.json at most: those of models have some thousands, and what is made of it is some times as large.
pub(crate) const MAX_BYTES: u64 = 4 << 20;

/// A JSON object whose keys are asked for one by one.
pub(crate) struct Keys<'a> {
    path: &'a str,
    map: Map<String, Value>,
}

impl<'a> Keys<'a> {
    /// Errors: [`ErrorKind::Config`] for what is no JSON object, or more than 4 MiB.
    pub(crate) fn parse(path: &'a str, json: &str) -> Result<Self> {
        let bad = |message: String| Error::from(ErrorKind::Config { path: path.into(), message });
        if json.len() as u64 > MAX_BYTES {
            return Err(bad(format!("{} bytes, a config has at most {MAX_BYTES}", json.len())));
        }
        let not_json = |e: serde_json::Error| {
            let kind = kind_of(json.as_bytes()).filter(|_| !json.trim_start().starts_with(['{', '[']));
            bad(format!("not JSON: {e}{}", kind.map_or(String::new(), |kind| format!("; {kind}"))))
        };
        match serde_json::from_str(json).map_err(not_json)? {
            Value::Object(map) => Ok(Keys { path, map }),
            _ => Err(bad("not a JSON object".into())),
        }
    }

    /// The object under a key, whose keys errors name alone.
    pub(crate) fn object(&self, key: &str) -> Option<Keys<'a>> {
        match self.map.get(key) {
            Some(Value::Object(map)) => Some(Keys { path: self.path, map: map.clone() }),
            _ => None,
        }
    }

    /// Whether there is such a key, and its value is not null.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(|value| !value.is_null())
    }

    /// Whether there is such a key, and its value is null.
    pub(crate) fn is_null(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(Value::is_null)
    }

    /// Of two names for one thing the one that is there; the first where both or none are.
    pub(crate) fn either(&self, names: [&'static str; 2]) -> &'static str {
        names[usize::from(!self.has(names[0]) && self.has(names[1]))]
    }

    /// Of the file, not of a key.
    pub(crate) fn error(&self, message: String) -> Error {
        ErrorKind::Config { path: self.path.into(), message }.into()
    }

    /// `key num_attention_heads = 7 <why>`.
    pub(crate) fn bad(&self, key: &str, why: &str) -> Error {
        self.error(match self.map.get(key) {
            Some(value) => format!("key {key} = {value} {why}"),
            None => format!("key {key} is missing"),
        })
    }

    pub(crate) fn size(&self, key: &str, most: usize) -> Result<usize> {
        let value = self.map.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        let value = value.filter(|n| (1..=most).contains(n));
        value.ok_or_else(|| self.bad(key, &format!("is not a whole number in 1..={most}")))
    }

    /// A size that may be 0.
    pub(crate) fn count(&self, key: &str, most: usize) -> Result<usize> {
        match self.map.get(key).and_then(Value::as_u64) {
            Some(0) => Ok(0),
            _ => self.size(key, most),
        }
    }

    pub(crate) fn number(&self, key: &str, range: std::ops::RangeInclusive<f64>) -> Result<f64> {
        let value = self.map.get(key).and_then(Value::as_f64).filter(|n| range.contains(n));
        value.ok_or_else(|| self.bad(key, &format!("is not a number in {range:?}")))
    }

    pub(crate) fn flag(&self, key: &str) -> Result<bool> {
        self.map.get(key).and_then(Value::as_bool).ok_or_else(|| self.bad(key, "is neither true nor false"))
    }

    pub(crate) fn word(&self, key: &str, known: &[&'static str]) -> Result<&'static str> {
        self.word_of(key, known, "")
    }

    /// The same, whose error says what the known ones are.
    pub(crate) fn word_of(&self, key: &str, known: &[&'static str], what: &str) -> Result<&'static str> {
        let value = self.map.get(key).and_then(Value::as_str);
        let found = known.iter().find(|k| Some(**k) == value);
        found.copied().ok_or_else(|| self.bad(key, &format!("is not among {known:?}{what}")))
    }

    /// A list of numbers.
    pub(crate) fn numbers(&self, key: &str, range: std::ops::RangeInclusive<f64>) -> Result<Vec<f64>> {
        let list = self.map.get(key).and_then(Value::as_array);
        let numbers = list.and_then(|list| list.iter().map(|n| n.as_f64().filter(|n| range.contains(n))).collect());
        numbers.ok_or_else(|| self.bad(key, &format!("is not a list of numbers in {range:?}")))
    }

    /// A list of words.
    pub(crate) fn words(&self, key: &str, known: &[&'static str]) -> Result<Vec<&'static str>> {
        let one = |word: &Value| known.iter().find(|known| word == **known).copied();
        let words = self.map.get(key).and_then(Value::as_array).and_then(|list| list.iter().map(one).collect());
        words.ok_or_else(|| self.bad(key, &format!("is not a list of words among {known:?}")))
    }

    /// The number, or what it is where there is no such key.
    pub(crate) fn number_or(&self, key: &str, range: std::ops::RangeInclusive<f64>, absent: f64) -> Result<f64> {
        if self.has(key) {
            self.number(key, range)
        } else {
            Ok(absent)
        }
    }

    /// The flag, or what it is where there is no such key.
    pub(crate) fn flag_or(&self, key: &str, absent: bool) -> Result<bool> {
        if self.has(key) {
            self.flag(key)
        } else {
            Ok(absent)
        }
    }

    /// Whether the key's value is not this one.
    pub(crate) fn differs(&self, key: &str, value: Value) -> bool {
        self.map.get(key).is_some_and(|found| !found.is_null() && *found != value)
    }

    /// Whether the value, a list, has other entries than this one, or is an object of objects.
    pub(crate) fn is_mixed(&self, key: &str, entry: &str) -> bool {
        match self.map.get(key) {
            Some(Value::Array(entries)) => entries.iter().any(|found| found != entry),
            Some(Value::Object(map)) => map.values().any(Value::is_object),
            _ => false,
        }
    }

    /// Fails for an odd width, which a key gives.
    pub(crate) fn check_pairs(&self, key: &str, rope_dim: usize) -> Result<()> {
        if rope_dim.is_multiple_of(2) {
            return Ok(());
        }
        Err(self.bad(key, "is odd, so it cannot be rotated in pairs"))
    }

    /// Fails for heads that do not make equal groups.
    pub(crate) fn check_groups(&self, key: &str, groups: usize, q_heads: usize) -> Result<()> {
        if q_heads.is_multiple_of(groups) {
            return Ok(());
        }
        Err(self.bad(key, &format!("does not divide num_attention_heads = {q_heads}")))
    }
}
