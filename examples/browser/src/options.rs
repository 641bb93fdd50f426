//! Objects of options: every key is known, every value checked.

use crate::error::{argument, Result};
use js_sys::{Object, Reflect};
use std::ops::RangeInclusive;
use wasm_bindgen::{JsCast, JsValue};

/// An object of options, or none.
pub(crate) struct Options {
    name: &'static str,
    object: Option<Object>,
}

impl Options {
    /// Refuses what is no object, and keys that are not `known`: a misspelt option would else be ignored.
    pub(crate) fn new(name: &'static str, value: &JsValue, known: &[&str]) -> Result<Self> {
        if value.is_undefined() || value.is_null() {
            return Ok(Options { name, object: None });
        }
        let object: Object = match value.dyn_ref::<Object>() {
            Some(object) => object.clone(),
            None => return Err(argument(name, "is no object")),
        };
        for key in Object::keys(&object).iter() {
            let key = key.as_string().unwrap_or_default();
            if !known.contains(&&*key) {
                return Err(argument(&format!("{name}.{key}"), format!("is not known, only {} are", known.join(", "))));
            }
        }
        Ok(Options { name, object: Some(object) })
    }

    /// A value, unless it is undefined or null.
    pub(crate) fn get(&self, key: &str) -> Option<JsValue> {
        let value = Reflect::get(self.object.as_ref()?, &JsValue::from_str(key)).ok()?;
        (!value.is_undefined() && !value.is_null()).then_some(value)
    }

    /// A whole number.
    pub(crate) fn size(&self, key: &str, range: RangeInclusive<usize>) -> Result<Option<usize>> {
        let range = *range.start() as f64..=*range.end() as f64;
        let Some(value) = self.number(key, range)? else { return Ok(None) };
        match value.fract() == 0.0 {
            true => Ok(Some(value as usize)),
            false => Err(self.bad(key, format!("{value} is no whole number"))),
        }
    }

    /// A whole number that must be given.
    pub(crate) fn needed(&self, key: &str) -> Result<usize> {
        self.size(key, 0..=1 << 30)?.ok_or_else(|| self.bad(key, "is missing"))
    }

    pub(crate) fn number(&self, key: &str, range: RangeInclusive<f64>) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_f64().ok_or_else(|| self.bad(key, "is no number"))?;
        match range.contains(&number) {
            true => Ok(Some(number)),
            false => Err(self.bad(key, format!("{number} is not in {}..={}", range.start(), range.end()))),
        }
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.bad(key, "is neither true nor false"))
    }

    /// One of some words, and what it stands for.
    pub(crate) fn word<T: Copy>(&self, key: &str, words: &[(&str, T)]) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let got = value.as_string().unwrap_or_default();
        let found = words.iter().find(|(word, _)| *word == got).map(|(_, value)| *value);
        let all = || words.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
        found.map(Some).ok_or_else(|| self.bad(key, format!("{value:?} is none of {}", all())))
    }

    pub(crate) fn bad(&self, key: &str, why: impl AsRef<str>) -> crate::error::Thrown {
        argument(&format!("{}.{key}", self.name), why)
    }
}

/// `{a: 1, b: 2}`.
pub(crate) fn object<const N: usize>(fields: [(&str, JsValue); N]) -> JsValue {
    let object = Object::new();
    for (name, value) in fields {
        // On an object made just above, this cannot fail.
        let _ = Reflect::set(&object, &JsValue::from_str(name), &value);
    }
    object.into()
}
