//! latten's errors as the exceptions of `latten.errors`: a class for each kind, with the kind's numbers as attributes.

use latten::{Error, ErrorKind};
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// An exception of a class of `latten.errors` by its name.
pub(crate) fn exception(py: Python<'_>, class: &str, message: &str, fields: &[(&str, &dyn Field)]) -> PyErr {
    let made = (|| {
        let error = py.import("latten.errors")?.getattr(class)?.call1((message,))?;
        for (name, value) in fields {
            error.setattr(*name, value.object(py)?)?;
        }
        Ok(PyErr::from_value(error))
    })();
    made.unwrap_or_else(|error: PyErr| error)
}

/// An argument whose value is wrong, found before latten itself sees it.
pub(crate) fn argument(py: Python<'_>, name: &str, why: &str) -> PyErr {
    exception(py, "ArgumentError", &format!("{name}: {why}"), &[("name", &name)])
}

/// What an exception's attribute may be.
pub(crate) trait Field {
    fn object<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>>;
}

impl Field for &str {
    fn object<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(self.into_pyobject(py)?.into_any())
    }
}

impl Field for String {
    fn object<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(self.into_pyobject(py)?.into_any())
    }
}

impl Field for u64 {
    fn object<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(self.into_pyobject(py)?.into_any())
    }
}

impl Field for usize {
    fn object<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(self.into_pyobject(py)?.into_any())
    }
}

/// An error of latten's for Python.
pub(crate) fn raise(py: Python<'_>, error: &Error) -> PyErr {
    let text = error.to_string();
    let new = |class: &str, fields: &[(&str, &dyn Field)]| exception(py, class, &text, fields);
    match error.kind() {
        ErrorKind::NoAdapter { found, hint } => new("NoAdapterError", &[("found", found), ("hint", hint)]),
        ErrorKind::Unsupported { what } => new("UnsupportedError", &[("what", what)]),
        ErrorKind::Shape { name, got, want } => new("ShapeError", &[("name", name), ("got", got), ("want", want)]),
        ErrorKind::DType { name, got, want } => new("DTypeError", &[("name", name), ("got", got), ("want", want)]),
        ErrorKind::Argument { name, .. } => new("ArgumentError", &[("name", name)]),
        ErrorKind::UnknownSequence { id } => new("UnknownSequenceError", &[("id", id)]),
        ErrorKind::RepeatedSequence { id } => new("RepeatedSequenceError", &[("id", id)]),
        ErrorKind::CacheFull { needed, free } => new("CacheFullError", &[("needed", needed), ("free", free)]),
        ErrorKind::StalePlan { .. } => new("StalePlanError", &[]),
        ErrorKind::TooLarge { what, needed_bytes, limit_bytes } => {
            new("TooLargeError", &[("what", what), ("needed_bytes", needed_bytes), ("limit_bytes", limit_bytes)])
        }
        ErrorKind::OutOfMemory { .. } => new("OutOfMemoryError", &[]),
        ErrorKind::DeviceLost { .. } => new("DeviceLostError", &[]),
        ErrorKind::CommandsLost { what, .. } => new("CommandsLostError", &[("what", what)]),
        ErrorKind::Gpu { context, .. } => new("GpuError", &[("context", context)]),
        ErrorKind::Config { path, .. } => new("ConfigError", &[("path", path)]),
        ErrorKind::Weights { path, tensor, .. } => new("WeightsError", &[("path", path), ("tensor", tensor)]),
        ErrorKind::Saved { path, .. } => new("SavedError", &[("path", path)]),
        ErrorKind::Grammar { .. } => new("GrammarError", &[]),
        ErrorKind::Io { path, .. } => new("IoError", &[("path", path)]),
        _ => new("LattenError", &[]),
    }
}

/// [`raise`] of what a call gave.
pub(crate) trait OrRaise<T> {
    fn or_raise(self, py: Python<'_>) -> PyResult<T>;
}

impl<T> OrRaise<T> for latten::Result<T> {
    fn or_raise(self, py: Python<'_>) -> PyResult<T> {
        self.map_err(|error| raise(py, &error))
    }
}

/// A dictionary of names and numbers.
pub(crate) fn numbers<'py>(py: Python<'py>, values: &[(&str, u64)]) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, value) in values {
        dict.set_item(name, value)?;
    }
    Ok(dict)
}
