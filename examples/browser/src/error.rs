//! Errors as JavaScript's: `Error` with `kind` and the numbers.

use js_sys::{Error, Reflect};
use latten::ErrorKind;
use wasm_bindgen::JsValue;

/// What a call throws.
pub(crate) struct Thrown(JsValue);

/// Result of a call.
pub(crate) type Result<T, E = Thrown> = std::result::Result<T, E>;

impl From<JsValue> for Thrown {
    fn from(value: JsValue) -> Self {
        Thrown(value)
    }
}

impl From<Thrown> for JsValue {
    fn from(thrown: Thrown) -> Self {
        thrown.0
    }
}

impl From<ErrorKind> for Thrown {
    fn from(kind: ErrorKind) -> Self {
        latten::Error::from(kind).into()
    }
}

impl From<latten::Error> for Thrown {
    fn from(error: latten::Error) -> Self {
        use ErrorKind as K;
        let text = |value: &str| JsValue::from_str(value);
        let number = |value: f64| JsValue::from_f64(value);
        let (kind, fields): (&str, Vec<(&str, JsValue)>) = match error.kind() {
            K::NoAdapter { found, hint } => ("NoAdapter", vec![("found", text(found)), ("hint", text(hint))]),
            K::Unsupported { what } => ("Unsupported", vec![("what", text(what))]),
            K::Shape { name, got, want } => {
                ("Shape", vec![("argument", text(name)), ("got", text(got)), ("want", text(want))])
            }
            K::DType { name, got, want } => {
                ("DType", vec![("argument", text(name)), ("got", text(got)), ("want", text(want))])
            }
            K::Argument { name, why } => ("Argument", vec![("argument", text(name)), ("why", text(why))]),
            K::UnknownSequence { id } => ("UnknownSequence", vec![("id", number(*id as f64))]),
            K::RepeatedSequence { id } => ("RepeatedSequence", vec![("id", number(*id as f64))]),
            K::CacheFull { needed, free } => {
                ("CacheFull", vec![("needed", number(*needed as f64)), ("free", number(*free as f64))])
            }
            K::StalePlan { plan, cache } => {
                ("StalePlan", vec![("plan", number(*plan as f64)), ("cache", number(*cache as f64))])
            }
            K::TooLarge { what, needed_bytes, limit_bytes } => {
                let bytes = [("neededBytes", *needed_bytes), ("limitBytes", *limit_bytes)];
                let bytes = bytes.map(|(name, bytes)| (name, number(bytes as f64)));
                ("TooLarge", [("what", text(what))].into_iter().chain(bytes).collect())
            }
            K::OutOfMemory { .. } => ("OutOfMemory", vec![]),
            K::DeviceLost { .. } => ("DeviceLost", vec![]),
            K::Gpu { context, .. } => ("Gpu", vec![("context", text(context))]),
            K::Config { path, .. } => ("Config", vec![("path", text(path))]),
            K::Weights { path, tensor, .. } => ("Weights", vec![("path", text(path)), ("tensor", text(tensor))]),
            K::Saved { path, .. } => ("Saved", vec![("path", text(path))]),
            K::Io { path, .. } => ("Io", vec![("path", text(path))]),
            _ => ("Other", vec![]),
        };
        Thrown(made(kind, &error.to_string(), &fields))
    }
}

/// A model or cache that another call is using.
pub(crate) fn busy(what: &str) -> Thrown {
    Thrown(made("Busy", &format!("{what} is in use by a call that has not ended: await that first"), &[]))
}

/// The wrong value for an argument.
pub(crate) fn argument(name: &str, why: impl AsRef<str>) -> Thrown {
    let why = why.as_ref();
    let fields = [("argument", JsValue::from_str(name)), ("why", JsValue::from_str(why))];
    Thrown(made("Argument", &format!("{name}: {why}"), &fields))
}

fn made(kind: &str, message: &str, fields: &[(&str, JsValue)]) -> JsValue {
    let error = Error::new(message);
    error.set_name("LattenError");
    let all = [("kind", JsValue::from_str(kind))].into_iter().chain(fields.iter().cloned());
    for (name, value) in all {
        // On an object made just above, this cannot fail.
        let _ = Reflect::set(&error, &JsValue::from_str(name), &value);
    }
    error.into()
}
